"""The target `trajectory`: values and validity of known motion, norms against loops, what is read, learning, resuming.

Axes: S stored frames · N tokens · t slices · h,w tokens · 2 = (dx, dy) px · L displacements · p points of a token.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from synthetic import StandIn
from toy import CPU, SAVING_OFTEN, TOY, assert_same_run, losses_of

from mgm_shared.errors import UserError
from mgm_shared.geometry import Box, Patch, TokenGrid
from mgm_shared.pack import pack_motion
from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import collate
from mgm_train.data.views import View
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.training.loop import Job, train
from mgm_train.training.losses import PretrainObjective
from mgm_train.training.targets.choose import make_targets, pretrain_shape, readers
from mgm_train.training.targets.trajectory import TOKEN_STD_PX, ReadTrajectory, Trajectory

SIZE_PX = 64
WHOLE = View(box=Box(x=0, y=0, width=SIZE_PX, height=SIZE_PX), size_px=SIZE_PX)
GRID = TokenGrid.of_clip(8, SIZE_PX, SIZE_PX)
CLIP_T = np.arange(10, 42, 4)


class VideoOf(StandIn):  # type: ignore[misc]  # for a Video
    """A video that has motion, and notes which of it was read."""

    def __init__(self, motion_SYX2: NDArray[np.float32]) -> None:
        self.packed = pack_motion(motion_SYX2)
        self.was_read: list[slice] = []

    @property
    def num_frames(self) -> int:
        return len(self.packed)

    @property
    def packed_motion(self) -> "VideoOf":
        return self

    def __getitem__(self, frames: slice) -> NDArray[np.int16]:
        self.was_read.append(frames)
        return self.packed[frames]


def uniform(velocity: tuple[float, float], num_frames: int = 60) -> NDArray[np.float32]:
    return np.broadcast_to(np.array(velocity, np.float32), (num_frames, 8, 8, 2)).copy()


def zoom(scale: float, num_frames: int = 60) -> NDArray[np.float32]:
    """Content that grows about the middle by `scale` a frame."""
    centre = (np.arange(8) + 0.5) * 8 - SIZE_PX / 2
    from_middle_YX2 = np.stack(np.meshgrid(centre, centre), axis=-1)
    return np.stack([from_middle_YX2 * (1 - 1 / scale)] * num_frames).astype(np.float32)


def read(motion_SYX2: NDArray[np.float32], indices_T: Any = CLIP_T, view: View = WHOLE, **settings: Any) -> Any:
    """(t, h, w, 2, L, j, i)."""
    reader = ReadTrajectory(grid=GRID, **settings)
    values_NP = reader(VideoOf(motion_SYX2), indices_T, view)
    assert values_NP.shape == reader.shape
    assert values_NP.dtype == np.float32
    return values_NP.reshape(GRID.t, GRID.h, GRID.w, 2, -1, 2, 2)


def test_a_pan_moves_all_points_by_its_speed_times_the_frames_to_the_next_slice() -> None:
    values = read(uniform((0.75, -0.5)), norm="none") * 20
    inner = values[:, 1:-1, 1:-1]
    # Two sampled frames of stride 4.
    np.testing.assert_allclose(inner[:, :, :, 0], 6, rtol=1e-5)
    np.testing.assert_allclose(inner[:, :, :, 1], -4, rtol=1e-5)
    # 4 px from the top, and up by 4 px: still inside. 60 px from the left, and right by 6 px: outside.
    assert np.isnan(values[:, :, -1, :, :, :, 1]).all()
    assert not np.isnan(values[:, 0]).all()


def test_each_displacement_of_m3video_is_that_of_one_stored_frame() -> None:
    motion_SYX2 = uniform((0, 0))
    motion_SYX2[..., 0] += np.arange(60, dtype=np.float32)[:, None, None] / 16
    values = read(motion_SYX2, num_steps=4, norm="none") * 20
    assert values.shape[4] == 4
    for t, start in enumerate(CLIP_T[::2]):
        for step in range(4):
            np.testing.assert_allclose(values[t, 1, 0, 0, step], (start + step + 1) / 16, rtol=1e-5)
    assert not values[:, :, 0, 1].any()


@pytest.mark.parametrize("num_steps", [0, 4])
def test_a_token_that_moves_as_a_whole_is_0_after_standardising(num_steps: int) -> None:
    values = read(uniform((1.3, -0.4)), num_steps=num_steps)
    assert np.abs(values[~np.isnan(values)]).max() < 1e-3


def test_a_zoom_is_antisymmetric_in_every_token() -> None:
    values = read(zoom(1.03))[:, 1:-1, 1:-1]
    # Right points go right of the mean, lower ones down; the std of two and two values is 2/√3 of their distance.
    assert (values[:, :, :, 0, :, :, 1] > 0.5).all()
    assert (values[:, :, :, 1, :, 1, :] > 0.5).all()
    np.testing.assert_allclose(values[:, :, :, 0], -values[:, :, :, 0, :, :, ::-1], atol=0.02)
    np.testing.assert_allclose(values[:, :, :, 1], -values[:, :, :, 1, :, ::-1], atol=0.02)


def test_the_norms_are_those_of_loops() -> None:
    motion_SYX2 = np.random.default_rng(0).normal(0, 1, (60, 8, 8, 2)).astype(np.float32)
    motion_SYX2[np.random.default_rng(1).random((60, 8, 8)) < 0.2] = np.nan
    plain, by_patch, by_clip = (read(motion_SYX2, num_steps=2, norm=norm) for norm in ("none", "patch", "clip"))
    known = [value for value in (20 * plain).ravel() if not np.isnan(value)]
    assert 100 < len(known) < plain.size
    rms = np.sqrt(sum(value**2 for value in known) / len(known))
    np.testing.assert_allclose(by_clip, 20 * plain / max(rms, 1), rtol=1e-4, equal_nan=True)
    for place in np.ndindex(*plain.shape[:5]):
        four = 20 * plain[place].ravel()
        expected = (four - four.mean()) / (four.std(ddof=1) + TOKEN_STD_PX)
        np.testing.assert_allclose(by_patch[place].ravel(), expected, atol=1e-4, equal_nan=True)


def test_outliers_are_cut_off_at_20_px_a_frame() -> None:
    video = uniform((0, 0))
    video[:, 3, :, 0] = 24
    assert np.nanmax(read(video, num_steps=1, norm="none")) == 1


def test_a_crop_scales_the_displacements_and_a_mirror_turns_them() -> None:
    box = Box(x=16, y=16, width=32, height=32)
    view = View(box=box, size_px=SIZE_PX, is_mirrored=True)
    values = read(uniform((0.25, 0.5)), view=view, norm="none") * 20
    np.testing.assert_allclose(values[:, 0, 0, 0], -4, rtol=1e-5)
    np.testing.assert_allclose(values[:, 0, 0, 1], 8, rtol=1e-5)


def test_no_more_is_read_than_the_last_slice_needs_or_the_video_has() -> None:
    for num_frames, num_steps, last in ((60, 0, 10 + 32), (60, 3, 10 + 24 + 3), (38, 0, 37)):
        video = VideoOf(uniform((0, 0), num_frames))
        values_NP = ReadTrajectory(grid=GRID, num_steps=num_steps)(video, CLIP_T, WHOLE)
        assert video.was_read == [slice(10, last + 1)]
        assert np.isnan(values_NP[-1]).any() == (num_frames == 38)


def test_a_video_of_one_frame_has_no_trajectories_and_no_error() -> None:
    for norm in ("patch", "clip", "none"):
        assert np.isnan(read(uniform((1, 1), 1), np.zeros(8, np.int64), norm=norm)).all()


def test_a_patch_of_one_point_cannot_be_standardised() -> None:
    with pytest.raises(UserError, match="trajectory-norm"):
        PretrainConfig.model_validate({"target": "trajectory", "patch_px": 8})
    config = PretrainConfig(target="trajectory", patch_px=8, trajectory_norm="clip")
    assert Trajectory.of(config).width == 2
    assert Patch(px=8, frames=2) == config.patch


def test_only_known_values_of_masked_tokens_are_compared() -> None:
    target = Trajectory.of(PretrainConfig(target="trajectory", num_frames=8, image_px=64))
    values_BNP = torch.randn(2, GRID.num_tokens, target.width)
    values_BNP[0, 3, 2:] = torch.nan
    masked_BM = torch.tensor([[3, 7], [0, 1]])
    output_BMP = torch.zeros(2, 2, target.width, requires_grad=True)
    loss = target.error(output_BMP, {"trajectory_BNP": values_BNP}, masked_BM)
    known = [torch.cat([values_BNP[0, 3, :2], values_BNP[0, 7]]), values_BNP[1, :2].flatten()]
    expected = sum(float((values**2).mean()) for values in known) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert output_BMP.grad is not None
    assert not output_BMP.grad.isnan().any()
    assert not output_BMP.grad[0, 0, 2:].any()


class Stripes(StandIn):  # type: ignore[misc]  # for a Dataset
    """Eight videos of stripes, each with a grey level of its own, that move at their own speed.

    At the read number `signal_at` it interrupts the process.
    """

    def __init__(self, reader: Any, signal_at: int = -1) -> None:
        self.reader, self.signal_at, self.num_reads = reader, signal_at, 0
        self.videos = [VideoOf(uniform(((k - 3.5) / 4, 0), 20)) for k in range(8)]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any]]:
        epoch, index = key
        self.num_reads += 1
        if self.num_reads == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        rng = np.random.default_rng((epoch, index))
        start = int(rng.integers(4))
        place_TX = torch.arange(64)[None] - torch.arange(start, start + 8)[:, None] * (index - 3.5) / 4
        frames_TX = torch.sin(place_TX / 3) * 40 + 50 + 20 * index
        frames_CTHW = frames_TX[:, None].expand(8, 64, 64)[None].expand(3, -1, -1, -1).to(torch.uint8)
        mask_N = torch.zeros(GRID.num_tokens, dtype=torch.bool)
        mask_N[rng.permutation(GRID.num_tokens)[:48]] = True
        values_NP = self.reader(self.videos[index], np.arange(start, start + 8), WHOLE)
        targets = {"trajectory": torch.from_numpy(values_NP)}
        return [{"frames_CTHW": frames_CTHW, "mask_N": mask_N, "label": -1, "index": index, "targets": targets}]


def toy_job(run: Path, epochs: int, signal_at: int = -1, **changes: Any) -> Job:
    settings: dict[str, Any] = {
        "target": "trajectory",
        "trajectory_norm": "clip",
        "num_frames": 8,
        "image_px": 64,
        "batch_size": 8,
        "epochs": epochs,
        "warmup_epochs": 2,
        "base_lr": 0.15,
        "num_workers": 0,
        "precision": "fp32",
        "device": "cpu",
        "log_every_steps": 1,
    }
    config = PretrainConfig.model_validate(settings | changes)
    targets = make_targets(config)
    full = pretrain_shape(config, targets)
    kept = ("num_frames", "image_px", "outputs", "motion_outputs", "motion_decoder_depth")
    shape = replace(TOY, **{name: getattr(full, name) for name in kept})
    return Job(
        task="pretrain",
        config=config,
        model=build(lambda: VideoMAE(shape), config.seed),
        objective=PretrainObjective.of(config, targets),
        dataset=Stripes(readers(targets)["trajectory"], signal_at),
        run=RunFolder(run),
        **SAVING_OFTEN,
    )


@pytest.mark.usefixtures("one_thread")
def test_a_toy_learns_more_than_the_mean(tmp_path: Path) -> None:
    job = toy_job(tmp_path, epochs=60)
    values = np.stack([job.dataset[0, index][0]["targets"]["trajectory"].numpy() for index in range(8)])
    by_mean = float(np.nanmean((values - np.nanmean(values, axis=(0, 1))) ** 2))
    assert by_mean > 0.3
    train(job, CPU)
    losses = losses_of(tmp_path)
    assert losses[0] > 0.9 * by_mean
    assert np.mean(losses[-5:]) < 0.3 * by_mean


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 6, "target": "pixels+trajectory:2", "motion_decoder_depth": 1}
    train(toy_job(tmp_path / "whole", **settings), CPU)
    stopped = train(toy_job(tmp_path / "parts", signal_at=20, **settings), CPU)
    assert 0 < stopped.num_steps < 6
    train(toy_job(tmp_path / "parts", **settings), CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_pretraining_reads_trajectories_of_a_store_only_when_it_is_asked_to(pan_store: Store) -> None:
    settings: dict[str, Any] = {"num_frames": 4, "stride": 2, "image_px": 64, "flip": False}
    plain = pretrain_dataset(pan_store, PretrainConfig(**settings))
    config = PretrainConfig(target="trajectory", trajectory_norm="none", **settings)
    guided = pretrain_dataset(pan_store, config)
    for index, row in enumerate(guided.rows):
        batch, without = (collate([dataset[0, index]]) for dataset in (guided, plain))
        assert set(batch) - set(without) == {"trajectory_BNP"}
        assert all(torch.equal(batch[name], without[name]) for name in without)
        # Four stored frames to the next slice, in units of 20 px, of crops of 84 to 128 px.
        pan = {"right": (3, 0), "left": (-3, 0), "up": (0, -3), "down": (0, 3)}[str(pan_store.video_at(row).label)]
        found_2 = np.nanmedian(batch["trajectory_BNP"].numpy().reshape(-1, 2, 4), axis=(0, 2)) * 20
        scale = np.abs(found_2).max() / 12
        assert 64 / 128 * 0.95 < scale < 64 / 84 * 1.05
        np.testing.assert_allclose(found_2 / scale / 4, pan, atol=0.1)

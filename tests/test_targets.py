"""Targets against loops in numpy, toy trainings with them, and what a model with several of them keeps.

Axes as in training/targets: B clips · M masked tokens · T frames · H,W pixels · 3 colours.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy import CPU, SAVING_OFTEN, TOY, MovingStripes, losses_of, toy_config

from mgm_shared.errors import UserError
from mgm_shared.geometry import PAPER_PATCH, Patch
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.model_config import ModelConfig
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.target_weights import TARGETS, target_text, target_weights
from mgm_train.training.loop import Job, train
from mgm_train.training.losses import PretrainObjective
from mgm_train.training.targets.choose import BUILDERS, make_targets, pretrain_shape
from mgm_train.training.targets.difference import Difference
from mgm_train.training.targets.hog import Hog
from mgm_train.training.targets.target import Target, clip_mean, squared_error

RNG = np.random.default_rng(5)


def _hog(frame_HW3: NDArray[Any], patch: Patch = PAPER_PATCH) -> NDArray[Any]:
    """HOG of all tokens of a still clip of this frame, (N, 3, 9, cell rows, cell columns)."""
    frames_CTHW = np.repeat(frame_HW3.transpose(2, 0, 1)[:, None], patch.frames, axis=1)
    side = patch.cells_per_side
    num_tokens = frame_HW3.shape[0] * frame_HW3.shape[1] // patch.px**2
    batch = {"frames_BCTHW": torch.from_numpy(frames_CTHW.copy())[None]}
    values, is_valid = Hog(patch=patch).values(batch, torch.arange(num_tokens)[None])
    assert is_valid is None
    assert values.shape == (1, num_tokens, Hog(patch=patch).width)
    return values[0].unflatten(1, (3, 9, side, side)).numpy()


def _hog_by_loops(frame_HW3: NDArray[Any], y: int, x: int) -> NDArray[Any]:
    """HOG of the cell whose first pixel is (y, x), (3, 9): pixel by pixel, in degrees."""
    padded_HW3 = np.pad(frame_HW3.astype(float), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    kernel = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    votes = np.zeros((3, 9))
    for colour in range(3):
        for row in range(y, y + 8):
            for column in range(x, x + 8):
                gx = gy = 0.0
                for i in range(3):
                    for j in range(3):
                        gx += kernel[i][j] * padded_HW3[row + i, column + j, colour]
                        gy += kernel[j][i] * padded_HW3[row + i, column + j, colour]
                degrees = math.degrees(math.atan2(gx, gy)) % 180
                votes[colour, int(degrees // 20) % 9] += math.sqrt(gx * gx + gy * gy)
    return votes / np.maximum(np.linalg.norm(votes, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("patch", [PAPER_PATCH, Patch(px=8, frames=1)], ids=str)
def test_hog_is_that_of_loops(patch: Patch) -> None:
    frame_HW3 = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    hog_N = _hog(frame_HW3, patch)
    columns = 48 // patch.px
    for token in range(len(hog_N)):
        for row in range(patch.cells_per_side):
            for column in range(patch.cells_per_side):
                y, x = token // columns * patch.px + 8 * row, token % columns * patch.px + 8 * column
                expected = _hog_by_loops(frame_HW3, y, x)
                np.testing.assert_allclose(hog_N[token, :, :, row, column], expected, atol=1e-5)


def _edge(angle_degrees: float) -> NDArray[np.uint8]:
    """A step edge through the middle; its gradient points at this angle from the horizontal."""
    y, x = np.mgrid[-16:16, -16:16] + 0.5
    angle = math.radians(angle_degrees)
    side_HW = x * math.cos(angle) + y * math.sin(angle) > 0
    return np.repeat(np.where(side_HW, 200, 60).astype(np.uint8)[:, :, None], 3, axis=2)


def test_hog_of_an_upright_edge_has_one_bin_and_a_turn_moves_it() -> None:
    upright, level = (_hog(_edge(angle)).sum(axis=(0, 1, 3, 4)) for angle in (0, 90))
    # MaskFeat's angle is measured from the vertical: an upright edge is at 90°, bin 4; a level one at 0°, bin 0.
    assert (np.flatnonzero(upright), np.flatnonzero(level)) == ([4], [0])


def test_hog_of_a_turned_picture_is_turned() -> None:
    """A quarter turn moves an orientation by 90°, that is 4 bins and a half: of a multiple of 40° exactly, of others
    to the other half of a bin. So the sums of opposite orientations are compared, by votes of one bin each."""
    frame_HW3 = _edge(0)
    turned = _hog(np.rot90(frame_HW3).copy())
    level = _hog(_edge(90))
    np.testing.assert_allclose(turned, level, atol=1e-5)
    half_turn = _hog(np.rot90(_edge(30), 2).copy()).sum(axis=(0, 3, 4))
    np.testing.assert_allclose(half_turn, _hog(_edge(30)).sum(axis=(0, 3, 4)), atol=1e-4)


def test_hog_ignores_brightness_and_contrast_and_is_zero_on_a_flat_picture() -> None:
    frame_HW3 = RNG.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(_hog(frame_HW3 * 4), _hog(frame_HW3), atol=1e-6)
    np.testing.assert_allclose(_hog(frame_HW3 + 100), _hog(frame_HW3), atol=1e-6)
    assert not _hog(np.full((32, 32, 3), 90, np.uint8)).any()


def test_hog_is_of_the_first_frame_of_a_tubelet_and_of_the_masked_tokens() -> None:
    frames_BCTHW = torch.from_numpy(RNG.integers(0, 256, (2, 3, 4, 32, 32), dtype=np.uint8))
    masked_BM = torch.tensor([[1, 6], [0, 7]])
    values, _ = Hog().values({"frames_BCTHW": frames_BCTHW}, masked_BM)
    changed = frames_BCTHW.clone()
    changed[:, :, 1::2] = 0
    assert torch.equal(Hog().values({"frames_BCTHW": changed}, masked_BM)[0], values)
    for b in range(2):
        for m, token in enumerate(masked_BM[b].tolist()):
            frame_HW3 = frames_BCTHW[b, :, 2 * (token // 4)].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(values[b, m].reshape(3, 9, 2, 2), _hog(frame_HW3)[token % 4], atol=1e-6)


def test_difference_is_that_of_numpy_and_nothing_where_nothing_moves() -> None:
    frames_BCTHW = torch.from_numpy(RNG.integers(0, 256, (2, 3, 4, 32, 32), dtype=np.uint8))
    # A change of all pixels by one number, noise of one grey level, and a patch that stands still in one colour.
    frames_BCTHW[0, :, 1, :16, :16] = frames_BCTHW[0, :, 0, :16, :16] // 2
    frames_BCTHW[0, :, 0, :16, :16] = frames_BCTHW[0, :, 1, :16, :16] + 7
    frames_BCTHW[0, :, 0, :16, 16:] = 100
    frames_BCTHW[0, :, 1, :16, 16:] = torch.from_numpy(RNG.integers(99, 102, (3, 16, 16), dtype=np.uint8))
    frames_BCTHW[0, 1, 1, 16:, :16] = frames_BCTHW[0, 1, 0, 16:, :16]
    values, is_valid = Difference().values({"frames_BCTHW": frames_BCTHW}, torch.arange(8).expand(2, -1))
    assert is_valid is None
    for b in range(2):
        for token in range(8):
            t, y, x = 2 * (token // 4), 16 * (token // 2 % 2), 16 * (token % 2)
            first, second = frames_BCTHW[b, :, t : t + 2, y : y + 16, x : x + 16].numpy().astype(float).swapaxes(0, 1)
            for colour in range(3):
                change = (second - first)[colour].ravel() / 255
                std = change.std(ddof=1)
                expected = (change - change.mean()) / (std + 1e-6) if std > 1 / 255 else np.zeros(256)
                np.testing.assert_allclose(values[b, token].numpy()[:, colour], expected, atol=1e-4)
    assert not values[0, 0].any()
    assert not values[0, 1].any()
    assert not values[0, 2, :, 1].any()
    assert values[0, 2, :, 0].any()


def test_errors_count_where_values_are_valid() -> None:
    output_BMP = torch.zeros(3, 2, 4, requires_grad=True)
    values = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]]]).repeat(3, 1, 1)
    is_valid_BM = torch.tensor([[True, True], [False, True], [False, False]])
    values[1, 0] = math.nan
    loss = squared_error(output_BMP, values, is_valid_BM)
    loss.backward()
    of_clips = [np.mean(np.arange(1, 9) ** 2), np.mean(np.arange(5, 9) ** 2), 0]
    assert float(loss.detach()) == pytest.approx(np.mean(of_clips))
    assert output_BMP.grad is not None
    assert output_BMP.grad.isfinite().all()
    assert not output_BMP.grad[1, 0].any()
    of_values = squared_error(output_BMP, values, is_valid_BM[:, :, None].expand(-1, -1, 4))
    assert torch.equal(of_values, loss)


def test_a_batch_may_be_split_without_a_change_of_its_loss() -> None:
    error = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    is_valid = error > 0.5
    halves = [clip_mean(error[:2], is_valid[:2]), clip_mean(error[2:], is_valid[2:])]
    torch.testing.assert_close(torch.stack(halves).mean(), clip_mean(error, is_valid))


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("pixels", {"pixels": 1}),
        (" hog + pixels:2 ", {"pixels": 2, "hog": 1}),
        ("difference:0.25+hog:1.0", {"hog": 1, "difference": 0.25}),
    ],
)
def test_a_text_of_targets_and_its_shortest_form(text: str, weights: dict[str, float]) -> None:
    assert target_weights(text) == weights
    assert list(target_weights(text)) == list(weights)
    assert target_weights(target_text(weights)) == weights
    assert PretrainConfig(target=text) == PretrainConfig(target=target_text(weights))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "pixels+",
        "pixel",
        "pixels:",
        "pixels:0",
        "pixels:-1",
        "pixels:nan",
        "hog:inf",
        "hog+hog",
        "hog:1:2",
        "a:b",
    ],
)
def test_another_text_is_an_error_that_says_what_to_write(text: str) -> None:
    with pytest.raises(UserError, match=r"target is .* one or several of pixels"):
        PretrainConfig(target=text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "difference", "tubelet": 1}, "tubelet is 1 but must be 2 for the target difference"),
        ({"target": "difference", "motion_decoder_depth": 2}, "motion-decoder-depth is 2 but must be 0 unless"),
        ({"target": "pixels+hog", "motion_decoder_depth": 1}, "motion-decoder-depth is 1 but must be 0 unless"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainConfig(**changes)


def _settings(target: str, **changes: Any) -> PretrainConfig:
    return toy_config(**({"target": target, "num_frames": 4, "image_px": 32} | changes))


def _shape(config: PretrainConfig) -> ModelConfig:
    shape = pretrain_shape(config)
    names = ("outputs", "motion_outputs", "motion_decoder_depth")
    return dataclasses.replace(TOY, **{name: getattr(shape, name) for name in names})


class TurnedStripes(MovingStripes):
    """Stripes whose direction and speed are those of the video."""

    def _clip(self, epoch: int, index: int, repeat: int) -> dict[str, Any]:
        y, x = np.mgrid[:32, :32] - 15.5
        angle = np.pi * index / 8
        phases = [(x * np.cos(angle) + y * np.sin(angle) + 2 * t * (index % 3)) / 4 for t in range(4)]
        frames_THW = torch.from_numpy((np.sin(phases) * 100 + 128).astype(np.uint8))
        return {**super()._clip(epoch, index, repeat), "frames_CTHW": frames_THW.expand(3, -1, -1, -1)}


def _job(run: Path, config: PretrainConfig, dataset: MovingStripes | None = None) -> Job:
    return Job(
        task="pretrain",
        config=config,
        model=build(lambda: VideoMAE(_shape(config)), config.seed),
        objective=PretrainObjective.of(config),
        dataset=dataset or TurnedStripes(config.repeats),
        run=RunFolder(run),
        **SAVING_OFTEN,
    )


def test_every_target_has_a_builder() -> None:
    assert tuple(BUILDERS) == TARGETS
    assert [one.target.name for one in make_targets(_settings("+".join(TARGETS)))] == list(TARGETS)


def _mean_loss(target: Target) -> float:
    """The loss of the best prediction that is the same for all tokens of the toy's eight clips."""
    samples = [TurnedStripes()[(0, index)][0] for index in range(8)]
    batch = {"frames_BCTHW": torch.stack([sample["frames_CTHW"] for sample in samples])}
    values, _ = target.values(batch, torch.arange(8).expand(8, -1))
    return float(values.flatten(2).var(dim=(0, 1), unbiased=False).mean())


@pytest.mark.parametrize("target", ["pixels", "hog", "difference"])
def test_a_toy_learns_more_than_the_mean(tmp_path: Path, target: str) -> None:
    config = _settings(target, epochs=30, base_lr=0.9, log_every_steps=4)
    train(_job(tmp_path, config), CPU)
    (one,) = make_targets(config)
    losses = losses_of(tmp_path)
    print(target, _mean_loss(one.target), losses)
    assert np.mean(losses[-2:]) < 0.8 * _mean_loss(one.target)
    assert losses[0] > 0.9 * _mean_loss(one.target), "it has not learnt before"

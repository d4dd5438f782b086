"""Targets against loops in numpy, toy trainings with them, and what a model with several of them keeps.

Axes as in training/targets: B clips · M masked tokens · T frames · H,W pixels · 3 colours.
"""

import dataclasses
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy import CPU, TOY, MovingStripes, assert_same_run, losses_of, pretrain_job, run_toy, toy_config, toy_shape

from mgm_shared.errors import UserError
from mgm_shared.geometry import PAPER_PATCH, Patch
from mgm_shared.store import Store, Video
from mgm_train.checkpoint.run_folder import RunFolder, load_last, save_last
from mgm_train.checkpoint.transfer import fitted, load_encoder
from mgm_train.checkpoint.transformers import to_transformers_state, transformers_config
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.config import PretrainConfig
from mgm_train.data.loader import collate_counted
from mgm_train.data.views import View
from mgm_train.model_config import ModelConfig
from mgm_train.models.flops import pretrain_flops
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build, pick, split_mask
from mgm_train.target_weights import TARGETS, target_text, target_weights
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.training.loop import train
from mgm_train.training.losses import PretrainObjective, target_error
from mgm_train.training.targets.choose import BUILDERS, make_targets
from mgm_train.training.targets.difference import Difference
from mgm_train.training.targets.hog import Hog
from mgm_train.training.targets.pixels import Pixels
from mgm_train.training.targets.rgb import Rgb
from mgm_train.training.targets.target import Target, WeightedTarget, clip_mean, squared_error

RNG = np.random.default_rng(5)
# The others read more than the frames of a clip; `test_trajectory_target.py` and `test_codebook.py` have them.
OF_FRAMES = ("pixels", "rgb", "hog", "difference")

pytestmark = pytest.mark.usefixtures("one_thread")


def _hog(frame_HW3: NDArray[Any], patch: Patch = PAPER_PATCH) -> NDArray[Any]:
    """HOG of all tokens of a still clip of this frame, (N, 3, 9, cell rows, cell columns)."""
    frames_CTHW = np.repeat(frame_HW3.transpose(2, 0, 1)[:, None], patch.frames, axis=1)
    side = patch.cells_per_side
    num_tokens = frame_HW3.shape[0] * frame_HW3.shape[1] // patch.px**2
    batch = {"frames_BCTHW": torch.from_numpy(frames_CTHW.copy())[None]}
    values, is_valid = Hog(patch=patch).values(batch, torch.arange(num_tokens)[None])
    assert is_valid is None
    assert values.shape == (1, num_tokens, Hog(patch=patch).width)
    return np.asarray(values[0].unflatten(1, (3, 9, side, side)))


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
    return np.asarray(votes / np.maximum(np.linalg.norm(votes, axis=1, keepdims=True), 1e-12))


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
    assert np.flatnonzero(upright).tolist() == [4]
    assert np.flatnonzero(level).tolist() == [0]


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
    # A change of all pixels by one number, noise of a grey level or two, and a patch that stands still in one colour.
    frames_BCTHW[0, :, 1, :16, :16] = frames_BCTHW[0, :, 0, :16, :16] // 2
    frames_BCTHW[0, :, 0, :16, :16] = frames_BCTHW[0, :, 1, :16, :16] + 7
    frames_BCTHW[0, :, 0, :16, 16:] = 100
    frames_BCTHW[0, :, 1, :16, 16:] = torch.from_numpy(RNG.integers(98, 103, (3, 16, 16), dtype=np.uint8))
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
                expected = (change - change.mean()) / (std + 1e-6) if std > 2 / 255 else np.zeros(256)
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
    of_clips = [float(np.mean(np.arange(1, 9) ** 2)), float(np.mean(np.arange(5, 9) ** 2)), 0.0]
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


class TurnedStripes(MovingStripes):
    """Stripes whose direction and speed are those of the video."""

    def _clip(self, epoch: int, index: int, repeat: int) -> dict[str, Any]:
        y, x = np.mgrid[:32, :32] - 15.5
        angle = np.pi * index / 8
        phases = [(x * np.cos(angle) + y * np.sin(angle) + 2 * t * (index % 3)) / 4 for t in range(4)]
        frames_THW = torch.from_numpy((np.sin(phases) * 100 + 128).astype(np.uint8))
        return {**super()._clip(epoch, index, repeat), "frames_CTHW": frames_THW.expand(3, -1, -1, -1)}


def test_every_target_has_a_builder() -> None:
    assert tuple(BUILDERS) == TARGETS
    names = [one.target.name for one in make_targets(PretrainConfig(target="+".join((*OF_FRAMES, "trajectory"))))]
    assert names == [*OF_FRAMES, "trajectory"]


def _mean_loss(target: Target) -> float:
    """The loss of the best prediction that is the same for all tokens of the toy's eight clips."""
    samples = [TurnedStripes()[(0, index)][0] for index in range(8)]
    batch = {"frames_BCTHW": torch.stack([sample["frames_CTHW"] for sample in samples])}
    values, _ = target.values(batch, torch.arange(8).expand(8, -1))
    return float(values.flatten(2).var(dim=(0, 1), unbiased=False).mean())


@pytest.mark.parametrize("target", OF_FRAMES)
def test_a_toy_learns_more_than_the_mean(tmp_path: Path, target: str) -> None:
    config = toy_config(target=target, epochs=100, base_lr=0.6, log_every_steps=20, save_every_epochs=100)
    train(pretrain_job(tmp_path, config, TurnedStripes(), max_saving_share=1e-4), CPU)
    (one,) = make_targets(config)
    losses, mean_loss = losses_of(tmp_path), _mean_loss(one.target)
    assert losses[-1] < 0.85 * mean_loss
    assert losses[0] > 0.95 * mean_loss, "it knew nothing before"


SEVERAL: dict[str, Any] = {"target": "pixels+hog:0.5+difference:2", "motion_decoder_depth": 1}


def test_a_run_with_several_targets_logs_each_and_their_weighted_sum(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path, toy_config(**SEVERAL)), CPU)
    rows = RunFolder(tmp_path).read_metrics()
    assert len(rows) == 10
    for row in rows:
        parts = [row[f"loss_{name}"] for name in ("pixels", "hog", "difference")]
        assert row["loss"] == pytest.approx(np.dot(parts, [1, 0.5, 2]), rel=1e-5)
    assert not [name for name in rows[0] if name.startswith("loss_") and name.removeprefix("loss_") not in TARGETS]
    assert rows[-1]["loss_pixels"] < rows[0]["loss_pixels"]


def test_a_run_of_pixels_alone_logs_what_it_always_did(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path, toy_config(epochs=1)), CPU)
    assert not [name for row in RunFolder(tmp_path).read_metrics() for name in row if name.startswith("loss_")]


def test_a_killed_run_with_several_targets_goes_on_in_processes_bit_for_bit(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path / "whole", toy_config(grad_accum_steps=2, **SEVERAL)), CPU)
    assert 0 not in run_toy(tmp_path / "parts", 2, kill_at=9, **SEVERAL)
    assert run_toy(tmp_path / "parts", 2, **SEVERAL) == [0, 0]
    _assert_same_parts(tmp_path / "whole", tmp_path / "parts")


def test_a_run_with_several_targets_goes_on_bit_for_bit_between_two_lines(tmp_path: Path) -> None:
    settings: dict[str, Any] = SEVERAL | {"log_every_steps": 3, "ema_decay": 0.9}
    train(pretrain_job(tmp_path / "whole", toy_config(**settings)), CPU)
    # It has read two of the clips of step 5; step 4 was saved, and the line of step 6 begins there.
    assert run_toy(tmp_path / "parts", kill_at=18, **settings) == [-signal.SIGKILL]
    assert (load_last(RunFolder(tmp_path / "parts")) or {})["num_micro_steps"] == 1
    train(pretrain_job(tmp_path / "parts", toy_config(**settings)), CPU)
    _assert_same_parts(tmp_path / "whole", tmp_path / "parts")


def _assert_same_parts(first: Path, second: Path) -> None:
    assert_same_run(first, second)
    for name in ("loss_pixels", "loss_hog", "loss_difference"):
        one, two = ([row[name] for row in RunFolder(run).read_metrics()] for run in (first, second))
        assert one == two
        assert len(one) > 1


def test_a_run_does_not_go_on_with_another_target(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path, toy_config(epochs=1)), CPU)
    with pytest.raises(UserError, match="target was 'pixels' and is now 'hog'"):
        train(pretrain_job(tmp_path, toy_config(epochs=1, target="hog")), CPU)
    train(pretrain_job(tmp_path, toy_config(epochs=1, target=" pixels:1.0")), CPU)


def test_a_run_of_an_earlier_version_goes_on_as_pixels(tmp_path: Path) -> None:
    """Its last.pt has neither the options nor the sums of targets."""
    train(pretrain_job(tmp_path / "whole"), CPU)
    assert run_toy(tmp_path / "parts", kill_at=22) == [-signal.SIGKILL]
    state = load_last(RunFolder(tmp_path / "parts")) or {}
    for name in ("target", "motion_decoder_depth"):
        del state["config"][name]
    del state["part_sums"]
    save_last(RunFolder(tmp_path / "parts"), state)
    train(pretrain_job(tmp_path / "parts"), CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def _clip(config: ModelConfig, num_masked: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, config.num_frames, config.image_px, config.image_px)
    frames_BCTHW = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    masks = [torch.randperm(config.grid.num_tokens, generator=generator) < num_masked for _ in range(2)]
    return frames_BCTHW, torch.stack(masks)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("target", ["hog", "pixels+difference", "pixels+hog+difference"])
def test_operations_are_those_that_torch_counts(target: str, depth: int) -> None:
    depth = depth if "difference" in target else 0
    config = toy_shape(toy_config(target=target, motion_decoder_depth=depth))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        VideoMAE(config)(*_clip(config, 5), 5).sum().backward()
    assert 2 * pretrain_flops(config, 5) == counter.get_total_flops()


def test_each_target_has_its_own_rows_of_the_head_and_motion_its_own_decoder() -> None:
    config = toy_shape(toy_config(**SEVERAL))
    model = build(lambda: VideoMAE(config), seed=0)
    assert model.motion_decoder is not None
    assert config.target_widths == {"pixels": 1536, "hog": 108, "difference": 768}
    outputs = model.by_target(model(*_clip(config, 5), 5))
    assert {name: output.shape for name, output in outputs.items()} == {
        "pixels": (2, 5, 1536),
        "hog": (2, 5, 108),
        "difference": (2, 5, 768),
    }
    outputs["hog"].sum().backward()
    gradient = model.decoder.head.weight.grad
    assert gradient is not None
    assert not gradient[:1536].any()
    assert gradient[1536:].all()
    named = list(model.named_parameters())
    unused = [name for name, parameter in named if parameter.grad is None or not parameter.grad.any()]
    assert {name.split(".")[0] for name in unused} == {"encoder_to_motion", "motion_decoder"}


def test_each_head_starts_with_xaviers_weights_for_its_own_width() -> None:
    model = build(lambda: VideoMAE(toy_shape(toy_config(target="pixels+hog"))), seed=0)
    for width, weight in zip((1536, 108), model.decoder.head.weight.split([1536, 108]), strict=True):
        bound = math.sqrt(6 / (16 + width))
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound


def test_a_weights_file_knows_its_targets_and_one_of_an_earlier_version_has_pixels(tmp_path: Path) -> None:
    config = toy_shape(toy_config(**SEVERAL))
    model = build(lambda: VideoMAE(config), seed=0)
    save_weights(tmp_path / "several.safetensors", model.state_dict(), config, {})
    weights = load_weights(tmp_path / "several.safetensors")
    assert weights.model == config
    VideoMAE(weights.model).load_state_dict(weights.state)
    earlier = dataclasses.asdict(TOY)
    for name in ("outputs", "motion_outputs", "motion_decoder_depth"):
        del earlier[name]
    assert ModelConfig(**earlier) == TOY
    assert toy_shape(toy_config()) == TOY


def test_the_encoder_of_any_target_is_finetuned(tmp_path: Path) -> None:
    config = toy_shape(toy_config(**SEVERAL))
    save_weights(tmp_path / "a.safetensors", build(lambda: VideoMAE(config), 0).state_dict(), config, {})
    weights = load_weights(tmp_path / "a.safetensors")
    classifier = VideoClassifier(fitted(TOY, weights), 3)
    report = load_encoder(classifier, weights)
    assert {name.split(".")[0] for name in report.dropped} == {
        "encoder", "encoder_to_decoder", "mask_token", "decoder", "encoder_to_motion", "motion_decoder",
    }  # fmt: skip


def test_the_export_takes_the_pixels_of_several_targets() -> None:
    several, pixels = (toy_shape(toy_config(target=target)) for target in ("pixels+hog", "pixels"))
    model, alone = VideoMAE(several).eval(), VideoMAE(pixels).eval()
    state = model.state_dict()
    for name in ("decoder.head.weight", "decoder.head.bias"):
        state[name] = state[name][:1536]
    alone.load_state_dict(state)
    exported, expected = (to_transformers_state(one.state_dict()) for one in (model, alone))
    torch.testing.assert_close(exported, expected, atol=0, rtol=0)
    both = toy_shape(toy_config(**SEVERAL))
    assert to_transformers_state(VideoMAE(both).state_dict()).keys() == expected.keys()
    with pytest.raises(UserError, match="predicts pixels, which are no target of this model"):
        transformers_config(toy_shape(toy_config(target="hog")), is_classifier=False)
    transformers_config(toy_shape(toy_config(target="hog")), is_classifier=True)


def test_rgb_is_the_pixel_by_imagenets_mean_and_std() -> None:
    frames_BCTHW, mask_BN = _clip(TOY, 5)
    _, masked_BM = split_mask(mask_BN, 5)
    values, is_valid = Rgb().values({"frames_BCTHW": frames_BCTHW}, masked_BM)
    assert is_valid is None
    pixels_BCTHW, patches_a_side = frames_BCTHW.double() / 255, TOY.image_px // 16
    for clip, tokens_M in enumerate(masked_BM.tolist()):
        for number, token in enumerate(tokens_M):
            t, place = divmod(token, patches_a_side**2)
            y, x = divmod(place, patches_a_side)
            cube_CTHW = pixels_BCTHW[clip, :, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            expected_QC = cube_CTHW.permute(1, 2, 3, 0).reshape(-1, 3)
            for colour, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
                expected_Q = ((expected_QC[:, colour] - mean) / std).float()
                torch.testing.assert_close(values[clip, number, :, colour], expected_Q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OF_FRAMES)
def test_a_target_compiles_to_one_graph(name: str) -> None:
    (one,) = make_targets(PretrainConfig(target=name))
    frames_BCTHW, mask_BN = _clip(TOY, 5)
    _, masked_BM = split_mask(mask_BN, 5)
    output_BMP = torch.rand(2, 5, one.target.width)
    arguments = (one.target, output_BMP, {"frames_BCTHW": frames_BCTHW}, masked_BM)
    compiled = torch.compile(target_error, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), target_error(*arguments))


@dataclasses.dataclass(frozen=True)
class _Place(Target):
    """A target that is read: the first frame and the left edge of the clip, and nothing in the first token."""

    name = "place"
    inputs = ("place_BNP",)

    @property
    def width(self) -> int:
        return 2

    @property
    def shape(self) -> tuple[int, int]:
        return 32, 2

    @property
    def reader(self) -> "_Place":
        return self

    def __call__(self, video: Video, indices_T: NDArray[np.int64], view: View) -> NDArray[np.float32]:
        values_NP = np.tile(np.array([indices_T[0], view.box.x], np.float32), (32, 1))
        values_NP[0] = np.nan
        return values_NP

    def values(self, batch: Mapping[str, torch.Tensor], masked_BM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values_BMP = pick(batch["place_BNP"], masked_BM)
        return values_BMP, ~values_BMP.isnan()


def test_a_target_that_is_read_reaches_the_loss_with_its_clip(pan_store: Store) -> None:
    config = PretrainConfig(num_frames=4, stride=2, image_px=64, repeats=2, model="vit_tiny")
    targets = (WeightedTarget(target=Pixels()), WeightedTarget(target=_Place(), weight=0.5))
    dataset = pretrain_dataset(pan_store, config, targets)
    batch = collate_counted([dataset[3, 0], dataset[3, 1]])
    place_BNP = batch["place_BNP"]
    assert place_BNP.shape == (4, 32, 2)
    assert torch.equal(place_BNP[0, 1:, 0], place_BNP[1, 1:, 0]), "the repeats of a video show the same frames"
    assert not torch.equal(place_BNP[0, 1:, 1], place_BNP[1, 1:, 1]), "they have crops of their own"
    shape = dataclasses.replace(config.shape, outputs=(("pixels", 1536), ("place", 2)))
    objective = PretrainObjective(targets=targets)
    loss = objective(build(lambda: VideoMAE(shape), 0), batch, 0)
    known = [clip_NP[mask_N].numpy() for clip_NP, mask_N in zip(place_BNP, batch["mask_BN"], strict=True)]
    about = sum(float(np.nanmean(values_MP**2)) for values_MP in known) / 4
    assert float(objective.parts["place"]) == pytest.approx(about, rel=0.2), "an untrained model predicts nearly 0"
    torch.testing.assert_close(loss, objective.parts["pixels"] + 0.5 * objective.parts["place"])


def test_a_video_that_cannot_be_read_does_not_count_in_a_target_that_is_read(
    pan_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig(num_frames=4, stride=2, image_px=64, model="vit_tiny")
    targets = (WeightedTarget(target=_Place()),)
    dataset = pretrain_dataset(pan_store, config, targets)
    alone = collate_counted([dataset[0, 1]])
    shape = dataclasses.replace(config.shape, outputs=(("place", 2),))
    model, objective = build(lambda: VideoMAE(shape), 0), PretrainObjective(targets=targets)
    expected = objective(model, alone, 0)
    bad, read = pan_store.video_at(int(dataset.rows[0])).sample_id, _Place.__call__

    def damaged(target: _Place, video: Video, *arguments: Any) -> NDArray[np.float32]:
        if video.sample_id == bad:
            raise OSError("damaged")
        return read(target, video, *arguments)

    monkeypatch.setattr(_Place, "__call__", damaged)
    batch = collate_counted([dataset[0, 0], dataset[0, 1]])
    assert list(batch["unreadable"]) == [bad]
    assert batch["place_BNP"][0].isnan().all()
    torch.testing.assert_close(objective(model, batch, 0), expected / 2)
    torch.testing.assert_close(objective.parts["place"], expected.detach() / 2)

"""Patches of 8 or 16 pixels and of 1 or 2 frames: their order, targets, masks and cost; runs of models with them.

Axes as in models/videomae.py.
"""

import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pixel_error import pixel_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy import TOY, assert_same_run

from mgm_shared.errors import UserError
from mgm_shared.geometry import Patch, TokenGrid
from mgm_shared.overlays import pixels_of
from mgm_shared.store import Store
from mgm_train.checkpoint.weights import load_weights
from mgm_train.cli import main
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import PretrainDataset
from mgm_train.figures.reconstruct import unpatchify
from mgm_train.masking.strategies import STRATEGIES, make_mask
from mgm_train.models.flops import finetune_flops, pretrain_flops
from mgm_train.models.videomae import VideoClassifier, VideoMAE, patchify
from mgm_train.training.targets.pixels import target_pixels

PATCHES = [Patch(px=8, frames=1), Patch(px=8, frames=2), Patch(px=16, frames=1), Patch(px=16, frames=2)]
by_patch = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.px}px{patch.frames}")


def _frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 4, 32, 48), generator=generator, dtype=torch.uint8)


def _tubelets(frames_CTHW: np.ndarray, patch: Patch) -> list[np.ndarray]:
    """The tubelets (3, frames, px, px) of a clip in the order t, h, w."""
    _, num_frames, height, width = frames_CTHW.shape
    starts = itertools.product(
        range(0, num_frames, patch.frames), range(0, height, patch.px), range(0, width, patch.px)
    )
    return [frames_CTHW[:, t : t + patch.frames, y : y + patch.px, x : x + patch.px] for t, y, x in starts]


@by_patch
def test_patches_come_in_the_order_of_loops_and_go_back(patch: Patch) -> None:
    frames_BCTHW = _frames()
    patches_BN3Q = patchify(frames_BCTHW, patch)
    grid = TokenGrid.of_clip(4, 32, 48, patch)
    assert patches_BN3Q.shape == (2, grid.num_tokens, 3, patch.num_values // 3)
    for clip in range(2):
        for token, tubelet in enumerate(_tubelets(frames_BCTHW[clip].numpy(), patch)):
            np.testing.assert_array_equal(patches_BN3Q[clip, token], tubelet.reshape(3, -1))
    frames_THWC = frames_BCTHW[1].permute(1, 2, 3, 0)
    assert torch.equal(unpatchify(patches_BN3Q[1], (4, 32, 48, 3), patch), frames_THWC)


@by_patch
def test_targets_are_normalised_over_their_own_patch(patch: Patch) -> None:
    frames_BCTHW = _frames()
    target_MQ3 = target_pixels(frames_BCTHW[:1], torch.tensor([[1, 5]]), patch)[0].numpy()
    for row, token in enumerate((1, 5)):
        values_3Q = _tubelets(frames_BCTHW[0].numpy() / 255, patch)[token].reshape(3, -1)
        expected_3Q = (values_3Q - values_3Q.mean(1, keepdims=True)) / (values_3Q.std(1, ddof=1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(target_MQ3[row].T, expected_3Q, atol=1e-4)


@by_patch
def test_motion_guides_the_mask_cell_by_cell(patch: Patch) -> None:
    """The sparse mask is what a sort of the patches' summed cells gives; the dense one has the peak of each slice."""
    strength_TYX = np.random.default_rng(0).random((4, 4, 6)).astype(np.float32)
    grid = TokenGrid.of_clip(4, 32, 48, patch)
    cells = patch.px // 8
    total_thw = np.zeros((grid.t, grid.h, grid.w))
    peak_t: list[tuple[int, int]] = []
    for t, y, x in itertools.product(range(4), range(4), range(6)):
        total_thw[t // patch.frames, y // cells, x // cells] += strength_TYX[t, y, x]
    for t in range(grid.t):
        summed_YX = sum(strength_TYX[t * patch.frames + frame] for frame in range(patch.frames))
        row, column = divmod(int(np.argmax(summed_YX)), 6)
        peak_t.append((row // cells, column // cells))
    for name in STRATEGIES:
        mask_N = make_mask(name, strength_TYX, ratio=0.5, rng=np.random.default_rng(1), patch=patch)
        mask_thw = mask_N.reshape(grid.t, grid.h, grid.w)
        assert mask_thw.sum() == grid.num_tokens // 2
        if name == "mgm-sparse":
            for t in range(grid.t):
                strongest = np.argsort(-total_thw[t].reshape(-1))[: grid.patches_per_slice // 2]
                assert set(np.flatnonzero(mask_thw[t])) == set(strongest.tolist())
        if name == "mgm":
            assert all(mask_thw[t][peak_t[t]] for t in range(1, grid.t))


@by_patch
def test_a_mask_is_drawn_over_its_own_pixels(patch: Patch) -> None:
    grid = TokenGrid.of_clip(4, 32, 48, patch)
    mask_thw = np.random.default_rng(0).random((grid.t, grid.h, grid.w)) < 0.5
    pixels_THW = pixels_of(mask_thw, patch)
    for t, y, x in itertools.product(range(4), range(32), range(48)):
        assert pixels_THW[t, y, x] == mask_thw[t // patch.frames, y // patch.px, x // patch.px]


@pytest.mark.parametrize("positions", ["sinusoid", "rope3d"])
@by_patch
def test_the_count_of_operations_is_torchs(patch: Patch, positions: str) -> None:
    config = dataclasses.replace(TOY, patch_px=patch.px, tubelet=patch.frames, positions=positions)
    num_tokens = config.grid.num_tokens
    frames_BCTHW = torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8)
    mask_BN = (torch.arange(num_tokens) < num_tokens // 2)[None]
    for model, expected, inputs in (
        (VideoMAE(config), pretrain_flops(config, num_tokens // 2), (frames_BCTHW, mask_BN)),
        (VideoClassifier(config, 5), finetune_flops(config, 5), (frames_BCTHW,)),
    ):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*inputs).sum().backward()
        assert counter.get_total_flops() == expected


def test_the_loss_is_of_the_same_patches_as_the_prediction() -> None:
    config = dataclasses.replace(TOY, patch_px=8, tubelet=1)
    frames_BCTHW = torch.randint(0, 256, (1, 3, 4, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    mask_BN = (torch.arange(64) % 4 > 0)[None]
    target_BMP = target_pixels(frames_BCTHW, mask_BN.nonzero()[:, 1][None], config.patch).flatten(2)
    assert VideoMAE(config)(frames_BCTHW, mask_BN).shape == target_BMP.shape
    assert float(pixel_error(target_BMP, frames_BCTHW, mask_BN, patch=config.patch)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_px": 72}, "image-px is 72 but must be a multiple of patch-px, 16"),
        ({"image_px": 60, "patch_px": 8}, "image-px is 60 but must be a multiple of patch-px, 8"),
        ({"num_frames": 3}, "num-frames is 3 but must be a multiple of tubelet, 2"),
        ({"patch_px": 12}, "patch-px is 12 but must be one of 8, 16"),
        ({"tubelet": 4}, "tubelet is 4 but must be one of 1, 2"),
    ],
)
def test_clips_that_do_not_divide_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        PretrainConfig(**options)


CLIP = ["--num-frames", "3", "--image-px", "40", "--stride", "2", "--num-workers", "0", "--no-flip"]
SMALL = ["--model", "vit_tiny", "--patch-px", "8", "--tubelet", "1", *CLIP, "--device", "cpu", "--precision", "fp32"]
SHORT = ["--batch-size", "4", "--epochs", "2", "--warmup-epochs", "1", "--log-every-steps", "1", "--repeats", "1"]
ONE_VIEW = ["--num-temporal-views", "1", "--num-spatial-views", "1", "--num-workers", "0"]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pretrained(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    result = _run("pretrain", pan_store.path, "--run", folder, *SMALL, *SHORT, "--positions", "rope3d", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["num_steps"] == 2
    return folder


def test_a_run_of_small_patches_resumes_exactly(
    pan_store: Store, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, num_reads = PretrainDataset.__getitem__, 0

    def interrupted(dataset: PretrainDataset, key: tuple[int, int]) -> Any:
        nonlocal num_reads
        num_reads += 1
        if num_reads == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(dataset, key)

    command = ["pretrain", pan_store.path, "--run", tmp_path / "run", *SMALL, *SHORT, "--positions", "rope3d", "--json"]
    with monkeypatch.context() as patched:
        patched.setattr(PretrainDataset, "__getitem__", interrupted)
        assert not json.loads(_run(*command).stdout)["is_complete"]
    assert json.loads(_run(*command).stdout)["is_complete"]
    assert_same_run(tmp_path / "run", pretrained)


def test_fine_tuning_takes_positions_over_and_rejects_other_patches(
    pan_store: Store, pretrained: Path, tmp_path: Path
) -> None:
    command = ["finetune", pan_store.path, "--run", tmp_path / "run", "--init", pretrained, *SHORT]
    result = _run(*command, "--model", "vit_tiny", *CLIP, "--patch-px", "16", "--tubelet", "1", "--image-px", "48")
    assert result.exit_code == 2
    assert "patch-px is 16 and not 8" in result.stderr
    assert "leave out what the weights decide" in result.stderr
    result = _run(*command, *SMALL, "--positions", "separable")
    assert result.exit_code == 2
    assert "positions is separable and not rope3d" in result.stderr
    for _ in range(2):
        # The second command finds the run complete: the positions it was begun with are those it continues with.
        result = _run(*command, *SMALL)
        assert result.exit_code == 0, result.stderr
    shape = load_weights(tmp_path / "run").model
    assert (shape.patch_px, shape.tubelet, shape.positions) == (8, 1, "rope3d")
    assert "positions: rope3d" in (tmp_path / "run" / "config.yaml").read_text()
    result = _run("evaluate", pan_store.path, tmp_path / "run", *ONE_VIEW)
    assert result.exit_code == 0, result.stderr


def test_figures_of_small_patches(pan_store: Store, pretrained: Path, tmp_path: Path) -> None:
    result = _run("visualize", pan_store.path, "--run", pretrained, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in json.loads(result.stdout).values())


def test_linear_layers_can_start_as_pytorchs() -> None:
    """Xavier's bound for the square projection is √(6 / 64); PyTorch's default is 1 / √32, and its biases are not 0."""
    xavier, default = VideoMAE(TOY), VideoMAE(TOY, linear_init="torch")
    for model, bound, has_bias in ((xavier, (6 / 64) ** 0.5, False), (default, 32**-0.5, True)):
        block: Any = model.encoder.blocks[0]
        assert float(block.attn.proj.weight.detach().abs().max()) == pytest.approx(bound, rel=0.02)
        assert bool(block.attn.proj.bias.any()) == has_bias

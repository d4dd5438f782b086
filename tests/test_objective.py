"""The loss against loops and formulas written a second time; CutMix against the box that it should have cut.

Axes as in objective.py.
"""

import numpy as np
import pytest
import torch
from pixel_error import pixel_error
from timm.data.mixup import Mixup
from toy import needs_cuda

from mgm_shared.errors import UserError
from mgm_shared.geometry import PAPER_PATCH
from mgm_train.config import FinetuneConfig
from mgm_train.data.augmentation.operations import global_random
from mgm_train.models.videomae import normalise, patchify
from mgm_train.training.losses import FinetuneObjective, mix_video
from mgm_train.training.targets.pixels import target_pixels


def _frames(num_clips: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_clips, 3, 4, 32, 48), generator=generator, dtype=torch.uint8)


def test_normalise_has_imagenet_statistics() -> None:
    frames_BCTHW = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(-1, 3, -1, -1, -1)
    expected_BC = torch.tensor([[-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.6400]])
    torch.testing.assert_close(normalise(frames_BCTHW).flatten(1), expected_BC, atol=1e-4, rtol=0)


def _by_formula(frames_BCTHW: torch.Tensor) -> np.ndarray:
    mean_C, std_C = (np.reshape(values, (3, 1, 1, 1)) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    formula: np.ndarray = (frames_BCTHW.cpu().numpy() / 255 - mean_C) / std_C
    return formula


def test_normalise_is_the_formula_on_every_byte() -> None:
    frames_BCTHW = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(2, 3, 1, -1, -1)
    normal_BCTHW = normalise(frames_BCTHW)
    assert normal_BCTHW.dtype == torch.float32
    np.testing.assert_allclose(normal_BCTHW.numpy(), _by_formula(frames_BCTHW), atol=1e-6)


@needs_cuda
def test_normalise_on_a_gpu_is_that_on_the_cpu() -> None:
    frames_BCTHW = _frames()
    normal_BCTHW = normalise(frames_BCTHW.cuda())
    assert normal_BCTHW.is_cuda
    torch.testing.assert_close(normal_BCTHW.cpu(), normalise(frames_BCTHW), atol=1e-6, rtol=0)
    np.testing.assert_allclose(normal_BCTHW.cpu().numpy(), _by_formula(frames_BCTHW), atol=1e-6)


def test_patchify_order() -> None:
    frames_BCTHW = _frames()
    patches_BN3Q = patchify(frames_BCTHW, PAPER_PATCH)
    token = 0
    for t in range(0, 4, 2):
        for y in range(0, 32, 16):
            for x in range(0, 48, 16):
                block_CTHW = frames_BCTHW[1, :, t : t + 2, y : y + 16, x : x + 16]
                assert torch.equal(patches_BN3Q[1, token], block_CTHW.flatten(1))
                token += 1
    assert patches_BN3Q.shape == (2, token, 3, 512)


def test_target_is_normalised_for_each_color_and_uniform_patches_are_zero() -> None:
    frames_BCTHW = _frames()
    frames_BCTHW[:, :, :2, :16, :16] = 77
    target_BMP = target_pixels(frames_BCTHW, torch.tensor([[0, 3], [0, 11]]), PAPER_PATCH).flatten(2)
    torch.testing.assert_close(target_BMP[:, 0], torch.zeros(2, 1536), atol=0.05, rtol=0)
    pixels_PC = frames_BCTHW[0, :, :2, 16:32, :16].permute(1, 2, 3, 0).reshape(512, 3).numpy() / 255
    expected_PC = (pixels_PC - pixels_PC.mean(0)) / (pixels_PC.std(0, ddof=1) + 1e-6)
    np.testing.assert_allclose(target_BMP[0, 1].reshape(512, 3).numpy(), expected_PC, atol=1e-4)


def test_the_error_of_pixels_sees_masked_patches_only() -> None:
    frames_BCTHW = _frames()
    mask_BN = torch.zeros(2, 12, dtype=torch.bool)
    mask_BN[0, [1, 7]] = mask_BN[1, [4, 5]] = True
    target_BMP = target_pixels(frames_BCTHW, torch.tensor([[1, 7], [4, 5]]), PAPER_PATCH).flatten(2)
    assert pixel_error(target_BMP, frames_BCTHW, mask_BN) == 0
    wrong_BMP = target_BMP.clone()
    wrong_BMP[1, 0] += 2
    torch.testing.assert_close(pixel_error(wrong_BMP, frames_BCTHW, mask_BN), torch.tensor(4 / 4))
    bfloat_loss = pixel_error(wrong_BMP.bfloat16(), frames_BCTHW, mask_BN)
    assert bfloat_loss.dtype == torch.float32


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_cuts_one_box_through_all_frames_and_weighs_labels_by_its_area(seed: int) -> None:
    # Each clip is one number, so that a changed pixel tells which clip it came from.
    frames_BCTHW = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 6, 40, 56).clone()
    mixup = Mixup(mixup_alpha=0, cutmix_alpha=1, label_smoothing=0, num_classes=4)
    mixed_BCTHW, soft_BK = mix_video(frames_BCTHW.clone(), torch.arange(4), mixup, seed)
    is_foreign_CTHW = mixed_BCTHW[0] == 3
    assert torch.equal(is_foreign_CTHW, is_foreign_CTHW[:1, :1].expand_as(is_foreign_CTHW))
    rows, columns = torch.nonzero(is_foreign_CTHW[0, 0], as_tuple=True)
    box_area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) if len(rows) else 0
    assert len(rows) == box_area, "the foreign pixels are a rectangle"
    share = len(rows) / (40 * 56)
    torch.testing.assert_close(soft_BK[0], torch.tensor([1 - share, 0, 0, share]), atol=1e-6, rtol=0)


def test_timm_cutmix_on_unfolded_video_is_wrong() -> None:
    """The reason for mix_video: remove it when this fails."""
    mixup = Mixup(mixup_alpha=0, cutmix_alpha=1, label_smoothing=0, num_classes=2)
    frames_BCTHW = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 3, 6, 40, 56)
    num_frames_cut = set()
    for seed in range(8):
        with global_random(seed):
            mixed_BCTHW, _ = mixup(frames_BCTHW.clone(), torch.arange(2))
        num_frames_cut.add(int((mixed_BCTHW[0, 0] == 1).flatten(1).any(1).sum()))
    assert num_frames_cut - {0, 6}, "a box that spares some frames lies in time, not in the picture"


def test_mix_video_is_a_function_of_its_seed() -> None:
    mixup = Mixup(num_classes=4, cutmix_alpha=1)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    first, again, other = (mix_video(normalise(_frames(4)), torch.arange(4), mixup, seed) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002


def test_mixing_an_odd_batch_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="even"):
        mix_video(normalise(_frames(3)), torch.arange(3), Mixup(num_classes=4), 0)


class _Fixed(torch.nn.Module):
    def forward(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[2.0, 0, -1], [0, 1, 0]])


def test_label_smoothing_without_mixing() -> None:
    objective = FinetuneObjective.of(FinetuneConfig(mixup=0, cutmix=0, label_smoothing=0.3), num_classes=3)
    loss = objective(_Fixed(), {"frames_BCTHW": _frames(), "label_B": torch.tensor([0, 2])}, 0)
    probability_BK = np.exp(np.array([[2.0, 0, -1], [0, 1, 0]]))
    probability_BK /= probability_BK.sum(1, keepdims=True)
    target_BK = np.full((2, 3), 0.1)
    target_BK[[0, 1], [0, 2]] += 0.7
    expected = -(target_BK * np.log(probability_BK)).sum(1).mean()
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_mixing_loss_is_the_cross_entropy_of_the_mixed_label() -> None:
    objective = FinetuneObjective.of(FinetuneConfig(label_smoothing=0.0), num_classes=3)
    batch = {"frames_BCTHW": _frames(), "label_B": torch.tensor([0, 2])}
    assert objective.mixup is not None
    _, soft_BK = mix_video(normalise(_frames()), batch["label_B"], objective.mixup, seed=3)
    expected = torch.nn.functional.cross_entropy(_Fixed()(_frames()), soft_BK)
    torch.testing.assert_close(objective(_Fixed(), batch, 3), expected)
    assert 0 < float(soft_BK[0, 0]) < 1, "this seed mixes"

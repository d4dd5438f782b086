"""What is rebuilt of masked patches: right with the right prediction, and honest about what it has looked at.

Axes as in reconstruct.py.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.constants import IMAGENET_DEFAULT_STD
from toy import TOY

from mgm_shared.geometry import PAPER_PATCH
from mgm_train.figures.reconstruct import Reconstruction, RgbReconstruction, reconstruct, unpatchify
from mgm_train.models.videomae import VideoMAE, build, patchify
from mgm_train.training.targets.pixels import target_pixels

SHAPE_THWC = (4, 32, 48, 3)
# 4 frames of 32×48 px have as many tokens as 6 of 32×32.
SHAPE = replace(TOY, num_frames=6)


@pytest.fixture(scope="module")
def model() -> VideoMAE:
    return build(lambda: VideoMAE(SHAPE), seed=0)


@pytest.fixture(scope="module")
def rgb_model() -> VideoMAE:
    return build(lambda: VideoMAE(replace(SHAPE, outputs=(("rgb", 1536),))), seed=0)


@pytest.fixture(scope="module")
def frames_THWC() -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, SHAPE_THWC, dtype=np.uint8)


@pytest.fixture(scope="module")
def mask_N() -> np.ndarray:
    mask_N = np.ones(12, bool)
    mask_N[[0, 5, 8]] = False
    return mask_N


def _colours_first(frames_THWC: np.ndarray) -> Any:
    return frames_THWC.transpose(3, 0, 1, 2).copy()


def _reconstruct(model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray) -> Reconstruction:
    rebuilt = reconstruct(model, _colours_first(frames_THWC), mask_N)
    assert isinstance(rebuilt, Reconstruction)
    return rebuilt


def _pixels(mask_N: np.ndarray) -> Any:
    """Which pixels are masked, (T, H, W)."""
    return mask_N.reshape(2, 2, 3).repeat(2, 0).repeat(16, 1).repeat(16, 2)


def test_unpatchify_undoes_patchify(frames_THWC: np.ndarray) -> None:
    frames_BCTHW = torch.from_numpy(_colours_first(frames_THWC))[None]
    np.testing.assert_array_equal(
        unpatchify(patchify(frames_BCTHW, PAPER_PATCH)[0], SHAPE_THWC, PAPER_PATCH), frames_THWC
    )


def test_the_right_prediction_gives_the_clip_back(model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray) -> None:
    rebuilt = _reconstruct(model, frames_THWC, mask_N)
    frames_BCTHW = torch.from_numpy(_colours_first(frames_THWC))[None]
    target_MQ3 = target_pixels(frames_BCTHW, rebuilt.masked_M[None], PAPER_PATCH)[0]
    perfect = replace(rebuilt, predicted_M3Q=target_MQ3.transpose(1, 2))
    np.testing.assert_array_equal(perfect.frames(perfect.true_statistics()), frames_THWC)
    assert perfect.psnr(frames_THWC) == np.inf


def test_the_loss_is_the_error_of_the_prediction(model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray) -> None:
    rebuilt = _reconstruct(model, frames_THWC, mask_N)
    mean_M31, std_M31 = rebuilt.true_statistics()
    error_M3Q = (rebuilt.patches_N3Q[rebuilt.masked_M] - mean_M31) / std_M31 - rebuilt.predicted_M3Q
    assert rebuilt.loss == pytest.approx(float((error_M3Q**2).mean()), rel=1e-4)


def test_only_the_rows_that_say_so_have_seen_masked_pixels(
    model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray
) -> None:
    is_masked_THW = _pixels(mask_N)
    other_THWC = frames_THWC.copy()
    other_THWC[is_masked_THW] = 255 - other_THWC[is_masked_THW] // 2
    one, other = (_reconstruct(model, clip_THWC, mask_N) for clip_THWC in (frames_THWC, other_THWC))
    for name in ("visible_statistics", "neutral_statistics"):
        picture, same = [rebuilt.frames(getattr(rebuilt, name)()) for rebuilt in (one, other)]
        np.testing.assert_array_equal(picture, same)
    assert np.abs(one.frames(one.true_statistics()).astype(int) - other.frames(other.true_statistics())).mean() > 20


def test_what_is_visible_stays_as_it_was(model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray) -> None:
    rebuilt = _reconstruct(model, frames_THWC, mask_N)
    is_visible_THW = ~_pixels(mask_N)
    for statistics in (rebuilt.true_statistics(), rebuilt.visible_statistics(), rebuilt.neutral_statistics()):
        np.testing.assert_array_equal(rebuilt.frames(statistics)[is_visible_THW], frames_THWC[is_visible_THW])


def test_without_prediction_a_patch_has_its_mean(model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray) -> None:
    rebuilt = _reconstruct(model, frames_THWC, mask_N)
    flat_THWC = rebuilt.frames(rebuilt.true_statistics(), is_predicted=False)
    # Token 1: slice 0, row 0, column 1.
    expected_C = frames_THWC[:2, :16, 16:32].mean((0, 1, 2))
    np.testing.assert_allclose(flat_THWC[:2, :16, 16:32].reshape(-1, 3), np.tile(expected_C, (512, 1)), atol=0.5)


def test_guessed_statistics_are_those_of_the_neighbours(model: VideoMAE, mask_N: np.ndarray) -> None:
    # Visible: dark at the left of slice 0 and bright at the right of both; contrast 10 and 20.
    noise_THW = np.random.default_rng(1).choice([-1.0, 1.0], SHAPE_THWC[:3])
    frames_THWC = np.full(SHAPE_THWC, 100.0)
    for token, mean, contrast in ((0, 60, 10), (5, 180, 20), (8, 180, 20)):
        t, place = divmod(token, 6)
        at = np.s_[2 * t : 2 * t + 2, 16 * (place // 3) :, 16 * (place % 3) :]
        frames_THWC[at][:2, :16, :16] = (mean + contrast * noise_THW[at])[:2, :16, :16, None]
    rebuilt = _reconstruct(model, frames_THWC.astype(np.uint8), mask_N)
    mean_M31, std_M31 = rebuilt.visible_statistics()
    assert mean_M31.min() >= 60
    assert mean_M31.max() <= 181
    by_token = dict(zip(rebuilt.masked_M.tolist(), zip(mean_M31[:, 0, 0], std_M31[:, 0, 0], strict=True), strict=True))
    # Token 3 is below token 0; token 2 is above token 5 and a slice before token 8.
    assert by_token[3][0] < 75
    assert 10 <= by_token[3][1] < 13
    assert by_token[2][0] > 170
    # Token 7 is a column from token 8, a slice and a column from token 0, and a row more from token 5.
    expected = (180 + 60 / 2**2 + 180 / 3**2) / (1 + 1 / 2**2 + 1 / 3**2)
    assert float(by_token[7][0]) == pytest.approx(expected, abs=1)


def test_a_model_of_rgb_predicts_grey_levels(rgb_model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray) -> None:
    rebuilt = reconstruct(rgb_model, _colours_first(frames_THWC), mask_N)
    assert isinstance(rebuilt, RgbReconstruction)
    frames_BCTHW = torch.from_numpy(_colours_first(frames_THWC))[None]
    truth_M3Q = patchify(frames_BCTHW, PAPER_PATCH)[0][rebuilt.masked_M].float()
    std_311 = 255 * torch.tensor(IMAGENET_DEFAULT_STD)[:, None]
    assert rebuilt.loss == pytest.approx(float((((rebuilt.predicted_M3Q - truth_M3Q) / std_311) ** 2).mean()), rel=1e-4)
    perfect = replace(rebuilt, predicted_M3Q=truth_M3Q)
    np.testing.assert_array_equal(perfect.shown_frames(), frames_THWC)
    assert perfect.psnr(frames_THWC) == np.inf
    shown_THWC = rebuilt.shown_frames()
    np.testing.assert_array_equal(shown_THWC[~_pixels(mask_N)], frames_THWC[~_pixels(mask_N)])
    error = (shown_THWC.astype(float) - frames_THWC)[_pixels(mask_N)]
    assert rebuilt.squared_error(shown_THWC) == pytest.approx((error**2).mean(), rel=1e-4)


def test_the_mean_of_visible_patches_has_no_prediction(
    model: VideoMAE, rgb_model: VideoMAE, frames_THWC: np.ndarray, mask_N: np.ndarray
) -> None:
    rebuilt = _reconstruct(model, frames_THWC, mask_N)
    without = rebuilt.frames(rebuilt.visible_statistics(), is_predicted=False)
    np.testing.assert_array_equal(rebuilt.visible_mean_frames(), without)
    other = reconstruct(rgb_model, _colours_first(frames_THWC), mask_N)
    np.testing.assert_array_equal(other.visible_mean_frames(), without)

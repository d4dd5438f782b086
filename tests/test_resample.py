"""Resampled motion against a loop over pixels."""

from typing import Any

import numpy as np

from mgm_shared.geometry import Box
from mgm_shared.resample import resample_motion


def _by_pixels(motion_YX2: Any, box: Any, height: Any, width: Any) -> Any:
    """Each new cell: the mean over a fine sampling of the points that it covers in the old picture."""
    per_cell = 24
    out = np.full((height // 8, width // 8, 2), np.nan)
    for y, x in np.ndindex(out.shape[:2]):
        rows = box.y + (y + (np.arange(per_cell) + 0.5) / per_cell) * box.height / (height // 8)
        columns = box.x + (x + (np.arange(per_cell) + 0.5) / per_cell) * box.width / (width // 8)
        cell = motion_YX2[np.ix_((rows // 8).astype(int), (columns // 8).astype(int))].reshape(-1, 2)
        known = cell[~np.isnan(cell[:, 0])]
        if len(known) >= 0.5 * len(cell):
            out[y, x] = known.mean(0) * (width / box.width, height / box.height)
    return out


def test_resampling_equals_the_mean_over_the_covered_pixels() -> None:
    rng = np.random.default_rng(0)
    motion_YX2 = rng.normal(size=(12, 16, 2)).astype(np.float32)
    motion_YX2[rng.random((12, 16)) < 0.2] = np.nan
    box = Box(x=12, y=8, width=96, height=72)
    got = resample_motion(motion_YX2, box, 48, 64)
    np.testing.assert_allclose(got, _by_pixels(motion_YX2, box, 48, 64), atol=2e-5)


def test_resampling_to_the_same_picture_changes_nothing() -> None:
    motion_TYX2 = np.random.default_rng(1).normal(size=(3, 6, 8, 2)).astype(np.float32)
    motion_TYX2[1, 2, 3] = np.nan
    same = resample_motion(motion_TYX2, Box(x=0, y=0, width=64, height=48), 48, 64)
    np.testing.assert_allclose(same, motion_TYX2, atol=1e-6)


def test_a_missing_cell_is_not_a_static_one() -> None:
    motion_YX2 = np.full((4, 4, 2), np.nan, np.float32)
    motion_YX2[:, :3] = 5
    half = resample_motion(motion_YX2, Box(x=0, y=0, width=32, height=32), 16, 16)
    np.testing.assert_allclose(half, 2.5)
    motion_YX2[:, 2] = np.nan
    assert np.isnan(resample_motion(motion_YX2, Box(x=0, y=0, width=32, height=32), 16, 16)[:, 1]).all()


def test_mirrored_cells_change_places_and_dx_its_sign() -> None:
    motion_TYX2 = np.random.default_rng(2).normal(size=(2, 6, 8, 2)).astype(np.float32)
    motion_TYX2[1, 2, 3] = np.nan
    for box in (Box(x=0, y=0, width=64, height=48), Box(x=6, y=2, width=40, height=30)):
        plain, mirrored = (resample_motion(motion_TYX2, box, 32, 32, is_mirrored=value) for value in (False, True))
        np.testing.assert_array_equal(mirrored, plain[:, :, ::-1] * np.array([-1, 1], np.float32))

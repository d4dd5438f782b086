"""What is laid over a frame says what it is given: arrows, colours, hatching, masked patches, boxes."""

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from mgm_shared.geometry import PAPER_PATCH, Box
from mgm_shared.overlays import (
    WHEEL_RGB,
    draw_arrow_scale,
    draw_arrows,
    draw_boxes,
    draw_heat,
    draw_missing,
    draw_outline,
    full_speed,
    motion_colours,
    shade_masked,
)

# Machado, Oliveira and Fernandes 2009, at full severity; of linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "red": [(0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)],
    "green": [(0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)],
}


@pytest.fixture
def axis() -> Axes:
    axis = Figure().subplots()
    axis.imshow(np.zeros((32, 48, 3), np.uint8))
    return axis


def test_colours_are_the_directions() -> None:
    motion_YX2 = np.array([[(2, 0), (0, 2), (-2, 0), (0, -2)], [(9, 0), (0, 0), (1, 0), (np.nan, np.nan)]], np.float32)
    rgb = motion_colours(motion_YX2, full_px=2)
    np.testing.assert_array_equal(rgb[0], WHEEL_RGB)
    np.testing.assert_array_equal(rgb[1, 0], WHEEL_RGB[0])
    np.testing.assert_array_equal(rgb[1, 1], (255, 255, 255))
    np.testing.assert_allclose(rgb[1, 2], (255 + WHEEL_RGB[0]) / 2, atol=0.5)
    np.testing.assert_array_equal(rgb[1, 3], (128, 128, 128))
    # All the way round no step is a jump.
    angle = np.linspace(0, 2 * np.pi, 721, dtype=np.float32)
    round_trip = motion_colours(np.stack([np.cos(angle), np.sin(angle)], -1), full_px=1).astype(int)
    assert np.abs(np.diff(round_trip, axis=0)).max() <= 4


@pytest.mark.parametrize("kind", BLINDNESS)
def test_directions_differ_for_every_eye(kind: Any) -> None:
    seen = [_lab(np.clip(np.array(BLINDNESS[kind]) @ _linear(rgb / 255), 0, 1)) for rgb in WHEEL_RGB]
    seen.append(_lab(np.ones(3)))
    # A difference of 2.3 is just noticeable.
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 25


def _linear(rgb: Any) -> Any:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: Any) -> np.ndarray:
    to_xyz = [(0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041)]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / (0.95047, 1, 1.08883))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_full_speed_is_that_of_the_fastest_cells() -> None:
    motion_TYX2 = np.zeros((1, 10, 20, 2), np.float32)
    assert full_speed(motion_TYX2) == 1
    motion_TYX2[0, 0, :4] = (3, 4)
    assert full_speed(motion_TYX2) == 5
    assert full_speed(np.full((1, 2, 2, 2), np.nan, np.float32)) == 1


def test_arrows_stand_on_moving_cells(axis: Axes) -> None:
    motion_YX2 = np.zeros((4, 6, 2), np.float32)
    motion_YX2[0, 2] = (3, -1)
    motion_YX2[1, 0] = np.nan
    draw_arrows(axis, motion_YX2, full_px=3)
    (arrows,) = axis.collections
    assert isinstance(arrows, Quiver)
    np.testing.assert_array_equal(arrows.get_offsets(), [(19.5, 3.5)])
    # Two cells long at full speed.
    np.testing.assert_allclose(np.array((arrows.U, arrows.V)), np.array(([16], [-16 / 3])), rtol=1e-6)


def test_many_cells_share_an_arrow(axis: Axes) -> None:
    motion_YX2 = np.full((40, 60, 2), (2, 0), np.float32)
    motion_YX2[0:3, 0:3] = np.nan
    motion_YX2[0, 3:6] = np.nan
    motion_YX2[1, 3:6] = (8, 0)
    draw_arrows(axis, motion_YX2, full_px=2)
    (arrows,) = axis.collections
    assert isinstance(arrows, Quiver)
    # Squares of 3×3 cells: 13 × 20 of them, one without vectors.
    assert np.size(arrows.U) == 13 * 20 - 1
    assert np.asarray(arrows.get_offsets())[0].tolist() == [4.5 * 8 - 0.5, 1.5 * 8 - 0.5]
    np.testing.assert_allclose(np.array(arrows.U)[:2], np.array([2 * 24 / 2 * 5, 2 * 24 / 2 * 2]), rtol=1e-6)


def test_hatching_lies_on_missing_cells_only(axis: Axes) -> None:
    motion_YX2 = np.zeros((4, 6, 2), np.float32)
    motion_YX2[1, 2] = np.nan
    draw_missing(axis, motion_YX2)
    alpha_HW = np.asarray(axis.images[-1].get_array())[..., 3]
    assert (alpha_HW[8:16, 16:24] > 0).all()
    assert np.count_nonzero(alpha_HW) == 64


def test_masked_tubelets_lie_in_fog_and_the_rest_is_untouched() -> None:
    frames_THWC = np.full((4, 32, 48, 3), 200, np.uint8)
    mask_thw = np.zeros((2, 2, 3), bool)
    mask_thw[1, 0, 2] = True
    for fog, grey in ((0.5, 155), (1.0, 110)):
        expected = frames_THWC.copy()
        expected[2:4, 0:16, 32:48] = grey
        np.testing.assert_array_equal(shade_masked(frames_THWC, mask_thw, PAPER_PATCH, fog=fog), expected)


def test_outline_runs_between_masked_and_visible(axis: Axes) -> None:
    mask_hw = np.array([[0, 1, 1], [0, 1, 0]], bool)
    draw_outline(axis, mask_hw, 16)
    x, y = axis.lines[-1].get_data()
    ends = np.stack([x, y], 1).reshape(-1, 3, 2)[:, :2]
    segments = {tuple(sorted(map(tuple, ((segment + 0.5) / 16).astype(int).tolist()))) for segment in ends}
    above, below = {((1, 0), (2, 0)), ((2, 0), (3, 0))}, {((1, 2), (2, 2)), ((2, 1), (3, 1))}
    sides = {((1, 0), (1, 1)), ((1, 1), (1, 2)), ((2, 1), (2, 2)), ((3, 0), (3, 1))}
    assert segments == above | below | sides


def test_what_leaves_the_picture_does_not_widen_it(axis: Axes) -> None:
    before = axis.get_xlim(), axis.get_ylim()
    draw_boxes(axis, [Box(x=40, y=-5, width=20, height=10)])
    assert (axis.get_xlim(), axis.get_ylim()) == before
    assert np.asarray(axis.lines[-1].get_xdata()).tolist() == [39.5, 59.5, 59.5, 39.5, 39.5]


def test_heat_is_clear_where_it_is_cold(axis: Axes) -> None:
    heat_YX = np.array([[0, 1], [2, 8]], np.float32)
    draw_heat(axis, np.zeros((32, 32, 3), np.uint8), heat_YX, full=4)
    alpha_YX = np.asarray(axis.images[-1].get_alpha())
    assert alpha_YX[0, 0] == 0
    assert alpha_YX[0, 1] < alpha_YX[1, 0] < alpha_YX[1, 1] < 1
    np.testing.assert_array_equal(axis.images[-1].get_array(), [[0, 0.25], [0.5, 1]])


def test_the_scale_is_as_long_as_the_arrows(axis: Axes) -> None:
    """On axes that are 0.6 as wide as a panel, the same number of pixels is the same length."""
    motion_YX2 = np.zeros((4, 6, 2), np.float32)
    motion_YX2[0, 2] = (3, 0)
    draw_arrows(axis, motion_YX2, full_px=3)
    legend = axis.figure.add_subplot()
    draw_arrow_scale(legend, 3.0, (4, 6), 0.6, 7)
    (arrow,), (scale,) = axis.collections, legend.collections
    assert isinstance(arrow, Quiver)
    assert isinstance(scale, Quiver)
    assert np.size(scale.U) == 1
    assert np.ravel(scale.U)[0] == np.ravel(arrow.U)[0]
    assert legend.get_xlim() == pytest.approx((0, 0.6 * 48))
    assert legend.texts[0].get_text() == "3.0 px\na frame"

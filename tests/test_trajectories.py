"""Points that motion vectors carry: known pans, zooms and moving things, missing vectors, borders, crops and mirrors.

Axes: S stored frames · t slices · L recorded times · Y,X cells of 8×8 px · 2 = (dx, dy) px.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mgm_shared.geometry import Box
from mgm_train.data.trajectories import Trajectories, consecutive_stops, next_slice_stops, trajectories
from mgm_train.data.views import View

SIDE_PX = 64
WHOLE = View(box=Box(x=0, y=0, width=SIDE_PX, height=SIDE_PX), size_px=SIDE_PX)
# Pixel positions of the cells' centres.
CENTRE_X = (np.arange(8) + 0.5) * 8


def centres() -> NDArray[np.float64]:
    """(Y, X, 2) of (x, y)."""
    return np.stack(np.meshgrid(CENTRE_X, CENTRE_X), axis=-1)


def pan(dx: float, dy: float, num_frames: int = 9) -> NDArray[np.float32]:
    return np.broadcast_to(np.array([dx, dy], np.float32), (num_frames, 8, 8, 2)).copy()


def carried(motion_SYX2: Any, *stops: int, view: View = WHOLE) -> Trajectories:
    """The points of frame 0."""
    return trajectories(motion_SYX2, np.array([0]), np.array([stops]), view)


def test_a_pan_carries_every_point_that_stays_inside_by_its_speed() -> None:
    found = carried(pan(3, -2), 1, 2, 8)
    for moved_YX2, is_valid_YX, num_frames in zip(found.moved_tLYX2[0], found.is_valid_tLYX[0], (1, 2, 8), strict=True):
        end_YX2 = centres() + np.multiply(num_frames, (3, -2))
        is_inside_YX = ((end_YX2 >= 0) & (end_YX2 < SIDE_PX)).all(-1)
        np.testing.assert_array_equal(is_valid_YX, is_inside_YX)
        assert 0 < is_inside_YX.sum() < 64 or num_frames < 8
        assert (moved_YX2[is_inside_YX] == (3 * num_frames, -2 * num_frames)).all()


def test_the_displacements_between_the_times_are_those_of_each_frame() -> None:
    motion_SYX2 = pan(0, 0, 5) + np.arange(5, dtype=np.float32)[:, None, None, None] / 2
    steps = carried(motion_SYX2, 1, 2, 3, 4).steps()
    assert steps.moved_tLYX2[0, :, 2, 3].tolist() == [[0.5, 0.5], [1, 1], [1.5, 1.5], [2, 2]]


def test_points_of_a_zoom_and_a_turn_follow_their_curve() -> None:
    # The content at p comes from A⁻¹ p, measured from the middle; the vector lies where it arrives.
    angle, scale = np.deg2rad(1.5), 1.02
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    from_middle_YX2 = centres() - SIDE_PX / 2
    motion_YX2 = from_middle_YX2 - from_middle_YX2 @ np.linalg.inv(turn).T
    found = carried(np.stack([motion_YX2] * 5).astype(np.float32), 4)
    end_YX2 = from_middle_YX2 @ np.linalg.matrix_power(turn, 4).T
    # A field that is linear is linear between cells too, but not beyond the outermost centres.
    inner = slice(1, -1)
    error_YX2 = found.moved_tLYX2[0, 0] - (end_YX2 - from_middle_YX2)
    assert np.abs(error_YX2[inner, inner]).max() < 0.02
    # The vectors at the start alone would be off by ten times as much.
    naive_YX2 = 4 * motion_YX2 - (end_YX2 - from_middle_YX2)
    assert np.abs(naive_YX2[inner, inner]).max() > 0.2


def test_a_thing_is_followed_from_its_trailing_edge() -> None:
    # Two cells wide, 8 px a frame to the right, over a ground that stands still.
    motion_SYX2 = np.zeros((4, 8, 8, 2), np.float32)
    for frame in range(4):
        motion_SYX2[frame, 3:5, 1 + frame : 3 + frame, 0] = 8
    found = carried(motion_SYX2, 1, 2, 3)
    np.testing.assert_array_equal(found.moved_tLYX2[0, :, 3, 1:3, 0], [[8, 8], [16, 16], [24, 24]])
    assert not found.moved_tLYX2[0, :, 6].any()


def test_one_frame_without_vectors_is_crossed_and_two_are_not() -> None:
    motion_SYX2 = pan(2, 1, 8)
    motion_SYX2[3] = np.nan
    found = carried(motion_SYX2, 2, 3, 4)
    assert found.moved_tLYX2[0, :, 2, 2].tolist() == [[4, 2], [6, 3], [8, 4]]
    assert found.is_valid_tLYX[0, :, 2, 2].all()
    motion_SYX2[4] = np.nan
    assert carried(motion_SYX2, 2, 3, 4, 5).is_valid_tLYX[0, :, 2, 2].tolist() == [True, True, False, False]


def test_a_clip_that_begins_with_an_i_picture_has_trajectories() -> None:
    motion_SYX2 = pan(2, 1)
    motion_SYX2[0] = np.nan
    found = carried(motion_SYX2, 4)
    assert found.moved_tLYX2[0, 0, 2, 2].tolist() == [8, 4]
    assert found.is_valid_tLYX[0, 0, 2, 2]
    motion_SYX2[1] = np.nan
    assert not carried(motion_SYX2, 1, 4).is_valid_tLYX.any()


def test_missing_cells_are_left_out_between_cells_as_in_a_loop_over_weights() -> None:
    rng = np.random.default_rng(0)
    motion_SYX2 = rng.normal(0, 3, (2, 8, 8, 2)).astype(np.float32)
    motion_SYX2[1][rng.random((8, 8)) < 0.3] = np.nan
    motion_SYX2[0] = np.nan
    box = Box(x=6, y=10, width=36, height=40)
    found = carried(motion_SYX2, 1, view=View(box=box, size_px=48))
    num_known = 0
    for j in range(6):
        for i in range(6):
            x, y = 6 + (8 * i + 4) * 36 / 48, 10 + (8 * j + 4) * 40 / 48
            total, weights = np.zeros(2), 0.0
            for row in range(8):
                for column in range(8):
                    weight = max(0, 1 - abs(y - (8 * row + 4)) / 8) * max(0, 1 - abs(x - (8 * column + 4)) / 8)
                    if not np.isnan(motion_SYX2[1, row, column, 0]):
                        total, weights = total + weight * motion_SYX2[1, row, column], weights + weight
            end = (x, y) + total / max(weights, 1e-9)
            is_valid = weights >= 0.5 and (end >= 0).all() and (end < SIDE_PX).all()
            assert found.is_valid_tLYX[0, 0, j, i] == is_valid
            if is_valid:
                expected = total / weights * (48 / 36, 48 / 40)
                np.testing.assert_allclose(found.moved_tLYX2[0, 0, j, i], expected, rtol=1e-4, atol=1e-5)
                num_known += 1
    assert 10 < num_known < 36


def test_a_mirrored_view_has_mirrored_trajectories() -> None:
    motion_SYX2 = np.random.default_rng(1).normal(0, 2, (4, 8, 8, 2)).astype(np.float32)
    box = Box(x=8, y=2, width=50, height=44)
    plain = carried(motion_SYX2, 1, 3, view=View(box=box, size_px=48))
    mirrored = carried(motion_SYX2, 1, 3, view=View(box=box, size_px=48, is_mirrored=True))
    np.testing.assert_array_equal(mirrored.is_valid_tLYX, plain.is_valid_tLYX[..., ::-1])
    np.testing.assert_allclose(mirrored.moved_tLYX2, plain.moved_tLYX2[..., ::-1, :] * (-1, 1), atol=2e-5)


def test_a_point_outside_the_crop_is_still_known() -> None:
    left = View(box=Box(x=0, y=0, width=32, height=32), size_px=32)
    found = carried(pan(8, 0), 3, view=left)
    assert found.is_valid_tLYX.all()
    assert (found.moved_tLYX2[..., 0] == 24).all()


def test_a_view_that_is_no_square_has_points_of_its_own_shape() -> None:
    found = carried(pan(2, 1), 1, view=View(box=Box(x=0, y=0, width=64, height=32), size_px=(32, 128)))
    assert found.moved_tLYX2.shape == (1, 1, 4, 16, 2)
    assert (found.moved_tLYX2[found.is_valid_tLYX] == (4, 1)).all()
    assert found.is_valid_tLYX[0, 0, :, :15].all()


@pytest.mark.parametrize("indices", [np.arange(0, 64, 4), np.array([5, 7, 9, 11])])
def test_times_of_the_slices(indices: Any) -> None:
    start_t = indices[::2]
    step = start_t[1] - start_t[0]
    assert next_slice_stops(indices, 2).tolist() == [[start + step] for start in start_t]
    assert consecutive_stops(indices, 2, 3).tolist() == [[start + 1, start + 2, start + 3] for start in start_t]


def test_times_behind_the_video_and_repeated_frames_are_invalid() -> None:
    # The clip of a video of six frames, whose last one is repeated.
    indices_T = np.array([0, 2, 4, 5, 5, 5])
    stop_tL = next_slice_stops(indices_T, 2)
    assert stop_tL.tolist() == [[4], [5], [6]]
    found = trajectories(pan(0.5, 0, 6), indices_T[::2], stop_tL, WHOLE)
    assert found.is_valid_tLYX.all((1, 2, 3)).tolist() == [True, True, False]
    frozen = trajectories(pan(1, 0, 6), np.array([3, 5]), np.array([[3, 4, 5], [5, 6, 7]]), WHOLE)
    assert frozen.is_valid_tLYX[:, :, 3, 3].tolist() == [[False, True, True], [False, False, False]]

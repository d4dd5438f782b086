"""Trajectories: points of a clip, carried through every stored frame by the stored motion vectors.

The points of a slice start at the centres of the 8×8-px cells of the clip's picture. A stored vector lies where the
content is at frame f, and says how far it came since f − 1. To carry a point forward from f − 1 to f is therefore an
implicit step: the vector is wanted at the place that it leads to. The step is predicted by the point's last velocity
and corrected once by the vector found there; on the trailing edge of a moving thing this follows the thing, where the
vector at the old place belongs to the background that was uncovered.

Axes: S stored frames · t slices of the clip · L times at which a trajectory is recorded · Y,X cells of the picture of
S, or of the clip · 2 = (dx, dy) px, right and down positive.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX
from mgm_shared.kernel import kernel
from mgm_train.data.views import View

# A point has a vector where at least this share of the bilinear weights is of cells that have one.
MIN_COVERAGE = 0.5
# So many frames in a row without a vector are crossed at the point's last velocity: an I picture, an intra block.
MAX_GAP = 1


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Where the points of each slice go, in pixels of the clip, relative to where they start.

    `moved_tLYX2` is float32. `is_valid_tLYX` is false from the moment at which the point left the stored picture, had
    no vector for longer than `MAX_GAP`, or the video ended; what `moved_tLYX2` has there is not meaningful.
    """

    moved_tLYX2: NDArray[np.float32]
    is_valid_tLYX: NDArray[np.bool_]

    def steps(self) -> "Trajectories":
        """The displacement between each recorded time and the one before, in place of that since the start."""
        moved_tLYX2 = np.diff(self.moved_tLYX2, axis=1, prepend=np.float32(0))
        return Trajectories(moved_tLYX2=moved_tLYX2, is_valid_tLYX=self.is_valid_tLYX)


def consecutive_stops(indices_T: NDArray[np.int64], slice_frames: int, num_steps: int) -> NDArray[np.int64]:
    """The stored frames after the first frame of each slice, (t, L): the times of M3Video (MME).

    `indices_T` are the stored frames of the clip, `slice_frames` of which make a slice.
    """
    return indices_T[::slice_frames, None] + np.arange(1, num_steps + 1)


def next_slice_stops(indices_T: NDArray[np.int64], slice_frames: int) -> NDArray[np.int64]:
    """The first stored frame of the next slice, (t, 1): the times of TrackMAE.

    The last slice goes on for as long as the one before it, so it may end behind the clip. A slice whose successor
    starts at the same frame, as in a video that was too short, stops where it starts.
    """
    start_t = indices_T[::slice_frames]
    last_step = start_t[-1] - start_t[-2] if len(start_t) > 1 else indices_T[-1] - indices_T[0]
    return np.append(start_t[1:], start_t[-1] + last_step)[:, None]


def trajectories(
    motion_SYX2: NDArray[np.float32], start_t: NDArray[np.int64], stop_tL: NDArray[np.int64], view: View
) -> Trajectories:
    """Carry the points of a view from `start_t` on, and record where they are at the ascending times `stop_tL`.

    Args:
        motion_SYX2: Motion of whole stored frames in px a frame, NaN = missing.
        start_t: The frame of `motion_SYX2` at which the points of each slice start.
        stop_tL: The frames of `motion_SYX2` at which they are recorded. A time that is not after the start, or behind
            the last frame, is invalid.
        view: The picture of the clip, as a view of the stored frames; it says where the points start. A point may
            leave it, since the vectors outside are known too.
    """
    height, width = view.shape_px
    scale_x, scale_y = width / view.box.width, height / view.box.height
    centre_Y, centre_X = ((np.arange(side // CELL_PX) + 0.5) * CELL_PX for side in (height, width))
    if view.is_mirrored:
        centre_X = width - centre_X
    found = carry(motion_SYX2, start_t, stop_tL, view.box.y + centre_Y / scale_y, view.box.x + centre_X / scale_x)
    found.moved_tLYX2[:] *= np.array([-scale_x if view.is_mirrored else scale_x, scale_y], np.float32)
    return found


def carry(
    motion_SYX2: NDArray[np.float32],
    start_t: NDArray[np.int64],
    stop_tL: NDArray[np.int64],
    y_Y: NDArray[np.floating[Any]],
    x_X: NDArray[np.floating[Any]],
) -> Trajectories:
    """`trajectories` of the points at these rows and columns of the stored picture, in its pixels."""
    num_slices, num_stops = stop_tL.shape
    moved_tLYX2 = np.zeros((num_slices, num_stops, len(y_Y), len(x_X), 2), np.float32)
    is_valid_tLYX = np.zeros(moved_tLYX2.shape[:-1], np.bool_)
    motion_SYX2 = np.ascontiguousarray(motion_SYX2, np.float32)
    places = y_Y.astype(np.float32), x_X.astype(np.float32)
    for t in range(num_slices):
        _carry(motion_SYX2, start_t[t], stop_tL[t], *places, moved_tLYX2[t], is_valid_tLYX[t])
    return Trajectories(moved_tLYX2=moved_tLYX2, is_valid_tLYX=is_valid_tLYX)


@kernel
def _vector_at(motion_YX2: NDArray[np.float32], y: np.float32, x: np.float32) -> tuple[np.float32, np.float32]:
    """The motion at a point, bilinear between the cells that have a vector; NaN if too few have."""
    num_rows, num_columns = motion_YX2.shape[:2]
    row = min(max(y * np.float32(1 / CELL_PX) - np.float32(0.5), np.float32(0)), np.float32(num_rows - 1))
    column = min(max(x * np.float32(1 / CELL_PX) - np.float32(0.5), np.float32(0)), np.float32(num_columns - 1))
    # Unsigned, because for signed indices numba checks whether they count from the end.
    top, left = np.uint64(row), np.uint64(column)
    down, right = row - np.float32(top), column - np.float32(left)
    below = min(top + np.uint64(1), np.uint64(num_rows - 1))
    beside = min(left + np.uint64(1), np.uint64(num_columns - 1))
    a_dx, b_dx = motion_YX2[top, left, 0], motion_YX2[top, beside, 0]
    c_dx, d_dx = motion_YX2[below, left, 0], motion_YX2[below, beside, 0]
    a_dy, b_dy = motion_YX2[top, left, 1], motion_YX2[top, beside, 1]
    c_dy, d_dy = motion_YX2[below, left, 1], motion_YX2[below, beside, 1]
    a, b = (np.float32(1) - down) * (np.float32(1) - right), (np.float32(1) - down) * right
    c, d = down * (np.float32(1) - right), down * right
    dx = a * a_dx + b * b_dx + c * c_dx + d * d_dx
    # NaN is the one number that differs from itself.
    if dx == dx:
        return dx, a * a_dy + b * b_dy + c * c_dy + d * d_dy
    dx = dy = coverage = np.float32(0)
    for weight, cell_dx, cell_dy in ((a, a_dx, a_dy), (b, b_dx, b_dy), (c, c_dx, c_dy), (d, d_dx, d_dy)):
        if cell_dx == cell_dx:
            dx += weight * cell_dx
            dy += weight * cell_dy
            coverage += weight
    if coverage < np.float32(MIN_COVERAGE):
        return np.float32(np.nan), np.float32(np.nan)
    return dx / coverage, dy / coverage


@kernel
def _carry(
    motion_SYX2: NDArray[np.float32],
    start: int,
    stop_L: NDArray[np.int64],
    y_Y: NDArray[np.float32],
    x_X: NDArray[np.float32],
    moved_LYX2: NDArray[np.float32],
    is_valid_LYX: NDArray[np.bool_],
) -> None:
    # All points of a frame before the next frame: they do not wait for each other, but the steps of a point do.
    place_YX2 = np.empty((len(y_Y), len(x_X), 2), np.float32)
    velocity_YX2 = np.empty_like(place_YX2)
    # Frames in a row without a vector; more than MAX_GAP once the point is lost.
    gap_YX = np.zeros((len(y_Y), len(x_X)), np.int8)
    for j in range(len(y_Y)):
        for i in range(len(x_X)):
            place_YX2[j, i, 0], place_YX2[j, i, 1] = x_X[i], y_Y[j]
            # The velocity with which the content arrived here.
            velocity_YX2[j, i] = _vector_at(motion_SYX2[start], y_Y[j], x_X[i])
    k = 0
    while k < len(stop_L) and stop_L[k] <= start:
        k += 1
    for frame in range(start + 1, min(len(motion_SYX2), stop_L[-1] + 1)):
        _step(motion_SYX2[frame], place_YX2, velocity_YX2, gap_YX)
        if frame == stop_L[k]:
            for j in range(len(y_Y)):
                for i in range(len(x_X)):
                    moved_LYX2[k, j, i, 0] = place_YX2[j, i, 0] - x_X[i]
                    moved_LYX2[k, j, i, 1] = place_YX2[j, i, 1] - y_Y[j]
                    is_valid_LYX[k, j, i] = gap_YX[j, i] <= MAX_GAP
            k += 1


@kernel
def _step(
    motion_YX2: NDArray[np.float32],
    place_YX2: NDArray[np.float32],
    velocity_YX2: NDArray[np.float32],
    gap_YX: NDArray[np.int8],
) -> None:
    height, width = np.float32(CELL_PX * motion_YX2.shape[0]), np.float32(CELL_PX * motion_YX2.shape[1])
    for j in range(place_YX2.shape[0]):
        for i in range(place_YX2.shape[1]):
            if gap_YX[j, i] > MAX_GAP:
                continue
            x, y = place_YX2[j, i, 0], place_YX2[j, i, 1]
            dx, dy = velocity_YX2[j, i, 0], velocity_YX2[j, i, 1]
            is_known = dx == dx
            near_dx, near_dy = _vector_at(motion_YX2, y + dy if is_known else y, x + dx if is_known else x)
            if near_dx == near_dx:
                dx, dy = near_dx, near_dy
                gap_YX[j, i] = 0
            else:
                gap_YX[j, i] = gap_YX[j, i] + 1 if is_known else MAX_GAP + 1
            x, y = x + dx, y + dy
            if not (0 <= x < width and 0 <= y < height):
                gap_YX[j, i] = MAX_GAP + 1
            place_YX2[j, i, 0], place_YX2[j, i, 1] = x, y
            velocity_YX2[j, i, 0], velocity_YX2[j, i, 1] = dx, dy

"""A picture's vectors, block by block, on its 8×8 cells: painted, given the reference they used, made velocities.

These are the loops that extraction spends its own time in; compiled, they cost a twentieth of decoding.

Axes: K vectors · L lists, 0 towards past and 1 towards future references · Y,X cells of 8×8 coded px · 2 = (dx, dy).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX
from mgm_shared.kernel import kernel

# Mean error of a cell's prediction, in grey levels: so small is the right reference; by so much must another one win.
GOOD_ERROR = 3.0
MIN_GAIN = 1.5
# A displacement up to this long is slow at any distance, and most cells of a still camera are.
MIN_DISPUTED_PX = 1.0
# Where in its cell a prediction is compared with the picture: eight pixels in a quincunx.
SAMPLE_Y = np.array([0, 0, 2, 2, 4, 4, 6, 6])
SAMPLE_X = np.array([1, 5, 3, 7, 1, 5, 3, 7])
NUM_SAMPLES = len(SAMPLE_Y)

Luma = NDArray[Any]
"""8- or 16-bit luma, (H, W)."""


@kernel
def paint(vectors_K: NDArray[np.void], num_rows: int, num_columns: int) -> NDArray[np.float32]:
    """Each block's vector on the cells that it covers, in px towards its reference, (L, Y, X, 2); NaN = none.

    Blocks are 16×16, 16×8, 8×16 or 8×8, and FFmpeg gives their centres; those beyond the picture are padding.
    """
    towards_LYX2 = np.full((2, num_rows, num_columns, 2), np.nan, np.float32)
    for k in range(vectors_K.shape[0]):
        vector = vectors_K[k]
        scale = np.float32(max(vector.motion_scale, 1))
        dx, dy = np.float32(vector.motion_x) / scale, np.float32(vector.motion_y) / scale
        future = 1 if vector.source > 0 else 0
        left, top = (vector.dst_x - (vector.w >> 1)) // CELL_PX, (vector.dst_y - (vector.h >> 1)) // CELL_PX
        for y in range(max(top, 0), min(top + max(vector.h // CELL_PX, 1), num_rows)):
            for x in range(max(left, 0), min(left + max(vector.w // CELL_PX, 1), num_columns)):
                towards_LYX2[future, y, x, 0] = dx
                towards_LYX2[future, y, x, 1] = dy
    return towards_LYX2


@kernel
def _is_inside(first: int, displacement: np.float32, length: int) -> bool:
    """Whether a cell, and the pixels that predict it, lie within the picture along one axis."""
    place = first + float(displacement)
    return first >= 0 and first + CELL_PX <= length and place >= 0 and place <= length - CELL_PX - 1


@kernel
def _compare_inside(
    luma_HW: Luma,
    reference_HW: Luma,
    first_row: int,
    first_column: int,
    dy: np.float32,
    dx: np.float32,
    difference_S: NDArray[np.float32],
) -> None:
    """`_compare_at_border` where no sample leaves the picture: all have the same weights. The bits are the same."""
    whole_y, whole_x = int(np.floor(dy)), int(np.floor(dx))
    down, across = np.float64(dy) - whole_y, np.float64(dx) - whole_x
    for s in range(NUM_SAMPLES):
        row, column = first_row + SAMPLE_Y[s], first_column + SAMPLE_X[s]
        y, x = row + whole_y, column + whole_x
        upper = reference_HW[y, x] * (1 - across) + reference_HW[y, x + 1] * across
        lower = reference_HW[y + 1, x] * (1 - across) + reference_HW[y + 1, x + 1] * across
        difference_S[s] = np.float32(luma_HW[row, column]) - np.float32(upper * (1 - down) + lower * down)


@kernel
def _compare_at_border(
    luma_HW: Luma,
    reference_HW: Luma,
    first_row: int,
    first_column: int,
    dy: np.float32,
    dx: np.float32,
    difference_S: NDArray[np.float32],
) -> None:
    """The samples of a cell without their prediction; beyond the picture its border is repeated."""
    height, width = luma_HW.shape
    for s in range(NUM_SAMPLES):
        row = min(max(first_row + SAMPLE_Y[s], 0), height - 1)
        column = min(max(first_column + SAMPLE_X[s], 0), width - 1)
        difference_S[s] = np.float32(luma_HW[row, column]) - _bilinear(reference_HW, row + dy, column + dx)


@kernel
def fit(
    luma_HW: Luma,
    reference_HW: Luma,
    grey_level: float,
    top: int,
    left: int,
    distance: float,
    towards_YX2: NDArray[np.float32],
    distance_YX: NDArray[np.float32],
    error_YX: NDArray[np.float32],
) -> int:
    """Try one reference on the cells that fit none well so far; returns how many are still left.

    `distance_YX` and `error_YX` hold the best reference's distance and its mean error, and are updated. `grey_level` is
    what one of 256 levels is in the units of the luma. `top` and `left` are the corner of both lumas in the coded
    picture, whose cells these are.
    """
    height, width = luma_HW.shape
    difference_S = np.empty(NUM_SAMPLES, np.float32)
    num_open = 0
    for y in range(towards_YX2.shape[0]):
        for x in range(towards_YX2.shape[1]):
            dx, dy = towards_YX2[y, x, 0], towards_YX2[y, x, 1]
            # Also false for NaN, a cell without a vector.
            if not dx * dx + dy * dy > MIN_DISPUTED_PX * MIN_DISPUTED_PX or error_YX[y, x] <= GOOD_ERROR:
                continue
            first_row, first_column = y * CELL_PX - top, x * CELL_PX - left
            if _is_inside(first_row, dy, height) and _is_inside(first_column, dx, width):
                _compare_inside(luma_HW, reference_HW, first_row, first_column, dy, dx, difference_S)
            else:
                _compare_at_border(luma_HW, reference_HW, first_row, first_column, dy, dx, difference_S)
            # Without its mean: in a fade the encoder predicts with weights, and the brightness differs as a whole.
            error = _mean_abs_difference(difference_S) / np.float32(grey_level)
            if error + MIN_GAIN < error_YX[y, x]:
                error_YX[y, x] = error
                distance_YX[y, x] = distance
            num_open += error_YX[y, x] > GOOD_ERROR
    return num_open


@kernel
def _mean_abs_difference(values_S: NDArray[np.float32]) -> np.float32:
    mean = std = np.float32(0)
    for value in values_S:
        mean += value / np.float32(NUM_SAMPLES)
    for value in values_S:
        std += abs(value - mean) / np.float32(NUM_SAMPLES)
    return std


@kernel
def _bilinear(luma_HW: Luma, row: float, column: float) -> np.float32:
    """A sample between pixels; beyond the picture its border is repeated, as the codec does."""
    row = min(max(row, 0.0), luma_HW.shape[0] - 1.0)
    column = min(max(column, 0.0), luma_HW.shape[1] - 1.0)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, luma_HW.shape[0] - 1), min(left + 1, luma_HW.shape[1] - 1)
    down, across = row - top, column - left
    upper = luma_HW[top, left] * (1 - across) + luma_HW[top, right] * across
    lower = luma_HW[bottom, left] * (1 - across) + luma_HW[bottom, right] * across
    return np.float32(upper * (1 - down) + lower * down)


@kernel
def velocity(towards_LYX2: NDArray[np.float32], distance_LYX: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Y, X, 2) px a frame: displacement towards a reference over the frames to it; of two lists one is chosen.

    An exact zero beside a non-zero vector is none: FFmpeg exports (0, 0) for a list that a block does not use. Of two
    others the slower: a block that used an older reference than we think comes out too fast, never too slow.
    """
    velocity_YX2 = np.empty(towards_LYX2.shape[1:], np.float32)
    for y in range(towards_LYX2.shape[1]):
        for x in range(towards_LYX2.shape[2]):
            past_dx, past_dy = towards_LYX2[0, y, x, 0], towards_LYX2[0, y, x, 1]
            future_dx, future_dy = towards_LYX2[1, y, x, 0], towards_LYX2[1, y, x, 1]
            past_speed = (past_dx * past_dx + past_dy * past_dy) / distance_LYX[0, y, x] ** 2
            future_speed = (future_dx * future_dx + future_dy * future_dy) / distance_LYX[1, y, x] ** 2
            is_future_slower = future_speed < past_speed if future_speed != 0 else past_speed == 0
            # A comparison with NaN, a missing vector, is false.
            if np.isnan(past_speed) or is_future_slower or (past_speed == 0 and future_speed > 0):
                velocity_YX2[y, x, 0] = future_dx / -distance_LYX[1, y, x]
                velocity_YX2[y, x, 1] = future_dy / -distance_LYX[1, y, x]
            else:
                velocity_YX2[y, x, 0] = past_dx / -distance_LYX[0, y, x]
                velocity_YX2[y, x, 1] = past_dy / -distance_LYX[0, y, x]
    return velocity_YX2

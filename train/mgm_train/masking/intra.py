"""Motion of intra blocks: what guides the mask where a P or B picture has no vector.

An encoder stores a block without a vector, as an intra block, where no reference predicts it well: often where
something moves too fast, turns or appears. The paper does not mention such cells. On labelled videos they lie in a box
2 to 8 times as often as chance (see `pipelines/bench/RESULTS.md`).

nearest   a cell takes its value in the nearest frame of the clip that has one (`guidance.filled`)
strong    an intra cell gets the longest vector of its picture
spread    an intra cell gets the mean of the vectors around it
change    an intra cell is as strong as the picture changes there, on the scale of the cells with vectors

A picture without any vector, an I picture, says nothing about its cells; there every rule is `nearest`.

Axes: S stored frames · T frames of a clip · Y,X cells of 8×8 px · P,Q samples of a picture, SAMPLE_PX apart ·
2 = (dx, dy) · 3 = (dx, dy, whether the cell is intra).
"""

import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX
from mgm_shared.kernel import kernel

# The change of a cell is measured between pixels half a cell apart.
SAMPLE_PX = CELL_PX // 2
# Where nothing has a vector that is not zero, an intra cell has at least this length, or this strength per grey level.
MIN_STRONG_PX, MIN_PER_LEVEL = 1.0, 1e-3


def strong(motion_SYX2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the intra cells of each picture its longest vector, or (1, 0) px if that is shorter: (S, Y, X, 2)."""
    motion_SYX2 = motion_SYX2.copy()
    _strong(motion_SYX2)
    return motion_SYX2


@kernel
def _strong(motion_SYX2: NDArray[np.float32]) -> None:
    for motion_YX2 in motion_SYX2:
        longest_px2, dx, dy = np.float32(MIN_STRONG_PX**2), np.float32(MIN_STRONG_PX), np.float32(0)
        for y in range(motion_YX2.shape[0]):
            for x in range(motion_YX2.shape[1]):
                length_px2 = motion_YX2[y, x, 0] ** 2 + motion_YX2[y, x, 1] ** 2
                # A comparison with NaN is false.
                if length_px2 > longest_px2:
                    longest_px2, dx, dy = length_px2, motion_YX2[y, x, 0], motion_YX2[y, x, 1]
        if not _is_bare(motion_YX2):
            for y in range(motion_YX2.shape[0]):
                for x in range(motion_YX2.shape[1]):
                    if np.isnan(motion_YX2[y, x, 0]):
                        motion_YX2[y, x, 0], motion_YX2[y, x, 1] = dx, dy


def spread(motion_SYX2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each intra cell the mean of the vectors of its up to eight neighbours: (S, Y, X, 2).

    Cells without such a neighbour follow ring by ring, from the vectors that the ring before got.
    """
    motion_SYX2 = motion_SYX2.copy()
    _spread(motion_SYX2)
    return motion_SYX2


@kernel
def _spread(motion_SYX2: NDArray[np.float32]) -> None:
    num_rows, num_columns = motion_SYX2.shape[1:3]
    for motion_YX2 in motion_SYX2:
        if _is_bare(motion_YX2):
            continue
        is_left = True
        while is_left:
            is_left = False
            before_YX2 = motion_YX2.copy()
            for y in range(num_rows):
                for x in range(num_columns):
                    if not np.isnan(before_YX2[y, x, 0]):
                        continue
                    is_left = True
                    dx, dy, num = np.float32(0), np.float32(0), 0
                    for j in range(max(y - 1, 0), min(y + 2, num_rows)):
                        for i in range(max(x - 1, 0), min(x + 2, num_columns)):
                            if not np.isnan(before_YX2[j, i, 0]):
                                dx, dy, num = dx + before_YX2[j, i, 0], dy + before_YX2[j, i, 1], num + 1
                    if num:
                        motion_YX2[y, x, 0], motion_YX2[y, x, 1] = dx / np.float32(num), dy / np.float32(num)


def with_intra(motion_SYX2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors with a third component: 1 in an intra cell, 0 in another, NaN in a picture without vectors: (S, Y, X, 3).

    Its mean over the stored frames of a clip's frame is the share of them in which the cell is intra.
    """
    motion_SYX3 = np.empty((*motion_SYX2.shape[:3], 3), np.float32)
    _with_intra(motion_SYX2, motion_SYX3)
    return motion_SYX3


@kernel
def _with_intra(motion_SYX2: NDArray[np.float32], motion_SYX3: NDArray[np.float32]) -> None:
    for s in range(len(motion_SYX2)):
        is_bare = _is_bare(motion_SYX2[s])
        for y in range(motion_SYX2.shape[1]):
            for x in range(motion_SYX2.shape[2]):
                dx = motion_SYX2[s, y, x, 0]
                motion_SYX3[s, y, x, 0], motion_SYX3[s, y, x, 1] = dx, motion_SYX2[s, y, x, 1]
                motion_SYX3[s, y, x, 2] = np.float32(np.nan) if is_bare else np.float32(np.isnan(dx))


@kernel
def _is_bare(motion_YX2: NDArray[np.float32]) -> bool:
    """Whether no cell has a vector."""
    for y in range(motion_YX2.shape[0]):
        for x in range(motion_YX2.shape[1]):
            if not np.isnan(motion_YX2[y, x, 0]):
                return False
    return True


def by_change(
    strength_TYX: NDArray[np.float32], intra_TYX: NDArray[np.float32], frames_THWC: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Weigh the strength of each cell with the change of the picture, as far as the cell is intra: (T, Y, X).

    The change of a cell is the mean absolute difference of its samples to the clip's frame before (in the first frame,
    to the second). It is scaled so that over the cells of a frame that are mostly not intra, change and strength have
    the same mean square. A cell that is intra in a share p of the stored frames has (1 − p) · strength + p · change.

    Args:
        strength_TYX: Strength by the vectors, NaN = missing.
        intra_TYX: Share of the stored frames since the clip's frame before in which the cell is intra.
        frames_THWC: The frames of the clip.
    """
    samples_TPQ = np.ascontiguousarray(frames_THWC[:, ::SAMPLE_PX, ::SAMPLE_PX, 1])
    mixed_TYX = strength_TYX.copy()
    _by_change(strength_TYX, intra_TYX, samples_TPQ, mixed_TYX)
    return mixed_TYX


@kernel
def _by_change(
    strength_TYX: NDArray[np.float32],
    intra_TYX: NDArray[np.float32],
    samples_TPQ: NDArray[np.uint8],
    mixed_TYX: NDArray[np.float32],
) -> None:
    num_frames, num_rows, num_columns = strength_TYX.shape
    change_YX = np.empty((num_rows, num_columns), np.float32)
    for t in range(num_frames):
        _change(samples_TPQ[t], samples_TPQ[t - 1 if t else min(1, num_frames - 1)], change_YX)
        of_strength, of_change = np.float32(0), np.float32(0)
        for y in range(num_rows):
            for x in range(num_columns):
                strength = strength_TYX[t, y, x]
                if intra_TYX[t, y, x] < 0.5 and not np.isnan(strength):
                    of_strength += strength * strength
                    of_change += change_YX[y, x] * change_YX[y, x]
        per_level = np.sqrt(of_strength / of_change) if of_change > 0 else np.float32(0)
        per_level = max(per_level, np.float32(MIN_PER_LEVEL))
        for y in range(num_rows):
            for x in range(num_columns):
                share = intra_TYX[t, y, x]
                if share > 0:
                    by_vector = strength_TYX[t, y, x]
                    share = np.float32(1) if np.isnan(by_vector) else share
                    by_vector = np.float32(0) if np.isnan(by_vector) else by_vector
                    mixed_TYX[t, y, x] = (1 - share) * by_vector + share * per_level * change_YX[y, x]


@kernel
def _change(samples_PQ: NDArray[np.uint8], before_PQ: NDArray[np.uint8], change_YX: NDArray[np.float32]) -> None:
    """Mean absolute difference of a cell's samples between two frames, in grey levels."""
    per_cell = CELL_PX // SAMPLE_PX
    for y in range(change_YX.shape[0]):
        for x in range(change_YX.shape[1]):
            # Signed integers, because differences of uint8 samples would wrap around.
            total = np.int64(0)
            for p in range(per_cell * y, per_cell * (y + 1)):
                for q in range(per_cell * x, per_cell * (x + 1)):
                    total += abs(np.int64(samples_PQ[p, q]) - np.int64(before_PQ[p, q]))
            change_YX[y, x] = np.float32(total) / np.float32(per_cell * per_cell)

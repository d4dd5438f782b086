"""Codec motion vectors → one grid of velocities a picture: how far each 8×8 cell moved since the frame before.

What FFmpeg exports is a displacement to a reference picture that may lie several frames away, on either side, and it
does not say how far. DESIGN.md §4 has the facts; the rules below follow it.

Axes: K vectors · Y,X cells of 8×8 coded px · 2 = (dx, dy) px per frame interval, right and down positive, NaN = none.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mgm_prep.decode import Picture
from mgm_shared.geometry import CELL_PX, Box, resample_motion

# H.264 holds at most 16 pictures for reordering, so a B picture's future reference is shown within 16 frames.
MAX_REORDER = 16


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Frame intervals from a picture to its nearest references in display order, in the past and in the future."""

    past: int = 1
    future: int = 1


def with_distances(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Distances]]:
    """Each picture, in display order, with its distances.

    A reference is the nearest picture on that side that was decoded earlier and that others may refer to. A picture
    whose vectors point forward waits until that reference has been shown too: at most MAX_REORDER pictures are held.
    """
    shown: deque[tuple[int, Picture]] = deque(maxlen=2 * MAX_REORDER + 1)
    waiting: deque[tuple[int, Picture]] = deque()
    for number, picture in enumerate(pictures):
        shown.append((number, picture))
        waiting.append((number, picture))
        while waiting and (number - waiting[0][0] >= MAX_REORDER or not _waits(waiting[0], shown)):
            yield _dated(waiting.popleft(), shown)
    while waiting:
        yield _dated(waiting.popleft(), shown)


Shown = deque[tuple[int, Picture]]


def _references(picture: Picture, shown: Shown) -> list[int]:
    return [n for n, other in shown if other.is_reference and other.decode_index < picture.decode_index]


def _waits(item: tuple[int, Picture], shown: Shown) -> bool:
    number, picture = item
    points_forward = picture.vectors_K is not None and bool((picture.vectors_K["source"] > 0).any())
    return points_forward and not any(n > number for n in _references(picture, shown))


def _dated(item: tuple[int, Picture], shown: Shown) -> tuple[Picture, Distances]:
    number, picture = item
    references = _references(picture, shown)
    past = min((number - n for n in references if n < number), default=1)
    future = min((n - number for n in references if n > number), default=1)
    return picture, Distances(past=past, future=future)


def motion_grid(
    vectors_K: NDArray[np.void] | None, distances: Distances, height: int, width: int
) -> NDArray[np.float32]:
    """The velocity of each cell of a height × width coded picture, (⌈height/8⌉, ⌈width/8⌉, 2)."""
    shape = (-(-height // CELL_PX), -(-width // CELL_PX))
    if vectors_K is None or not len(vectors_K):
        return np.full((*shape, 2), np.nan, np.float32)
    is_past = vectors_K["source"] < 0
    past_YX2 = _paint(vectors_K[is_past], shape)
    if is_past.all():
        return -past_YX2 / np.float32(distances.past)
    return _merge(-past_YX2, _paint(vectors_K[~is_past], shape), distances)


def _paint(vectors_K: NDArray[np.void], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Each block's vector, in px towards its reference, on the 8×8 cells that the block covers.

    Blocks are 16×16, 16×8, 8×16 or 8×8, and FFmpeg gives their centres; those beyond the picture are padding.
    """
    num_rows, num_columns = shape
    grid_YX2 = np.full((*shape, 2), np.nan, np.float32)
    scale_K = np.maximum(vectors_K["motion_scale"], 1).astype(np.float32)
    vector_K2 = np.stack([vectors_K["motion_x"] / scale_K, vectors_K["motion_y"] / scale_K], axis=-1)
    block_width_K, block_height_K = vectors_K["w"].astype(np.int32), vectors_K["h"].astype(np.int32)
    column_K = (vectors_K["dst_x"] - block_width_K // 2) // CELL_PX
    row_K = (vectors_K["dst_y"] - block_height_K // 2) // CELL_PX
    for down in range(2):
        for right in range(2):
            y, x = row_K + down, column_K + right
            is_covered = (down * CELL_PX < block_height_K) & (right * CELL_PX < block_width_K)
            is_covered &= (y >= 0) & (y < num_rows) & (x >= 0) & (x < num_columns)
            grid_YX2[y[is_covered], x[is_covered]] = vector_K2[is_covered]
    return grid_YX2


def _merge(past_YX2: NDArray[np.float32], future_YX2: NDArray[np.float32], distances: Distances) -> NDArray[np.float32]:
    """One velocity a cell from its displacement since the past and towards the future reference.

    Where a B block has both, an exact zero beside a non-zero vector is an artefact (FFmpeg exports (0, 0) for a list
    that an 8×8 sub-block does not use) and is dropped. Of two velocities the smaller one is taken: a block that used an
    older reference than the nearest comes out too large, never too small.
    """
    is_past_zero, is_future_zero = (past_YX2 == 0).all(-1), (future_YX2 == 0).all(-1)
    is_past_real = ~np.isnan(past_YX2[..., 0])
    is_future_real = ~np.isnan(future_YX2[..., 0])
    is_both = is_past_real & is_future_real
    is_past_real &= ~(is_both & is_past_zero & ~is_future_zero)
    is_future_real &= ~(is_both & is_future_zero & ~is_past_zero)
    past_YX2, future_YX2 = past_YX2 / np.float32(distances.past), future_YX2 / np.float32(distances.future)
    is_past_smaller = (past_YX2**2).sum(-1) <= (future_YX2**2).sum(-1)
    takes_past = is_past_real & (is_past_smaller | ~is_future_real)
    return np.where(takes_past[..., None], past_YX2, future_YX2)


def stored_motion(picture: Picture, motion_YX2: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The grid of the picture as shown and stored, (height/8, width/8, 2): resized, then turned as its frame is."""
    frame, orientation = picture.frame, picture.orientation
    if orientation.is_transposed:
        height, width = width, height
    if (frame.height, frame.width) != (height, width):
        box = Box(x=0, y=0, width=frame.width, height=frame.height)
        motion_YX2 = resample_motion(motion_YX2, box, height, width)
    return orientation.motion(motion_YX2)

"""Codec motion vectors → one grid of velocities a picture: how far each 8×8 cell moved since the frame before.

What FFmpeg exports is a displacement to a reference picture that may lie several frames away, on either side, and it
does not say how far. DESIGN.md §4 has the facts; the rules below follow it.

Axes: K vectors · Y,X cells of 8×8 coded px · 2 = (dx, dy) px per frame interval, right and down positive, NaN = none.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_prep.decode import Picture
from mgm_shared.geometry import CELL_PX, Box, resample_motion
from mgm_shared.schema import PICTURE_TYPES

# H.264 holds at most 16 pictures for reordering, so a B picture's future reference is shown within 16 frames.
MAX_REORDER = 16
# References kept behind a picture: x264's presets use 3 (medium) to 5 (slow), its slowest 16.
MAX_CANDIDATES = 5
# Mean error of a cell's prediction, in grey levels: so small is the right reference; by so much must an older one win.
GOOD_ERROR = 3.0
MIN_GAIN = 1.5
# A displacement up to this long is slow at any distance, and most cells of a still camera are.
MIN_DISPUTED_PX = 1.0
# FFmpeg exports vectors for these pictures too, and all of them are (0, 0).
EXPORTED_AS_ZERO = frozenset({("mpeg4", PICTURE_TYPES.index("B"))})
# Where in its cell a prediction is compared with the picture: eight pixels in a quincunx.
SAMPLE_Y, SAMPLE_X = np.array([(0, 1), (0, 5), (2, 3), (2, 7), (4, 1), (4, 5), (6, 3), (6, 7)], np.float32).T


Luma = NDArray[Any]
"""8- or 16-bit luma, (H, W) or samples of it."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A picture that vectors may point to: frame intervals back to it (negative: ahead), and its luma."""

    distance: int
    luma_HW: Luma | None = None


# What is known of a reference that is not among the pictures shown: most likely the frame beside.
PREVIOUS, NEXT = (Reference(distance=1),), (Reference(distance=-1),)


def with_references(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, list[Reference]]]:
    """Each picture, in display order, with the pictures that its vectors may point to, the nearest ones first.

    A candidate was decoded earlier and others may refer to it. A picture whose vectors point forward waits until its
    future reference has been shown too: at most MAX_REORDER pictures are held.
    """
    shown: deque[tuple[int, Picture]] = deque()
    waiting: deque[tuple[int, Picture]] = deque()
    for number, picture in enumerate(pictures):
        if picture.is_reference:
            shown.append((number, picture))
        waiting.append((number, picture))
        while waiting and (number - waiting[0][0] >= MAX_REORDER or not _waits(waiting[0], shown)):
            yield _referring(waiting.popleft(), shown)
        _forget(shown, waiting[0][0] if waiting else number + 1)
    while waiting:
        yield _referring(waiting.popleft(), shown)


Shown = deque[tuple[int, Picture]]


def _forget(shown: Shown, oldest: int) -> None:
    """Keep the references after picture `oldest` and the few before it that it can still point to."""
    while len(shown) > MAX_CANDIDATES and shown[MAX_CANDIDATES][0] < oldest:
        shown.popleft()


def _waits(item: tuple[int, Picture], shown: Shown) -> bool:
    number, picture = item
    points_forward = picture.vectors_K is not None and bool((picture.vectors_K["source"] > 0).any())
    return points_forward and not any(n > number and _is_before(other, picture) for n, other in shown)


def _is_before(other: Picture, picture: Picture) -> bool:
    return other.decode_index < picture.decode_index


def _referring(item: tuple[int, Picture], shown: Shown) -> tuple[Picture, list[Reference]]:
    number, picture = item
    if picture.vectors_K is None:
        return picture, []
    others = [(number - n, other) for n, other in shown if n != number and _is_before(other, picture)]
    others.sort(key=lambda candidate: abs(candidate[0]))
    return picture, [Reference(distance=distance, luma_HW=other.luma_HW) for distance, other in others]


def motion_grid(picture: Picture, references: Sequence[Reference]) -> NDArray[np.float32]:
    """The velocity of each cell of a coded picture, (⌈height/8⌉, ⌈width/8⌉, 2) px a frame."""
    shape = (-(-picture.frame.height // CELL_PX), -(-picture.frame.width // CELL_PX))
    if picture.vectors_K is None or (picture.codec, picture.picture_type) in EXPORTED_AS_ZERO:
        return np.full((*shape, 2), np.nan, np.float32)
    to_past_YX2, to_future_YX2 = paint(picture.vectors_K, shape)
    past = [reference for reference in references if reference.distance > 0]
    if picture.picture_type != PICTURE_TYPES.index("B"):
        return _velocity(to_past_YX2, picture, past or PREVIOUS)
    future = [reference for reference in references if reference.distance < 0]
    _drop_spurious_zeros(to_past_YX2, to_future_YX2)
    return _smaller(
        _velocity(to_past_YX2, picture, past or PREVIOUS),
        _velocity(to_future_YX2, picture, future or NEXT),
    )


def paint(vectors_K: NDArray[np.void], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Each block's vector on the 8×8 cells that it covers, in px towards its reference: (2, Y, X, 2), past and future.

    Blocks are 16×16, 16×8, 8×16 or 8×8, and FFmpeg gives their centres; those beyond the picture are padding.
    """
    num_rows, num_columns = shape
    # Cells of both lists in one row, so that each of a block's corners is one assignment.
    cells_N2 = np.full((2 * num_rows * num_columns, 2), np.nan, np.float32)
    scale_K = np.maximum(vectors_K["motion_scale"], 1).astype(np.float32)
    vector_K2 = np.stack([vectors_K["motion_x"] / scale_K, vectors_K["motion_y"] / scale_K], axis=-1)
    is_wide_K, is_tall_K = vectors_K["w"] > CELL_PX, vectors_K["h"] > CELL_PX
    column_K = (vectors_K["dst_x"] - (vectors_K["w"] >> 1)) // CELL_PX
    row_K = (vectors_K["dst_y"] - (vectors_K["h"] >> 1)) // CELL_PX
    list_K = (vectors_K["source"] > 0).astype(np.int64)
    first_K = (list_K * num_rows + row_K) * num_columns + column_K
    for down in range(2):
        for right in range(2):
            is_covered_K = (row_K + down < num_rows) & (column_K + right < num_columns) & (row_K >= 0) & (column_K >= 0)
            is_covered_K &= (is_tall_K | (down == 0)) & (is_wide_K | (right == 0))
            cells_N2[first_K[is_covered_K] + down * num_columns + right] = vector_K2[is_covered_K]
    return cells_N2.reshape(2, num_rows, num_columns, 2)


def _velocity(
    towards_YX2: NDArray[np.float32], picture: Picture, references: Sequence[Reference]
) -> NDArray[np.float32]:
    """Displacement towards the reference → velocity: divided by the distance, which the stream does not tell.

    The nearest reference is the likely one. Where an older one, displaced by the same vector, predicts the cell's luma
    better, the block used that: an encoder chooses it for a reason, and the pixels show the reason.
    """
    velocity_YX2 = towards_YX2 / np.float32(-references[0].distance)
    y_N, x_N = np.nonzero(_square(towards_YX2) > MIN_DISPUTED_PX**2)
    if len(references) == 1 or picture.codec != "h264" or not len(y_N):
        # Before H.264 a picture had one reference on each side.
        return velocity_YX2
    towards_N2 = towards_YX2[y_N, x_N]
    best_N = _best_predictor(picture, references[:MAX_CANDIDATES], y_N, x_N, towards_N2)
    distance_R = np.array([reference.distance for reference in references], np.float32)
    velocity_YX2[y_N, x_N] = towards_N2 / -distance_R[best_N, None]
    return velocity_YX2


def _best_predictor(
    picture: Picture,
    references: Sequence[Reference],
    y_N: NDArray[np.int64],
    x_N: NDArray[np.int64],
    towards_N2: NDArray[np.float32],
) -> NDArray[np.int64]:
    """(N,) which reference each of N cells fits best. Only cells that fit badly so far are tried on the next one."""
    row_NS = (y_N[:, None] * CELL_PX + SAMPLE_Y).astype(np.float32)
    column_NS = (x_N[:, None] * CELL_PX + SAMPLE_X).astype(np.float32)
    current_NS = _sample(picture.luma_HW, row_NS, column_NS)
    row_NS += towards_N2[:, 1:]
    column_NS += towards_N2[:, :1]
    best_N = np.zeros(len(y_N), np.int64)
    error_N = np.full(len(y_N), np.inf)
    open_N = np.arange(len(y_N))
    for r, reference in enumerate(references):
        predicted_NS = _sample(reference.luma_HW, row_NS[open_N], column_NS[open_N])
        difference_NS = cv2.absdiff(predicted_NS, current_NS[open_N])
        error = cv2.reduce(difference_NS, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[:, 0] / picture.grey_level
        is_better = error + MIN_GAIN < error_N[open_N]
        best_N[open_N[is_better]] = r
        error_N[open_N[is_better]] = error[is_better]
        open_N = open_N[error_N[open_N] > GOOD_ERROR]
        if not len(open_N):
            break
    return best_N


def _sample(luma_HW: Luma | None, row_NS: NDArray[np.float32], column_NS: NDArray[np.float32]) -> Luma:
    """Bilinear samples, (N, S). OpenCV takes maps of at most 32767 rows and columns, hence the stripes of 128 cells."""
    assert luma_HW is not None
    num_cells, num_samples = row_NS.shape
    stripes = (-(-num_cells // 128), 128 * num_samples)
    column_map, row_map = np.resize(column_NS, stripes), np.resize(row_NS, stripes)
    sampled: Luma = cv2.remap(luma_HW, column_map, row_map, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return sampled.reshape(-1)[: num_cells * num_samples].reshape(num_cells, num_samples)


def _square(vector_YX2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared length. By hand: numpy's sum over an axis of two takes ten times as long."""
    dx_YX, dy_YX = vector_YX2[..., 0], vector_YX2[..., 1]
    return dx_YX * dx_YX + dy_YX * dy_YX


def _drop_spurious_zeros(to_past_YX2: NDArray[np.float32], to_future_YX2: NDArray[np.float32]) -> None:
    """An exact zero beside a non-zero vector is none: FFmpeg exports (0, 0) for a list that a block does not use."""
    is_past_zero_YX, is_future_zero_YX = _square(to_past_YX2) == 0, _square(to_future_YX2) == 0
    is_both_YX = ~np.isnan(to_past_YX2[..., 0]) & ~np.isnan(to_future_YX2[..., 0])
    to_past_YX2[is_both_YX & is_past_zero_YX & ~is_future_zero_YX] = np.nan
    to_future_YX2[is_both_YX & is_future_zero_YX & ~is_past_zero_YX] = np.nan


def _smaller(past_YX2: NDArray[np.float32], future_YX2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of a cell's two velocities the smaller: a block that used an unknown older reference comes out too large."""
    takes_future_YX = np.isnan(past_YX2[..., 0]) | (_square(future_YX2) < _square(past_YX2))
    return np.where(takes_future_YX[..., None], future_YX2, past_YX2)


def stored_motion(picture: Picture, motion_YX2: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The grid of the picture as shown and stored, (height/8, width/8, 2): resized, then turned as its frame is."""
    frame, orientation = picture.frame, picture.orientation
    if orientation.is_transposed:
        height, width = width, height
    if (frame.height, frame.width) != (height, width):
        box = Box(x=0, y=0, width=frame.width, height=frame.height)
        motion_YX2 = resample_motion(motion_YX2, box, height, width)
    return orientation.motion(motion_YX2)

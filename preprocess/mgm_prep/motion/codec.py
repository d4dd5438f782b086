"""Codec motion vectors → one grid of velocities a picture: how far each 8×8 cell moved since the frame before.

What FFmpeg exports is a displacement to a reference picture that may lie several frames away, on either side, and it
does not say how far. docs/architecture.md and docs/motion-and-masks.md explain the rules.

Axes: L lists, past and future references · Y,X cells of 8×8 coded px · 2 = (dx, dy) px per frame interval, right and
down positive, NaN = none.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mgm_prep.decoding.pyav import Picture
from mgm_prep.motion.kernels import Luma, fit, paint, velocity
from mgm_shared.geometry import CELL_PX, Box
from mgm_shared.resample import resample_motion
from mgm_shared.schema import PICTURE_TYPES

# H.264 holds at most 16 pictures for reordering, so a B picture's future reference is shown within 16 frames.
MAX_REORDER = 16
# FFmpeg's decoders of the H.263 family keep no vectors of B pictures and export (0, 0) for all of them. Those of
# MPEG-1, MPEG-2 and H.264 export what the stream has.
ZERO_B_CODECS = frozenset("mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3 h263 h263i h263p flv1 wmv1 wmv2 rv10 rv20".split())


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A picture that vectors may point to: frame intervals back to it (negative: ahead), and its luma."""

    distance: int
    luma_HW: Luma


def with_references(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, list[Reference]]]:
    """Each picture, in display order, with the pictures that its vectors may point to, the nearest ones first.

    A candidate was decoded earlier and others may refer to it. A picture whose vectors point forward waits until all
    that were decoded before it have been shown: at most MAX_REORDER pictures are held.
    """
    shown: Numbered = deque()
    waiting: Numbered = deque()
    decoded: deque[int] = deque(maxlen=2 * MAX_REORDER)
    for number, picture in enumerate(pictures):
        decoded.append(picture.decode_index)
        if picture.is_reference:
            shown.append((number, picture))
        waiting.append((number, picture))
        while waiting and (number - waiting[0][0] >= MAX_REORDER or not _waits(waiting[0][1], decoded)):
            yield _referring(*waiting.popleft(), shown)
        # A later sequence may allow fewer references than the pictures of an earlier one that still wait.
        num_references = max((item.num_references for _, item in waiting), default=picture.num_references)
        _forget(shown, waiting[0][0] if waiting else number + 1, num_references)
    while waiting:
        yield _referring(*waiting.popleft(), shown)


Numbered = deque[tuple[int, Picture]]
"""Pictures with their place in display order, in that order."""


def _waits(picture: Picture, decoded: Iterable[int]) -> bool:
    """Whether a picture that was decoded shortly before this one is still to be shown; `decoded`: those that were."""
    earlier = range(max(0, picture.decode_index - MAX_REORDER), picture.decode_index)
    return picture.points_forward and not set(earlier).issubset(decoded)


def _forget(shown: Numbered, oldest: int, num_references: int) -> None:
    """Keep the references from picture `oldest` on, and of those before it as many as it can still point to."""
    while len(shown) > num_references and shown[num_references][0] < oldest:
        shown.popleft()


def _referring(number: int, picture: Picture, shown: Numbered) -> tuple[Picture, list[Reference]]:
    if picture.vectors_K is None:
        return picture, []
    earlier = [
        (n, other)
        for n, other in shown
        if other.decode_index < picture.decode_index and _format(other) == _format(picture)
    ]
    earlier.sort(key=lambda item: abs(number - item[0]))
    return picture, [Reference(distance=number - n, luma_HW=other.luma_HW) for n, other in earlier]


def _format(picture: Picture) -> tuple[object, ...]:
    """What does not change within a sequence; no picture refers to one of another sequence."""
    frame = picture.frame
    shape = frame.format.name, frame.height, frame.width, picture.top_px, picture.left_px
    return *shape, picture.num_references


def is_exported_as_zero(picture: Picture) -> bool:
    """Whether FFmpeg exports (0, 0) for each block of the picture, whatever the stream says."""
    return PICTURE_TYPES[picture.picture_type] == "B" and picture.codec in ZERO_B_CODECS


def motion_grid(picture: Picture, references: Sequence[Reference]) -> NDArray[np.float32]:
    """The velocity of each cell of a coded picture as far as its shown part reaches, (Y, X, 2) px a frame."""
    bottom_px, right_px = picture.top_px + picture.frame.height, picture.left_px + picture.frame.width
    shape = (-(-bottom_px // CELL_PX), -(-right_px // CELL_PX))
    if picture.vectors_K is None or is_exported_as_zero(picture):
        return np.full((*shape, 2), np.nan, np.float32)
    towards_LYX2 = paint(picture.vectors_K, *shape)
    distance_LYX = np.empty(towards_LYX2.shape[:3], np.float32)
    for side, sign in enumerate((1, -1)):
        candidates = [reference for reference in references if reference.distance * sign > 0]
        # A reference that is not among the pictures shown is most likely the frame beside.
        distance_LYX[side] = candidates[0].distance if candidates else sign
        if len(candidates) > 1 and picture.num_references > 1:
            _find_references(picture, candidates[: picture.num_references], towards_LYX2[side], distance_LYX[side])
    return velocity(towards_LYX2, distance_LYX)


def _find_references(
    picture: Picture,
    candidates: Sequence[Reference],
    towards_YX2: NDArray[np.float32],
    distance_YX: NDArray[np.float32],
) -> None:
    """Correct the distance of the cells that used another reference than the nearest; the stream does not tell.

    Where another one, displaced by the same vector, predicts the cell's luma better, the block used that: an encoder
    chooses it for a reason, and the pixels show the reason.
    """
    error_YX = np.full(distance_YX.shape, np.inf, np.float32)
    for reference in candidates:
        pictures = (picture.luma_HW, reference.luma_HW, picture.grey_level, picture.top_px, picture.left_px)
        if not fit(*pictures, reference.distance, towards_YX2, distance_YX, error_YX):
            return


def stored_motion(picture: Picture, motion_YX2: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The grid of the picture as shown and stored, (height/8, width/8, 2): cropped, resized, turned as its frame is."""
    frame, orientation = picture.frame, picture.orientation
    if orientation.is_transposed:
        height, width = width, height
    if (frame.height, frame.width, picture.top_px, picture.left_px) != (height, width, 0, 0):
        box = Box(x=picture.left_px, y=picture.top_px, width=frame.width, height=frame.height)
        motion_YX2 = resample_motion(motion_YX2, box, height, width)
    return orientation.motion(motion_YX2)

"""Motion of the pictures for which FFmpeg exports no vectors, in a codec for which it exports those of the others.

These are the B pictures of MPEG-4 part 2 (Xvid, DivX), up to two thirds of a video. Their motion is taken from the
stored frames, each compared with the one before, so it is in stored pixels a frame already.
"""

from typing import Protocol

import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from mgm_prep.decoding.colour import luma_of
from mgm_prep.decoding.pyav import Picture
from mgm_prep.motion.block_matching import Matcher
from mgm_prep.motion.codec import is_exported_as_zero
from mgm_prep.motion.x264 import Reencoder
from mgm_shared.codec import Planes

Frame = Planes | NDArray[np.uint8]


class MotionSource(Protocol):
    """Estimates the motion between the frames that it is given, one by one."""

    def __init__(self, height: int, width: int) -> None: ...

    def motion(self, luma_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The velocity of each cell since the call before, (H/8, W/8, 2) px a frame; all NaN in the first call."""


SOURCES: dict[str, type[MotionSource]] = {"transcode": Reencoder, "estimate": Matcher}


class Filler:
    """Fills the pictures of one video. Give it all of them in display order.

    Only the frames to be filled and the ones before them are encoded or matched.
    """

    def __init__(self, source: str, height: int, width: int) -> None:
        self.num_filled = 0
        self._make = SOURCES[source]
        self._size = height, width
        self._source: MotionSource | None = None
        self._frame_before: Frame | None = None
        """None when `_source` has it already."""

    def motion(self, picture: Picture, frame: Frame) -> NDArray[np.float32] | None:
        """The motion of a picture since the one before; None when FFmpeg exports its vectors, or it has none to export.

        `frame` is the picture as stored.
        """
        if not self._is_wanted(picture):
            self._frame_before = frame
            return None
        if self._source is None:
            self._source = self._make(*self._size)
        if self._frame_before is not None:
            self._source.motion(luma_of(self._frame_before))
            self._frame_before = None
        self.num_filled += 1
        return self._source.motion(luma_of(frame))

    def _is_wanted(self, picture: Picture) -> bool:
        # After B pictures, the decoder returns the last P picture without its vectors.
        is_bare = picture.picture_type == PictureType.P and picture.vectors_K is None
        return is_exported_as_zero(picture) or (is_bare and self.num_filled > 0)

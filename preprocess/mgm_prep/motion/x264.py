"""Motion vectors for codecs that export none (HEVC, VP9, AV1, …): encode the stored frames as H.264, read those.

Each P picture refers to the frame before it and nothing else, so its vectors are velocities already, in stored pixels.
"""

from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags2
from numpy.typing import NDArray

from mgm_prep.decoding.pyav import side_data
from mgm_prep.motion.kernels import paint
from mgm_shared.geometry import CELL_PX

# Codecs for which FFmpeg exports vectors (its h264 and mpegvideo decoders); the others decode without an error and
# without a vector.
VECTOR_CODECS = frozenset(
    "h264 mpeg1video mpeg2video mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3 msmpeg4 h263 h263i h263p flv1 flv wmv1 wmv2 "
    "rv10 rv20".split()
)

# One picture in, one out: no look-ahead, no B pictures, one reference, intra only at the start.
ENCODER_OPTIONS = {
    "preset": "veryfast",
    "tune": "zerolatency",
    "crf": "18",
    "x264-params": "ref=1:bframes=0:keyint=infinite:scenecut=0:threads=1:subme=6",
}


class Reencoder:
    """Encodes frames one by one and hands back each one's motion."""

    def __init__(self, height: int, width: int) -> None:
        self._shape = (height // CELL_PX, width // CELL_PX)
        self._num_frames = 0
        self._encoder = av.CodecContext.create("libx264", "w")
        self._encoder.width, self._encoder.height = width, height
        self._encoder.pix_fmt, self._encoder.time_base = "gray", Fraction(1, 25)
        self._encoder.thread_count = 1
        self._encoder.options = ENCODER_OPTIONS
        self._decoder = av.CodecContext.create("h264", "r")
        self._decoder.thread_type, self._decoder.thread_count = "NONE", 1
        self._decoder.flags2 |= Flags2.export_mvs

    def motion(self, luma_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The velocity of each cell since the luma that was given before, (H/8, W/8, 2); all NaN for the first."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(luma_HW), format="gray")
        frame.pts = self._num_frames
        self._num_frames += 1
        (decoded,) = [out for packet in self._encoder.encode(frame) for out in self._decoder.decode(packet)]
        vectors = side_data(decoded, "MOTION_VECTORS")
        if vectors is None:
            return np.full((*self._shape, 2), np.nan, np.float32)
        to_previous_YX2, _ = paint(vectors.to_ndarray(), *self._shape)
        motion_YX2: NDArray[np.float32] = -to_previous_YX2
        return motion_YX2

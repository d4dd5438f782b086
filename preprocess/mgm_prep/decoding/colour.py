"""A decoded picture → a frame of the stored size: JFIF's planes for the lossy codecs, RGB for the lossless one.

Planes are resized before any conversion, which touches a fraction of the pixels of the other order; and a frame that is
stored as JPEG never becomes RGB: its chroma keeps half the resolution all the way.

Axes: H,W pixels · C = RGB · P = Y, U, V planes.
"""

from functools import lru_cache

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from mgm_shared.codec import Planes

PLANAR_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv440p", "yuvj440p"})

# Luma weights (Kr, Kb) of ITU-R BT.709, BT.601, SMPTE 240M, BT.2020. Where a stream names none, FFmpeg takes BT.601.
LUMA_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
BT601 = (0.299, 0.114)

# The mean over the area, and the same bits on every processor.
SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


class PlaneScaler:
    """Scales the pictures of one video; keeps swscale's tables between them."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def planes(self, frame: av.VideoFrame, height: int, width: int) -> Planes:
        """4:2:0, BT.601, full range, as JPEG has it; `height` and `width` are even. No rotation is applied."""
        # swscale resizes and brings any format and range to ours; only the matrix it would ignore.
        scaled = self._reformatter.reformat(
            frame,
            width,
            height,
            "yuvj420p",
            interpolation=SCALING,
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.JPEG if _is_full_range(frame) else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        planes = Planes(*map(_plane, scaled.planes))
        weights = BT601 if _is_rgb(frame) else LUMA_WEIGHTS.get(int(frame.colorspace), BT601)
        return planes if weights == BT601 else _to_bt601(planes, weights)


def _to_bt601(planes: Planes, weights: tuple[float, float]) -> Planes:
    """The same colours by BT.601's matrix: luma changes by a part of the chroma, so that stays at half resolution."""
    to_bt601 = np.linalg.inv(_from_yuv(*BT601)) @ _from_yuv(*weights)
    # Rows: what luma gains, Cb, Cr; columns: Cb, Cr, 1. Chroma and the gain are centred on 128.
    matrix = np.column_stack([to_bt601[:, 1:], 128 - 128 * to_bt601[:, 1:].sum(1)]).astype(np.float32)
    gain_HW, cb_HW, cr_HW = cv2.split(cv2.transform(cv2.merge([planes.cb_HW, planes.cr_HW]), matrix))
    height, width = planes.y_HW.shape
    gain_HW = cv2.resize(gain_HW, (width, height), interpolation=cv2.INTER_LINEAR)
    y_HW = cv2.addWeighted(planes.y_HW, 1, gain_HW, 1, -128)
    return Planes(*(np.asarray(plane, np.uint8) for plane in (y_HW, cb_HW, cr_HW)))


def luma_of(frame: Planes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) of a stored frame."""
    return frame.y_HW if isinstance(frame, Planes) else np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def _is_rgb(frame: av.VideoFrame) -> bool:
    return bool(frame.format.is_rgb or frame.format.has_palette)


def to_rgb(frame: av.VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB, full range. No rotation is applied."""
    if _is_rgb(frame):
        return _resize(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), height, width)
    matrix = _rgb_matrix(int(frame.colorspace), _is_full_range(frame))
    if frame.format.name not in PLANAR_FORMATS:
        # 10-bit, semi-planar, grey, alpha: swscale brings them to 8-bit planes, the matrix and range stay ours.
        frame = _to_planar(frame)
    planes_P = [_resize(_plane(plane), height, width) for plane in frame.planes]
    return np.asarray(cv2.transform(cv2.merge(planes_P), matrix), np.uint8)


def _plane(plane: av.video.plane.VideoPlane) -> NDArray[np.uint8]:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    if image.shape[0] > height or image.shape[1] > width:
        method = cv2.INTER_AREA
    elif height % image.shape[0] == 0 and width % image.shape[1] == 0:
        # Chroma at native size: swscale repeats the sample, and 4:2:0 JPEG averages the same pixels back.
        method = cv2.INTER_NEAREST
    else:
        method = cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def _is_full_range(frame: av.VideoFrame) -> bool:
    return frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")


def _to_planar(frame: av.VideoFrame) -> av.VideoFrame:
    """The same colours as 8-bit 4:4:4 planes: matrix and range are kept."""
    value_range = ColorRange.JPEG if _is_full_range(frame) else ColorRange.MPEG
    return frame.reformat(
        format="yuv444p",
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,
        src_color_range=value_range,
        dst_color_range=value_range,
    )


@lru_cache(maxsize=32)
def _rgb_matrix(colorspace: int, is_full_range: bool) -> NDArray[np.float32]:
    """(3, 4): RGB = M · (Y, U, V, 1), all in 0…255 (ITU-T H.273, equations 47–49)."""
    luma, chroma, black = (1.0, 1.0, 0) if is_full_range else (255 / 219, 255 / 224, 16)
    from_yuv = _from_yuv(*LUMA_WEIGHTS.get(colorspace, BT601)) * (luma, chroma, chroma)
    offset = -from_yuv @ (black, 128, 128)
    return np.column_stack([from_yuv, offset]).astype(np.float32)


def _from_yuv(red: float, blue: float) -> NDArray[np.float64]:
    """(3, 3): full-range R, G, B from Y, U − 128, V − 128, for luma weights of red and blue."""
    green = 1 - red - blue
    from_u = [0, -2 * (1 - blue) * blue / green, 2 * (1 - blue)]
    from_v = [2 * (1 - red), -2 * (1 - red) * red / green, 0]
    return np.column_stack([np.ones(3), from_u, from_v])

"""A decoded picture → RGB at the stored size: planes resized first, then converted by the frame's matrix and range.

Resizing the planes before the conversion touches a fraction of the pixels of the other order.

Axes: H,W pixels · C = RGB · P = Y, U, V planes.
"""

from functools import lru_cache

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

PLANAR_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv440p", "yuvj440p"})

# Luma weights (Kr, Kb) of ITU-R BT.709, BT.601, SMPTE 240M, BT.2020. Where a stream names none, FFmpeg takes BT.601.
LUMA_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
BT601 = (0.299, 0.114)


def to_rgb(frame: av.VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB, full range. No rotation is applied."""
    is_rgb = frame.format.is_rgb
    if is_rgb or frame.format.has_palette:
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
    red, blue = LUMA_WEIGHTS.get(colorspace, BT601)
    green = 1 - red - blue
    luma, chroma, black = (1.0, 1.0, 0) if is_full_range else (255 / 219, 255 / 224, 16)
    from_u = np.array([0, -2 * (1 - blue) * blue / green, 2 * (1 - blue)]) * chroma
    from_v = np.array([2 * (1 - red), -2 * (1 - red) * red / green, 0]) * chroma
    from_y = np.full(3, luma)
    offset = -black * from_y - 128 * (from_u + from_v)
    return np.stack([from_y, from_u, from_v, offset], axis=1).astype(np.float32)

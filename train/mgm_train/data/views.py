"""Which pixels of a video a clip shows, and how they get there: each frame decoded, cut, resized, mirrored in one go.

A view is drawn before anything is decoded, since it needs no more than the stored size. So planes are resized at their
own resolution, and only what is shown of them becomes RGB; and several views of the same frames (repeats, the views of
a test) share one decoding.

Axes: T frames · H,W pixels · C = RGB · Y,X cells of 8×8 px · 2 = (dx, dy).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsInt

import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_shared.codec import Planes
from mgm_shared.geometry import Box
from mgm_shared.kernel import kernel
from mgm_shared.resample import resample_motion
from mgm_shared.store import Video


@dataclass(frozen=True, kw_only=True)
class View:
    """The pixels at `box`, resized to `size_px`, the side of a square or (height, width), and mirrored or not.

    The box and the size are in even whole pixels, as samples of chroma are.
    """

    box: Box
    size_px: int | tuple[int, int]
    is_mirrored: bool = False

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width of what is shown."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px


def even(pixels: SupportsInt) -> int:
    """The even number at or below."""
    return int(pixels) // 2 * 2


def read_views(video: Video, indices_T: NDArray[np.int64], views: Sequence[View]) -> list[NDArray[np.uint8]]:
    """The frames at ascending `indices_T`, as each view shows them: uint8 (3, T, H, W). Each frame is decoded once."""
    shown = [np.empty((3, len(indices_T), *view.shape_px), np.uint8) for view in views]
    for t, picture in enumerate(video.pictures(indices_T)):
        for view, out_CTHW in zip(views, shown, strict=True):
            show(picture, view, out_CTHW[:, t])
    return shown


def read_clip_views(
    video: Video, indices_VT: NDArray[np.int64], views: Sequence[View], out_VCTHW: NDArray[np.uint8]
) -> None:
    """Write several clips of a video, each as several views of one size show it: uint8 (clips · views, 3, T, H, W).

    A frame is decoded once for all clips and views, and written where it belongs.
    """
    wanted, place = np.unique(indices_VT, return_inverse=True)
    place_VT = place.reshape(indices_VT.shape)
    shown_VSCTHW = out_VCTHW.reshape(len(indices_VT), len(views), *out_VCTHW.shape[1:])
    for k, picture in enumerate(video.pictures(wanted)):
        (v, t), *others = np.argwhere(place_VT == k).tolist()
        for s, view in enumerate(views):
            show(picture, view, shown_VSCTHW[v, s, :, t])
        for other_v, other_t in others:
            shown_VSCTHW[other_v, :, :, other_t] = shown_VSCTHW[v, :, :, t]


def show(picture: Planes | NDArray[np.uint8], view: View, out_CHW: NDArray[np.uint8]) -> None:
    """Write what a view shows of a frame, given as planes or as RGB (H, W, 3)."""
    if isinstance(picture, Planes):
        y_HW = _shown(picture.y_HW, view, 1)
        # Chroma stays at half resolution, which is what the source has; the kernel repeats it.
        cb_HW, cr_HW = (_shown(plane, view, 2) for plane in (picture.cb_HW, picture.cr_HW))
        _paint(y_HW, cb_HW, cr_HW, *out_CHW)
    else:
        # Five times as fast as numpy's or torch's transpose.
        cv2.split(_shown(picture, view, 1), list(out_CHW))


def view_motion(motion_TYX2: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """Motion of whole frames as a view shows it: cut out, in its pixels, mirrored with them."""
    return resample_motion(motion_TYX2, view.box, *view.shape_px, is_mirrored=view.is_mirrored)


def view_share(share_TYX: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """A share of each cell of whole frames as a view shows it, (T, Y, X); 0 where it is missing."""
    # As the vertical part of a motion, which no mirror turns round; then without the scale of motion.
    field_TYX2 = np.stack([share_TYX, share_TYX], axis=-1)
    scale = np.float32(view.box.height / view.shape_px[0])
    return np.asarray(np.nan_to_num(view_motion(field_TYX2, view)[..., 1] * scale), np.float32)


def _shown(image: NDArray[np.uint8], view: View, subsampling: int) -> NDArray[np.uint8]:
    """What a view shows of an image of the frame at full resolution or a part of it, contiguous."""
    left, top, width, height = (int(side) // subsampling for side in sides(view.box))
    shape_px = (view.shape_px[0] // subsampling, view.shape_px[1] // subsampling)
    resized = _resized(image[top : top + height, left : left + width], shape_px)
    # Here, where it is small and near: mirroring the whole clip costs ten times as much. It takes 0.06 to 0.2 ms of a
    # clip on average, 1 to 2 %; on the GPU each batch would be copied once more, and say which clips to mirror.
    return np.asarray(cv2.flip(resized, 1) if view.is_mirrored else resized, np.uint8)


def sides(box: Box) -> tuple[float, float, float, float]:
    """Left, top, width and height."""
    return box.x, box.y, box.width, box.height


def _resized(image: NDArray[np.uint8], shape_px: tuple[int, int]) -> NDArray[np.uint8]:
    """The image at another height and width: bilinear, by area where it shrinks to less than half."""
    if image.shape[:2] == shape_px:
        return np.ascontiguousarray(image)
    method = cv2.INTER_AREA if is_shrunk_far(image.shape[:2], shape_px) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, shape_px[::-1], interpolation=method), np.uint8)


def is_shrunk_far(shape: Sequence[int], shape_px: tuple[int, int]) -> bool:
    """Whether a picture is resized by area, because a side shrinks to less than half and none grows."""
    # Between half and whole size OpenCV's area mean takes five times as long as bilinear, and differs by a blur.
    shrinking = [side / side_px for side, side_px in zip(shape, shape_px, strict=True)]
    return min(shrinking) >= 1 and max(shrinking) > 2


@kernel
def _add(y_W: NDArray[np.uint8], add_W: NDArray[np.int16], out_W: NDArray[np.uint8]) -> None:
    """The sum, kept in 0 … 255."""
    for x in range(len(out_W)):
        out_W[x] = min(max(np.int16(np.int16(y_W[x]) + add_W[x]), np.int16(0)), np.int16(255))


@kernel
def _paint(
    y_HW: NDArray[np.uint8],
    cb_HW: NDArray[np.uint8],
    cr_HW: NDArray[np.uint8],
    red_HW: NDArray[np.uint8],
    green_HW: NDArray[np.uint8],
    blue_HW: NDArray[np.uint8],
) -> None:
    """4:2:0 planes → RGB by JFIF's equations (ITU-T T.871), each chroma sample for its four pixels."""
    half_height, half_width = cb_HW.shape
    # What chroma adds to luma, for the two rows that share it; 16 bits, so that as many pixels as can be go at once.
    add_red_W = np.empty(2 * half_width, np.int16)
    add_green_W, add_blue_W = np.empty_like(add_red_W), np.empty_like(add_red_W)
    for row in range(half_height):
        for x in range(half_width):
            cb, cr = np.int32(cb_HW[row, x]) - 128, np.int32(cr_HW[row, x]) - 128
            # 1.402, 0.344136, 0.714136 and 1.772 in units of 1/65536.
            add_red_W[2 * x] = add_red_W[2 * x + 1] = (91881 * cr + 32768) >> 16
            add_green_W[2 * x] = add_green_W[2 * x + 1] = (-22554 * cb - 46802 * cr + 32768) >> 16
            add_blue_W[2 * x] = add_blue_W[2 * x + 1] = (116130 * cb + 32768) >> 16
        for y in (2 * row, 2 * row + 1):
            _add(y_HW[y], add_red_W, red_HW[y])
            _add(y_HW[y], add_green_W, green_HW[y])
            _add(y_HW[y], add_blue_W, blue_HW[y])

"""Clips that play in a page without a script: the frames side by side in one picture, moved by CSS.

Axes: T frames · H,W pixels · C = RGB · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame.
"""

from base64 import b64encode
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX, Box
from mgm_shared.overlays import MIN_ARROW_SHARE, pooled

WEBP_QUALITY = 62
# A WebP picture is at most 16,383 px wide.
MAX_WEBP_PX = 16_383
# Arrows along the longer side of a frame.
MAX_ARROWS = 15


def data_url(pictures: Sequence[NDArray[np.uint8]]) -> str:
    """Pictures (H, W, 3) of one size, side by side in a WebP, as a `data:` URL. ValueError if they are too wide."""
    film_HWC = np.concatenate(list(pictures), axis=1)
    if film_HWC.shape[1] > MAX_WEBP_PX:
        raise ValueError(f"a film of {film_HWC.shape[1]} px is wider than a WebP picture can be, {MAX_WEBP_PX} px")
    is_done, encoded = cv2.imencode(".webp", film_HWC[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    assert is_done
    return "data:image/webp;base64," + b64encode(encoded.tobytes()).decode()


def shrunk(frames_THWC: NDArray[np.uint8], width_px: int) -> NDArray[np.uint8]:
    """The frames at a smaller width; smaller ones stay as they are."""
    height, width = frames_THWC.shape[1:3]
    if width <= width_px:
        return frames_THWC
    size = (width_px, max(1, round(height * width_px / width)))
    return np.stack([cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA) for frame_HWC in frames_THWC])


def arrows_path(motion_TYX2: NDArray[np.float32], full_px: float, scale: float, width_px: int) -> str:
    """Darts of the mean motion of squares of cells, as an SVG path over the frames of a film; the tip leads.

    Args:
        motion_TYX2: Motion of the frames, NaN for missing.
        full_px: The speed, px a frame, whose dart is as long as the darts are apart, one and a half times.
        scale: Pixels of the film for a stored pixel.
        width_px: Width of a frame in the film.
    """
    step = -(-max(motion_TYX2.shape[1:3]) // MAX_ARROWS)
    side_px = step * CELL_PX * scale
    parts: list[str] = []
    for t, motion_YX2 in enumerate(motion_TYX2):
        y, x, mean_K2 = pooled(motion_YX2, step)
        length_K2 = mean_K2 * (1.5 * side_px / full_px)
        is_moving_K = np.hypot(*length_K2.T) > MIN_ARROW_SHARE * side_px
        for row, column, (dx, dy) in zip(y[is_moving_K], x[is_moving_K], length_K2[is_moving_K], strict=True):
            parts.append(_dart(t * width_px + (column + 0.5) * side_px, (row + 0.5) * side_px, dx, dy, 0.16 * side_px))
    return "".join(parts)


def _dart(x: float, y: float, dx: float, dy: float, half_width: float) -> str:
    """A triangle from its base at (x, y) to its tip at (x + dx, y + dy)."""
    length = float(np.hypot(dx, dy))
    across_x, across_y = -dy / length * half_width, dx / length * half_width
    return (
        f"M{x + across_x:.1f} {y + across_y:.1f}l{dx - across_x:.1f} {dy - across_y:.1f} "
        f"{-dx - across_x:.1f} {-dy - across_y:.1f}z"
    )


def missing_path(motion_TYX2: NDArray[np.float32], scale: float, width_px: int) -> str:
    """The cells without a vector, as an SVG path over the frames of a film: one rectangle for each run of a row."""
    side_px = CELL_PX * scale
    parts: list[str] = []
    for t, motion_YX2 in enumerate(motion_TYX2):
        is_missing_YX = np.isnan(motion_YX2).any(-1)
        if is_missing_YX.all():
            num_rows, num_columns = is_missing_YX.shape
            parts.append(_rectangle(t * width_px, 0, num_columns * side_px, num_rows * side_px))
            continue
        change_YX = np.diff(np.pad(is_missing_YX, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        starts, stops = np.argwhere(change_YX == 1), np.argwhere(change_YX == -1)
        for (row, first), (_, stop) in zip(starts.tolist(), stops.tolist(), strict=True):
            parts.append(_rectangle(t * width_px + first * side_px, row * side_px, (stop - first) * side_px, side_px))
    return "".join(parts)


def boxes_path(boxes_T: Sequence[Box], scale: float, width_px: int) -> str:
    """A rectangle for each frame of a film, as an SVG path; boxes are in stored pixels."""
    return "".join(
        _rectangle(t * width_px + box.x * scale, box.y * scale, box.width * scale, box.height * scale)
        for t, box in enumerate(boxes_T)
    )


def _rectangle(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"

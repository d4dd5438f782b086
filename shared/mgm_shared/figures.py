"""Pictures of what is stored and what is hidden: frames with motion arrows, masks over frames, film strips.

matplotlib comes with the extra `notebook` and is imported on the first drawing only.

Axes: T frames · H,W pixels · C = RGB · Y,X cells of 8×8 px · t,h,w tubelets of 2×16×16.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.geometry import CELL_PX, PATCH_PX, TUBELET_FRAMES
from mgm_shared.schema import PICTURE_TYPES
from mgm_shared.store import Video

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 2.6
# Cells slower than this are drawn without an arrow, px a frame.
MIN_ARROW_PX = 0.25
HIDDEN_SHADE = 0.2


def film_strip(rows: Sequence[tuple[str, NDArray[np.uint8]]], titles: Sequence[str] | None = None) -> "Figure":
    """One row a (name, frames_THWC) pair, one column a frame."""
    num_columns = max(len(frames_THWC) for _, frames_THWC in rows)
    figure, axes = panels(len(rows), num_columns, rows[0][1].shape[1:3])
    for row, (name, frames_THWC) in enumerate(rows):
        for column, frame_HWC in enumerate(frames_THWC):
            axes[row][column].imshow(frame_HWC)
        axes[row][0].set_ylabel(name)
    for column, title in enumerate(titles or ()):
        axes[0][column].set_title(title, fontsize=8)
    return figure


def draw_motion(axis: "Axes", frame_HWC: NDArray[np.uint8], motion_YX2: NDArray[np.float32]) -> None:
    """A frame, an arrow on each moving cell (true length × 2), and a red tint on the cells without a vector."""
    num_rows, num_columns = motion_YX2.shape[:2]
    axis.imshow(frame_HWC)
    is_missing_YX = np.isnan(motion_YX2).any(-1)
    tint = np.zeros((num_rows, num_columns, 4))
    tint[is_missing_YX] = (1, 0, 0, 0.25)
    extent = (-0.5, num_columns * CELL_PX - 0.5, num_rows * CELL_PX - 0.5, -0.5)
    axis.imshow(tint, extent=extent, interpolation="nearest")
    is_moving_YX = np.hypot(motion_YX2[..., 0], motion_YX2[..., 1]) > MIN_ARROW_PX
    y, x = np.nonzero(is_moving_YX & ~is_missing_YX)
    dx, dy = motion_YX2[y, x].T
    centre = CELL_PX / 2 - 0.5
    axis.quiver(
        x * CELL_PX + centre, y * CELL_PX + centre, dx, dy,
        color="yellow", angles="xy", scale_units="xy", scale=0.5, width=0.004,
    )  # fmt: skip


def motion_strip(video: Video, num_frames: int = 8) -> "Figure":
    """`num_frames` evenly spaced frames of a video with their motion."""
    indices_T = np.unique(np.linspace(0, video.num_frames - 1, num_frames).round().astype(int))
    frames_THWC, motion_TYX2 = video.frames[indices_T], video.motion[indices_T]
    time_s, picture_type = video.time_s, video.picture_type
    num_columns = min(4, len(indices_T))
    figure, axes = panels(-(-len(indices_T) // num_columns), num_columns, frames_THWC.shape[1:3])
    for panel, index in enumerate(indices_T):
        axis = axes[panel // num_columns][panel % num_columns]
        draw_motion(axis, frames_THWC[panel], motion_TYX2[panel])
        axis.set_title(f"{index}  {PICTURE_TYPES[picture_type[index]]}  {time_s[index]:.2f} s", fontsize=8)
    figure.suptitle(f"{video.video_id}: px a frame × 2, red = no vector", fontsize=9)
    return figure


def shade_hidden(frames_THWC: NDArray[np.uint8], mask_thw: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The clip with its hidden tubelets darkened."""
    is_hidden_THW = mask_thw.repeat(TUBELET_FRAMES, 0).repeat(PATCH_PX, 1).repeat(PATCH_PX, 2)
    shade_THW1 = np.where(is_hidden_THW, HIDDEN_SHADE, 1.0)[..., None]
    return (frames_THWC * shade_THW1).astype(np.uint8)


def save(figure: "Figure", file: Path) -> None:
    """Write a figure; its directory is made. UserError for a suffix that matplotlib does not write."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(file, dpi=120, bbox_inches="tight")
    except ValueError as error:
        raise UserError(f"cannot draw into {file}: {error}") from None


def panels(
    num_rows: int, num_columns: int, frame_size: tuple[int, ...], panel_inches: float = PANEL_INCHES
) -> tuple["Figure", Any]:
    """A figure of panels without ticks, each of the proportions of a frame of (height, width); and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'mgm[notebook]'") from None
    height, width = frame_size
    size = (panel_inches * num_columns, panel_inches * num_rows * height / width + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes

"""Figures of clips, as PNG, PDF or animated GIF: a row of panels for each quantity, a column for each frame.

They have the width of a page and are meant to be read at 100 %. matplotlib comes with the extra `notebook` and is
imported on the first drawing only.

Axes: T frames · H,W pixels · C = RGB · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.files import replace_file
from mgm_shared.overlays import (
    arrow_spacing,
    draw_arrow_scale,
    draw_arrows,
    draw_colours,
    draw_missing,
    draw_wheel,
    full_speed,
)
from mgm_shared.schema import PICTURE_TYPES
from mgm_shared.store import Video

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The text width of a two-column paper, and a resolution at which six frames of 224 px fill it pixel by pixel.
PAGE_INCHES = 7.2
DOTS_PER_INCH = 200
PANEL_INCHES = PAGE_INCHES / 6
FONT_POINTS = 7.5
# A legend is so wide, in panels.
LEGEND_SHARE = 0.6
# The resolution at which four frames of 224 px fill a movie, and how many letters of a title fit into an inch.
MOVIE_DOTS_PER_INCH = 128
LETTERS_PER_INCH = 14
NO_MATPLOTLIB = "figures need matplotlib: pip install '.[notebook]' in a checkout of mgm"
MARK_COLOUR = "#D55E00"
MARKED_TEXT = {"fontweight": "bold", "color": MARK_COLOUR}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a figure: its name, a function that draws the panel of frame t, and its legend.

    `scale` says in words what the legend shows, for a movie, which has no room for legends. A marked row stands out.
    """

    name: str
    draw: Callable[["Axes", int], object]
    legend: Callable[["Axes"], object] | None = None
    scale: str = ""
    is_marked: bool = False


def film_strip(
    rows: Sequence[Row],
    titles: Mapping[int, str],
    frame_size: tuple[int, ...],
    *,
    caption: str = "",
    max_columns: int = 6,
) -> "Figure":
    """A panel for each row and each frame, whose number `titles` has; after `max_columns` of them all rows again."""
    num_columns = min(max_columns, len(titles))
    num_blocks = -(-len(titles) // num_columns)
    has_legend = any(row.legend for row in rows)
    figure, axes = panels(num_blocks * len(rows), num_columns, frame_size, has_legend=has_legend)
    for place, (t, title) in enumerate(titles.items()):
        block, column = divmod(place, num_columns)
        for k, row in enumerate(rows):
            row.draw(axes[block * len(rows) + k][column], t)
            if row.is_marked:
                _mark(axes[block * len(rows) + k][column])
        axes[block * len(rows)][column].set_title(title, fontsize=FONT_POINTS, pad=3)
    for k, axis_row in enumerate(axes):
        row = rows[k % len(rows)]
        style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": FONT_POINTS, "linespacing": 1.3}
        axis_row[0].set_ylabel(row.name, rotation=0, **style, **(MARKED_TEXT if row.is_marked else {}))
        if row.legend is not None and k < len(rows):
            row.legend(axis_row[-1])
    _caption(figure, caption)
    return figure


def movie(
    rows: Sequence[Row],
    titles: Mapping[int, str],
    frame_size: tuple[int, ...],
    *,
    caption: str = "",
    max_columns: int = 4,
) -> list[NDArray[np.uint8]]:
    """One picture (H, W, 3) per frame, with the rows side by side in a block."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    num_lines = -(-len(rows) // max_columns)
    figure, axes = panels(num_lines, -(-len(rows) // num_lines), frame_size)
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(MOVIE_DOTS_PER_INCH)
    width_letters = int(PAGE_INCHES / axes.shape[1] * LETTERS_PER_INCH)
    names = [
        "\n".join(textwrap.fill(" ".join(text.split()), width_letters) for text in (row.name, row.scale) if text)
        for row in rows
    ]
    pictures: list[NDArray[np.uint8]] = []
    for t, title in titles.items():
        for axis, row, name in zip(axes.flat, rows, names, strict=False):
            axis.clear()
            _bare(axis)
            row.draw(axis, t)
            if row.is_marked:
                _mark(axis)
            axis.set_title(name, fontsize=FONT_POINTS, pad=3, **(MARKED_TEXT if row.is_marked else {}))
        _caption(figure, f"{caption}   {title}")
        if not pictures:
            _settle(figure, axes, num_spare=axes.size - len(rows))
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return _trimmed(pictures)


def to_picture(figure: "Figure", dots_per_inch: int = 100) -> NDArray[np.uint8]:
    """A figure as a picture (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dots_per_inch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (picture_HWC,) = _trimmed([np.asarray(canvas.buffer_rgba())[..., :3].copy()])
    return picture_HWC


def row_pictures(row: Row, num_frames: int, size_px: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """The panels of a row without anything around them, (H, W, 3) each, at a size of (height, width)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(NO_MATPLOTLIB) from None
    height, width = size_px
    # Lines are as thick, in proportion, as in a strip.
    figure = Figure(figsize=(PANEL_INCHES, PANEL_INCHES * height / width), dpi=width / PANEL_INCHES)
    canvas, axis = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1))
    pictures: list[NDArray[np.uint8]] = []
    for t in range(num_frames):
        axis.clear()
        _bare(axis)
        row.draw(axis, t)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pictures


def _settle(figure: "Figure", axes: Any, num_spare: int) -> None:
    """Compute the layout once, so that panels keep their places in all frames, and centre an incomplete last line."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    if num_spare == 0:
        return
    places = [axis.get_position() for axis in axes[-1]]
    shift = num_spare * (places[1].x0 - places[0].x0) / 2
    for axis, place in zip(axes[-1], places, strict=True):
        axis.set_position(place.translated(shift, 0))


def _trimmed(pictures: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Remove the rows of pixels at the bottom that are white in all pictures."""
    num_rows = max(int(np.flatnonzero((picture < 255).any((1, 2))).max(initial=0)) for picture in pictures) + 4
    return [picture[:num_rows] for picture in pictures]


def panels(
    num_rows: int,
    num_columns: int,
    frame_size: tuple[int, ...],
    *,
    width_inches: float = PAGE_INCHES,
    gap_inches: float = 0.02,
    has_legend: bool = False,
) -> tuple["Figure", Any]:
    """A figure of panels without ticks, each of the proportions of a frame of (height, width); and its axes.

    With legends there is one more, narrower column.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise UserError(NO_MATPLOTLIB) from None
    widths = [1.0] * num_columns + [LEGEND_SHARE] * has_legend
    panel_inches = width_inches / sum(widths) * frame_size[0] / frame_size[1]
    # Higher than it needs to be, so that the width decides; the layout closes the gaps and `save` cuts off the rest.
    size = (width_inches, 1.1 * panel_inches * num_rows + 0.5)
    layout = ConstrainedLayoutEngine(compress=True, w_pad=gap_inches, h_pad=gap_inches, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=layout)
    axes = figure.subplots(num_rows, len(widths), squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        _bare(axis)
    return figure, axes


def _bare(axis: "Axes") -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _mark(axis: "Axes") -> None:
    """A frame round a panel of a marked row."""
    for spine in axis.spines.values():
        spine.set(visible=True, linewidth=1.6, edgecolor=MARK_COLOUR)


def _caption(figure: "Figure", text: str) -> None:
    if text:
        figure.suptitle(text, fontsize=FONT_POINTS, x=0.01, ha="left")


def motion_figure(video: Video, indices_T: NDArray[np.int64]) -> "Figure":
    """The motion of some frames of a video: arrows on the frame, and the same in colours; also its flow, if any."""
    return film_strip(*_motion_rows(video, indices_T), caption=video.video_id, max_columns=4)


def motion_movie(video: Video, indices_T: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """The same as `motion_figure`, as a movie."""
    return movie(*_motion_rows(video, indices_T), caption=video.video_id)


def _motion_rows(video: Video, indices_T: NDArray[np.int64]) -> tuple[list[Row], dict[int, str], tuple[int, int]]:
    frames_THWC, motion_TYX2 = video.frames[indices_T], video.motion[indices_T]
    time_s, picture_type = video.time_s[indices_T], video.picture_type[indices_T]
    names = [PICTURE_TYPES[kind] for kind in picture_type]
    texts = [f"frame {t}, {name}, {s:.2f} s" for t, name, s in zip(indices_T, names, time_s, strict=True)]
    rows = motion_rows(frames_THWC, motion_TYX2)
    if video.has_flow:
        rows += motion_rows(frames_THWC, video.flow[indices_T], "flow")
    return rows, dict(enumerate(texts)), (video.height, video.width)


def motion_rows(frames_THWC: NDArray[np.uint8], motion_TYX2: NDArray[np.float32], name: str = "vectors") -> list[Row]:
    """Two rows: motion as arrows on the frames, and as colours."""
    full_px = full_speed(motion_TYX2)

    def arrows(axis: "Axes", t: int) -> None:
        axis.imshow(frames_THWC[t])
        draw_missing(axis, motion_TYX2[t])
        draw_arrows(axis, motion_TYX2[t], full_px)

    def colours(axis: "Axes", t: int) -> None:
        draw_colours(axis, motion_TYX2[t], full_px)

    def wheel(axis: "Axes") -> None:
        draw_wheel(axis, full_px, FONT_POINTS)

    cells_YX = motion_TYX2.shape[1:3]

    def arrow(axis: "Axes") -> None:
        draw_arrow_scale(axis, full_px, cells_YX, LEGEND_SHARE, FONT_POINTS)

    length = f"arrows {2 * arrow_spacing(cells_YX) / full_px:.1f} × the motion"
    colour = f"full colour: {full_px:.1f} px/frame"
    return [
        Row(name=f"{name}\n(hatched: none)", draw=arrows, legend=arrow, scale=length),
        Row(name=f"{name}\n(grey: none)", draw=colours, legend=wheel, scale=colour),
    ]


def save(figure: "Figure", file: Path) -> None:
    """Write a figure; its directory is made. UserError for a suffix that matplotlib does not write."""
    file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"dpi": DOTS_PER_INCH, "bbox_inches": "tight", "pad_inches": 0.03}
    # The name that `replace_file` gives does not have the suffix.
    kind = file.suffix[1:] or "png"
    try:
        replace_file(file, lambda beside: figure.savefig(beside, format=kind, **options))
    except ValueError as error:
        raise UserError(f"cannot draw into {file}: {error}") from None


def save_gif(pictures: Sequence[NDArray[np.uint8]], file: Path, frames_per_s: float) -> None:
    """Write pictures (H, W, 3) as an animated GIF that repeats for ever; its directory is made."""
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    # One palette for all: with one each, what stands still would flicker.
    palette = Image.fromarray(np.concatenate([picture[::4, ::4] for picture in pictures])).quantize(256)
    first, *others = [Image.fromarray(picture).quantize(palette=palette) for picture in pictures]
    options: dict[str, Any] = {"save_all": True, "append_images": others, "loop": 0, "optimize": False}
    # A GIF counts in hundredths of a second, and browsers slow down what is faster than two of them.
    duration_ms = 10 * max(2, round(100 / frames_per_s))
    replace_file(file, lambda path: first.save(path, format="gif", duration=duration_ms, **options))

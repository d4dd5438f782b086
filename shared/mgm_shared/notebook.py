"""What a notebook shows of a store and of a video: HTML with the pictures inside, without scripts."""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_shared import index
from mgm_shared.errors import UserError
from mgm_shared.figures import motion_figure
from mgm_shared.store import Store, Video

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_IN_STRIP, NUM_THUMBNAILS = 4, 6
DOTS_PER_INCH = 110
THUMBNAIL_PX, THUMBNAIL_QUALITY = 96, 85
# The columns of the table of a video. The whole record is `video.record`.
SHOWN = ("label", "split", "num_frames", "fps", "height", "width", "codec", "motion_source", "num_corrupt")
# The rows of the table of a store: column of its table, what it counts, and how many values are named.
COUNTED = (("split", "split"), ("label", "label"), ("codec", "codec"), ("motion_source", "motion from"))
MAX_VALUES = 8
# What a damaged or incomplete store raises; a notebook then shows the text without the picture.
UNREADABLE = (OSError, ValueError, UserError)


def video_figure(video: Video, num_frames: int) -> "Figure":
    """Frames from the whole video with their motion, as a figure that a notebook shows by itself.

    UserError without matplotlib.
    """
    num_shown = min(max(1, num_frames), video.num_frames)
    # The middle of each of `num_shown` equal parts, because the first frame of a video has no motion.
    indices_T = ((np.arange(num_shown) + 0.5) * video.num_frames / num_shown).astype(np.int64)
    figure: Any = motion_figure(video, indices_T)
    # A notebook draws matplotlib's figures only when pyplot has been imported. It asks every object for this method.
    figure._repr_png_ = lambda: _png(figure)
    shown: Figure = figure
    return shown


def video_html(video: Video) -> str:
    """A strip of frames with their vectors, and the record of the video."""
    title = f"<b>{html.escape(video.video_id)}</b>"
    try:
        png = _png(video_figure(video, NUM_IN_STRIP))
        picture = _image(png, "image/png", "frames and motion vectors")
    except UNREADABLE as error:
        picture = f"<i>no picture: {html.escape(str(error))}</i>"
    shown = {name: video.record[name] for name in SHOWN if video.record.get(name) is not None}
    return f"<div>{title}<br>{picture}{_table(shown)}</div>"


def store_html(store: Store) -> str:
    """Counts of the videos of a store, and frames of some of them."""
    num_frames = int(index.numbers(store.table, "num_frames").sum())
    hours = float((index.numbers(store.table, "num_frames") / index.numbers(store.table, "fps")).sum()) / 3600
    title = f"<b>{html.escape(str(store.path))}</b>: {len(store):,} videos, {num_frames:,} frames, {hours:.2f} hours"
    counts = {words: _counts(store, column) for column, words in COUNTED}
    counts["size"] = _sizes(store)
    pictures = "".join(_thumbnail(video) for video in store.sample(min(NUM_THUMBNAILS, len(store))))
    return f"<div>{title}{_table(counts)}<div>{pictures}</div></div>"


def _counts(store: Store, column: str) -> str:
    code_of_row, texts = index.codes(store.table, column)
    counts = np.bincount(code_of_row, minlength=len(texts))
    return _listed((str(texts[k] or "none"), int(counts[k])) for k in np.argsort(-counts, kind="stable"))


def _sizes(store: Store) -> str:
    sizes_N2 = np.stack([index.numbers(store.table, name) for name in ("height", "width")], 1)
    unique_K2, counts = np.unique(sizes_N2, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return _listed((f"{unique_K2[k, 0]}×{unique_K2[k, 1]} px", int(counts[k])) for k in order)


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    """The first values with their counts, and how many more there are."""
    items = [f"{name} {count:,}" for name, count in counts]
    more = [f"and {len(items) - MAX_VALUES} more"] if len(items) > MAX_VALUES else []
    return ", ".join(items[:MAX_VALUES] + more)


def _thumbnail(video: Video) -> str:
    """The middle frame, with the id and the label as its tooltip."""
    name = f"{video.video_id}, {video.label or 'no label'}"
    try:
        frame_HWC = video.frames[video.num_frames // 2]
    except UNREADABLE as error:
        return f"<i>{html.escape(f'{name}: {error}')}</i> "
    return _image(_jpeg(frame_HWC), "image/jpeg", name) + " "


def _jpeg(frame_HWC: NDArray[np.uint8]) -> bytes:
    height, width = frame_HWC.shape[:2]
    size = (max(1, round(width * THUMBNAIL_PX / height)), THUMBNAIL_PX)
    small_HWC = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", small_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])
    return encoded.tobytes()


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.03)
    return buffer.getvalue()


def _image(content: bytes, kind: str, text: str) -> str:
    words = html.escape(text, quote=True)
    data = base64.b64encode(content).decode()
    return f'<img style="display:inline" alt="{words}" title="{words}" src="data:{kind};base64,{data}">'


def _table(values: Mapping[str, Any]) -> str:
    cell = 'style="text-align:left"'
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    rows = (
        f"<tr><th {cell}>{html.escape(name.replace('_', ' '))}</th><td {cell}>{html.escape(text)}</td></tr>"
        for name, text in texts.items()
    )
    return f"<table>{''.join(rows)}</table>"

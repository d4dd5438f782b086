"""What the table of videos says of a store: counts, lengths, sizes, labels. All rows count, nothing is sampled.

The columns stay in Arrow and numpy, so 240,000 videos need a few megabytes.

Axes: N videos · K classes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mgm_shared.index import codes, numbers
from mgm_shared.report.blocks import Bars, Block, Cell, Chart, Details, Grid, Notes, Share, Table, Tile, Tiles
from mgm_shared.report.charts import edges_between, histogram, short

SPLITS = ("train", "val", "test")
NO_NAME = "none"
MAX_BARS, MAX_CLASSES, OPEN_CLASSES = 8, 400, 30
NUM_BINS = 32
# The paper's clip: 16 frames at stride 4.
CLIP_FRAMES = 61


def durations(table: pa.Table) -> NDArray[np.float64]:
    """Length of each video in seconds, (N,)."""
    fps_N = numbers(table, "fps")
    seconds_N = np.zeros(len(table))
    np.divide(numbers(table, "num_frames"), fps_N, out=seconds_N, where=fps_N > 0)
    return seconds_N


def tiles(table: pa.Table, num_bytes: int, num_failures: int) -> Tiles:
    """The numbers at the top."""
    num_frames, hours = int(numbers(table, "num_frames").sum()), float(durations(table).sum()) / 3600
    length, unit = (f"{hours:,.1f}", "hours of video") if hours >= 1 else (f"{hours * 60:.1f}", "minutes of video")
    num_labels = sum(name is not None for name in codes(table, "label")[1])
    unlabelled = table["label"].null_count
    num_files = len(table) + num_failures
    shares = (
        f"{num_bytes / max(1, num_frames) / 1e3:.1f} kB a frame",
        f"{num_failures / max(1, num_files):.1%} of all",
    )
    return Tiles(
        tiles=[
            Tile(value=f"{len(table):,}", name="videos", remark=_splits_line(table)),
            Tile(value=length, name=unit, remark=f"{num_frames:,} frames"),
            Tile(value=_bytes_text(num_bytes), name="on disk", remark=shares[0]),
            Tile(value=f"{num_labels:,}", name="labels", remark=f"{unlabelled:,} videos have none"),
            Tile(value=f"{num_failures:,}", name="rejected", remark=shares[1]),
        ]
    )


def _splits_line(table: pa.Table) -> str:
    return " · ".join(f"{count:,} {name}" for name, count in counted(table, "split")[:4])


def _bytes_text(num_bytes: int) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def counted(table: pa.Table, name: str) -> list[tuple[str, int]]:
    """The values of a column of text and how many videos have each, the commonest first."""
    code_N, texts = codes(table, name)
    count_K = np.bincount(code_N, minlength=len(texts))
    pairs = [(NO_NAME if text is None else text, int(count)) for text, count in zip(texts, count_K, strict=True)]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _counted_numbers(values_N: NDArray[Any], text: str) -> list[tuple[str, int]]:
    values, counts = np.unique(values_N, return_counts=True)
    pairs = [(text.format(value), int(count)) for value, count in zip(values.tolist(), counts.tolist(), strict=True)]
    return sorted(pairs, key=lambda pair: -pair[1])


def _bars(title: str, pairs: Sequence[tuple[str, int]], total: int, caption: str = "") -> Bars:
    """A bar for each of the commonest values, and one for all others."""
    shown = list(pairs[:MAX_BARS])
    if others := pairs[MAX_BARS:]:
        shown.append((f"{len(others)} others", sum(count for _, count in others)))
    items = [(name, float(count), f"{count:,} · {count / max(1, total):.1%}") for name, count in shown]
    return Bars(title=title, items=items, caption=caption)


def video_blocks(table: pa.Table) -> list[Block]:
    """Stored sizes, frame rates, codecs, source of the motion, and the lengths."""
    total = len(table)
    height_N, width_N = numbers(table, "height"), numbers(table, "width")
    sizes = _counted_numbers(height_N * 100_000 + width_N, "{}")
    size_names = [(f"{int(code) // 100_000} × {int(code) % 100_000}", count) for code, count in sizes]
    rates = _counted_numbers(numbers(table, "fps").round(1), "{:g} fps")
    charts: list[Block] = [
        _bars("Stored size, height × width in pixels", size_names, total),
        _bars("Frames a second", rates, total),
        _bars("Codec of the source", counted(table, "codec"), total),
        _bars("Source of the motion", counted(table, "motion_source"), total, "codec: vectors of the source itself."),
        _length_chart(table),
        _frames_chart(table),
    ]
    return [Grid(blocks=charts)]


def _length_chart(table: pa.Table) -> Chart:
    seconds_N = durations(table)
    median = float(np.median(seconds_N)) if len(seconds_N) else 0.0
    caption = f"Median {median:.3g} s, from {short(_least(seconds_N))} s to {short(_most(seconds_N))} s."
    return _logarithmic("Length", seconds_N, "seconds", caption)


def _frames_chart(table: pa.Table) -> Chart:
    frames_N = numbers(table, "num_frames").astype(np.float64)
    short_share = float((frames_N < CLIP_FRAMES).mean()) if len(frames_N) else 0.0
    caption = f"{short_share:.1%} are shorter than the {CLIP_FRAMES} frames of a clip of 16 at stride 4."
    return _logarithmic("Frames", frames_N, "frames of a video", caption)


def _logarithmic(title: str, values_N: NDArray[np.float64], what: str, caption: str) -> Chart:
    """How many videos have which value, on a logarithmic axis."""
    edges = edges_between(*_decent_range(values_N), NUM_BINS, is_log=True)
    x_label = f"{what}, logarithmic"
    return histogram(title, values_N, edges, x_label=x_label, y_label="videos", is_log=True, caption=caption)


def _decent_range(values_N: NDArray[np.float64]) -> tuple[float, float]:
    """A range of positive numbers that holds the values, at least a factor of two wide."""
    positive = values_N[values_N > 0]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1.0, 10.0)
    middle = math.sqrt(low * high)
    return min(low, middle / math.sqrt(2)), max(high, middle * math.sqrt(2))


def _least(values_N: NDArray[np.float64]) -> float:
    return float(values_N.min()) if len(values_N) else 0.0


def _most(values_N: NDArray[np.float64]) -> float:
    return float(values_N.max()) if len(values_N) else 0.0


def label_counts(table: pa.Table) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """The labels by their number of videos, the splits, and the number of videos of each pair, (K, splits)."""
    label_N, labels = codes(table, "label")
    split_N, splits = codes(table, "split")
    count_KS = np.bincount(label_N.astype(np.int64) * len(splits) + split_N, minlength=len(labels) * len(splits))
    count_KS = count_KS.reshape(len(labels), len(splits))
    columns = sorted(range(len(splits)), key=lambda place: _split_order(splits[place]))
    rows = sorted(range(len(labels)), key=lambda place: (labels[place] is None, -int(count_KS[place].sum())))
    names = [NO_NAME if labels[row] is None else str(labels[row]) for row in rows]
    return names, [splits[column] or NO_NAME for column in columns], count_KS[rows][:, columns]


def _split_order(split: str | None) -> tuple[int, str]:
    return (SPLITS.index(split), "") if split in SPLITS else (len(SPLITS), split or "~")


def label_blocks(table: pa.Table) -> list[Block]:
    """A table of labels by split."""
    names, splits, count_KS = label_counts(table)
    total_K = count_KS.sum(1)
    largest = int(total_K.max(initial=1))
    rows: list[list[Cell]] = [
        [name, *map(int, counts), Share(share=total / largest, text=f"{total:,}")]
        for name, counts, total in zip(names[:MAX_CLASSES], count_KS.tolist(), total_K.tolist(), strict=False)
    ]
    columns = ["label", *splits, "videos"]
    caption = f"The {MAX_CLASSES} largest of {len(names):,} labels." if len(names) > MAX_CLASSES else ""
    if len(rows) <= OPEN_CLASSES:
        return [Table(columns=columns, rows=rows, caption=caption)]
    more = Table(columns=columns, rows=rows[OPEN_CLASSES:], caption=caption)
    rest = Details(summary=f"{len(rows) - OPEN_CLASSES} more labels", blocks=[more])
    return [Table(columns=columns, rows=rows[:OPEN_CLASSES], caption="The largest first."), rest]


def warnings(table: pa.Table) -> Notes | None:
    """What may be wrong with the videos of a store, in sentences; None where nothing is."""
    lines = [*_label_warnings(table), *_video_warnings(table)]
    return Notes(lines=lines, is_warning=True) if lines else None


def _label_warnings(table: pa.Table) -> list[str]:
    names, splits, count_KS = label_counts(table)
    lines: list[str] = []
    unlabelled = table["label"].null_count
    if 0 < unlabelled < len(table):
        lines.append(f"{unlabelled:,} videos have no label; `mgm-prep labels` attaches them.")
    if "train" in splits and len(table) > unlabelled:
        in_train_K = count_KS[:, splits.index("train")] > 0
        missing = [name for name, is_in in zip(names, in_train_K, strict=True) if not is_in and name != NO_NAME]
        if missing:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            lines.append(f"{len(missing)} labels have no training video, so no model can learn them: {shown}.")
    return lines


def _video_warnings(table: pa.Table) -> list[str]:
    lines: list[str] = []
    without = Counter(dict(counted(table, "motion_source")))["none"]
    if without:
        lines.append(f"{without:,} videos have no motion at all; their masks are placed at random.")
    damaged = int((numbers(table, "num_corrupt") > 0).sum())
    if damaged:
        lines.append(f"{damaged:,} videos have damaged or missing frames.")
    single = int((numbers(table, "num_frames") < 2).sum())
    if single:
        lines.append(f"{single:,} videos have a single frame.")
    return lines

"""Boxes of key frames as files have them: one row per box, grouped by key frame.

A key frame is a time in a video. Files count it in whole seconds (AVA); decimals are accepted. It is kept in whole
milliseconds, so that 902, 0902 and 902.0 are the same time.

Axes: B boxes · 4 = left, top, right, bottom, as shares of the picture's width and height · F key frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from mgm_shared.errors import UserError

Moment = tuple[str, int]
"""Video name of the files and time in ms."""

MAX_TIME_MS = 10**12
# Detectors and annotators round; a box that leaves the picture by more than this is in other units.
MAX_OUTSIDE = 0.5


@dataclass(frozen=True, kw_only=True)
class BoxTable:
    """Rows of boxes: the video's name, the time, the box, and what the last columns hold (0 where a file lacks them).

    `class_B` counts from 1, 0 = none. `score_B` is the detector's confidence.
    """

    file: Path
    name_B: NDArray[np.object_]
    time_ms_B: NDArray[np.int64]
    box_B4: NDArray[np.float64]
    class_B: NDArray[np.int64]
    score_B: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.name_B)

    def where(self, is_kept_B: NDArray[np.bool_]) -> "BoxTable":
        """The rows where `is_kept_B` is true."""
        names = ("name_B", "time_ms_B", "box_B4", "class_B", "score_B")
        return BoxTable(file=self.file, **{name: getattr(self, name)[is_kept_B] for name in names})

    @property
    def moments(self) -> list[Moment]:
        """The key frame of each row."""
        return list(zip(self.name_B.tolist(), self.time_ms_B.tolist(), strict=True))

    @classmethod
    def of(
        cls,
        file: Path,
        name_B: Sequence[str],
        time_s_B: NDArray[np.float64],
        box_B4: NDArray[np.float64],
        *,
        class_B: NDArray[np.int64] | None = None,
        score_B: NDArray[np.float64] | None = None,
    ) -> "BoxTable":
        """A checked table. UserError that names the first row with a number that is no time, box or score."""
        count = len(name_B)
        table = cls(
            file=file,
            name_B=np.array(name_B, object),
            time_ms_B=_milliseconds(file, time_s_B),
            box_B4=np.asarray(box_B4, np.float64).reshape(count, 4),
            class_B=np.zeros(count, np.int64) if class_B is None else class_B,
            score_B=np.zeros(count) if score_B is None else score_B,
        )
        is_inside_B4 = (table.box_B4 >= -MAX_OUTSIDE) & (table.box_B4 <= 1 + MAX_OUTSIDE)
        is_inside_B = np.asarray(is_inside_B4.all(1))
        _refuse(
            file, ~is_inside_B, table.box_B4, "is no box: left, top, right, bottom in shares of the picture, 0 to 1"
        )
        is_score_B = (table.score_B >= 0) & (table.score_B <= 1)
        _refuse(file, ~is_score_B, table.score_B, "is no score from 0 to 1")
        return table


def read_box_csv(file: Path, *, last: str) -> BoxTable:
    """Read `video,time,x1,y1,x2,y2,action,last`, without a header.

    `last` is `person`, which is not used and may be missing, or `score`, the confidence of a detector. The action may
    be empty. UserError that names the row that is none.
    """
    columns = _csv_columns(file, 8 if last == "score" else None)
    scores = _numbers(file, columns[7], "score") if last == "score" else None
    action_B = _numbers(file, columns[6], "action", empty=0)
    _refuse(file, (action_B < 0) | (action_B % 1 != 0), action_B, "is no number of an action")
    return BoxTable.of(
        file,
        columns[0],
        _numbers(file, columns[1], "time"),
        np.stack([_numbers(file, columns[k], "box") for k in range(2, 6)], axis=1),
        class_B=action_B.astype(np.int64),
        score_B=scores,
    )


def read_moments(file: Path) -> set[Moment]:
    """Read lines `video,time`, the key frames that are not scored. UserError that names the row that is none."""
    columns = _csv_columns(file, 2)
    times = _milliseconds(file, _numbers(file, columns[1], "time"))
    return set(zip(columns[0], times.tolist(), strict=True))


def moment_text(time_ms: int) -> str:
    """A time as AVA writes it, four digits for whole seconds: 0902; with decimals where there are some: 0902.480."""
    seconds, rest = divmod(time_ms, 1000)
    return f"{seconds:04d}" + (f".{rest:03d}" if rest else "")


def _csv_columns(file: Path, num_columns: int | None) -> list[list[str]]:
    """The columns of a CSV file without a header, as text. UserError when it is empty or rows differ in length."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if not content.strip():
        return [[] for _ in range(num_columns or 8)]
    found = content.lstrip().split(b"\n", 1)[0].count(b",") + 1
    if found not in ({num_columns} if num_columns else {7, 8}):
        raise UserError(f"{file} has {found} columns where {num_columns or '7 or 8'} are wanted")
    names = [str(k) for k in range(found)]
    options: dict[str, Any] = {
        # Without threads an error names its row.
        "read_options": pa_csv.ReadOptions(column_names=names, use_threads=False),
        "convert_options": pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    }
    try:
        table = pa_csv.read_csv(pa.BufferReader(content), **options)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: {error}") from None
    return [[text.strip() for text in column.to_pylist()] for column in table.columns]


def _numbers(file: Path, texts: Sequence[str], what: str, empty: float | None = None) -> NDArray[np.float64]:
    """Text as finite numbers; `empty` stands for an empty one. UserError that names the first row that is none."""
    filled = texts if empty is None else [text or str(empty) for text in texts]
    try:
        numbers_B = np.array(filled, np.str_).astype(np.float64) if filled else np.zeros(0)
    except ValueError:
        row = next(row for row, text in enumerate(filled, 1) if not _is_number(text))
        raise UserError(f"{file}, row {row}: the {what} {filled[row - 1]!r} is no number") from None
    _refuse(file, ~np.isfinite(numbers_B), numbers_B, f"is no finite {what}")
    return numbers_B


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _milliseconds(file: Path, time_s_B: NDArray[np.float64]) -> NDArray[np.int64]:
    is_time_B = (time_s_B >= 0) & (time_s_B * 1000 < MAX_TIME_MS)
    _refuse(file, ~is_time_B, time_s_B, "is no time in seconds")
    return np.rint(time_s_B * 1000).astype(np.int64)


def _refuse(file: Path, is_wrong_B: NDArray[np.bool_], values_B: NDArray[Any], needed: str) -> None:
    """UserError for the first row that is wrong."""
    if is_wrong_B.any():
        row = int(is_wrong_B.argmax())
        raise UserError(f"{file}, row {row + 1}: {values_B[row].tolist()} {needed}")

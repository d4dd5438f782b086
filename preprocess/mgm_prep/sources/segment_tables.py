"""Segments in tables: CSV files with a header, or JSON lists of objects.

- Any table with a column that names the video, and columns for start and end: seconds (`start_s`, `end_s`), frames of
  which the end does not belong to the segment (`start_frame`, `end_frame`) or does (`first_frame`, `last_frame`).
- EPIC-Kitchens: `video_id`, `start_timestamp`, `stop_timestamp`, and the classes `verb_class` and `noun_class`.
- Charades: a row a video, whose `actions` are `c092 11.90 21.20;c147 0.00 12.60`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mgm_prep.config import ReadAs
from mgm_prep.sources.annotations import LABEL_COLUMNS, SPLIT_COLUMNS, split_in_name
from mgm_prep.sources.names import SPLITS
from mgm_prep.sources.segments import About, Segment, frame_segment, not_found, segment
from mgm_prep.sources.tables import NAME_COLUMNS, column_name, header_columns, read_table
from mgm_shared.errors import UserError
from mgm_shared.text_files import is_text

Row = Mapping[str, str]

# Names without case, spaces and punctuation: `start_s` is `starts`.
START_COLUMNS = "starts startsec startsecs startseconds tstart starttimestamp fromtimestamp".split()
END_COLUMNS = "ends stops endsec endsecs endseconds tend endtimestamp stoptimestamp totimestamp".split()
# These may also be part of the name of a clip that was cut already, as in the lists of Kinetics.
MAYBE_START_COLUMNS, MAYBE_END_COLUMNS = "timestart starttime start".split(), "timeend endtime end stop".split()
# Frames of which the end does not belong to the segment, and of which it does.
FRAME_COLUMNS = (("startframe", ("endframe", "stopframe")), ("firstframe", ("lastframe",)))
ID_COLUMNS = "sampleid segmentid narrationid".split()
# EPIC-Kitchens-55 numbers its rows by uid, 100 by narration_id; the timestamps of the test have no classes.
EPIC_COLUMNS = {"videoid", "participantid", "starttimestamp", "stoptimestamp"}
EPIC_LABELS = {"verb": ("verbclass",), "noun": ("nounclass",), "action": ("verbclass", "nounclass")}
CHARADES_COLUMNS = {"id", "actions", "length"}


class SegmentTable:
    """The rows of one table that may be segments, by the names of their columns without case and punctuation."""

    def __init__(self, file: Path, rows: Iterable[tuple[str, Row]], columns: Sequence[str]) -> None:
        self.file, self.rows, self.columns = file, rows, columns

    @classmethod
    def of_csv(cls, file: Path) -> "SegmentTable | None":
        """The table of a text file; None where it has no header."""
        columns = header_columns(file)
        return cls(file, _rows_of_csv(file), columns) if columns else None

    @classmethod
    def of_json(cls, file: Path, content: Any) -> "SegmentTable | None":
        """The table of a JSON list of objects; None for anything else."""
        if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
            return None
        return cls(file, _rows_of_json(file, content), [column_name(name) for name in content[0]])

    def has_segments(self, read_as: ReadAs) -> bool:
        """Whether the rows are segments; UserError where both readings make sense and `read_as` does not say which."""
        if read_as == "labels":
            return False
        columns = set(self.columns)
        has_start, has_end = bool(columns & set(START_COLUMNS)), bool(columns & set(END_COLUMNS))
        if has_start != has_end:
            missing = "end" if has_start else "start"
            raise not_found(str(self.file), f"no column with the {missing} of the segments", self.columns)
        if columns >= CHARADES_COLUMNS or has_start:
            return True
        # Diving48 says so of clips that are files of their own.
        is_whole = "vidname" in columns and read_as == "auto"
        if self._frame_columns() and not is_whole:
            return True
        if not (columns & set(MAYBE_START_COLUMNS) and columns & set(MAYBE_END_COLUMNS)):
            if read_as == "segments":
                raise not_found(str(self.file), "no columns with start and end, such as start_s, end_s", self.columns)
            return False
        if read_as == "auto" and not columns & {"timestart", "youtubeid"}:
            raise UserError(
                f"{self.file} has a start and an end for each row: --read-as segments takes them as places in videos, "
                "--read-as labels as part of the names of clips (Kinetics)"
            )
        return read_as == "segments"

    def segments(self, label: str, classes: Mapping[str, Mapping[str, str]]) -> Iterator[Segment]:
        """The segments. `label` names the column with the label; `classes` has names by kind of class and number."""
        columns = set(self.columns)
        if columns >= EPIC_COLUMNS:
            yield from self._of_epic(label, classes)
        elif columns >= CHARADES_COLUMNS:
            if label:
                raise UserError(f"{self.file} has one kind of labels; --label is for files with several")
            for where, row in self.rows:
                yield from _of_charades(where, row, split_in_name(self.file), classes.get("charades", {}))
        else:
            yield from self._of_rows(label)

    def _of_rows(self, label: str) -> Iterator[Segment]:
        label_columns = [self._known(label)] if label else LABEL_COLUMNS
        default_split = split_in_name(self.file)
        for where, row in self.rows:
            name_column = next((column for column in NAME_COLUMNS if row.get(column)), "")
            text, stated = _first(row, label_columns), _first(row, SPLIT_COLUMNS)
            split = SPLITS.get(stated.lower(), "") if stated else default_split
            own_id = _first(row, ID_COLUMNS) or (row.get("id", "") if name_column != "id" else "")
            about: About = {"label": text, "split": split, "sample_id": own_id}
            names = [row[name_column]] if name_column else []
            problem = ""
            if not names:
                problem = "nothing names the video"
            elif split == "":
                problem = f"split {stated!r} is not train, val or test"
            elif not (is_text(text) and is_text(own_id)):
                problem = "it is not UTF-8 text"
            yield _with_problem(self._place(where, names, row, about), problem)

    def _place(self, where: str, names: Sequence[str], row: Row, about: About) -> Segment:
        start = _first(row, [*START_COLUMNS, *MAYBE_START_COLUMNS])
        end = _first(row, [*END_COLUMNS, *MAYBE_END_COLUMNS])
        if start or end or not (frames := self._frame_columns()):
            return segment(where, names, start, end, **about)
        first, last = frames
        stop = row.get(last, "")
        if last == "lastframe" and stop.strip().isdigit():
            stop = str(int(stop) + 1)
        return frame_segment(where, names, row.get(first, ""), stop, **about)

    def _of_epic(self, label: str, classes: Mapping[str, Mapping[str, str]]) -> Iterator[Segment]:
        has_classes = "verbclass" in self.columns
        if has_classes and label not in EPIC_LABELS:
            raise UserError(f"{self.file} has verbs, nouns and actions; choose by --label verb, noun or action")
        split = split_in_name(self.file)
        for where, row in self.rows:
            text, problem = None, ""
            if has_classes:
                kinds = {"verbclass": "verb", "nounclass": "noun"}
                numbers = {kinds[column]: row.get(column, "") for column in EPIC_LABELS[label]}
                names = {kind: classes.get(kind, {}).get(number, number) for kind, number in numbers.items()}
                missing = [kind for kind, number in numbers.items() if kind in classes and number not in classes[kind]]
                problem = f"the class list has no {missing[0]} {numbers[missing[0]]!r}" if missing else ""
                text = " ".join(names.values())
            about: About = {"label": text, "split": split, "sample_id": row.get("narrationid") or row.get("uid")}
            place = segment(where, [row["videoid"]], row["starttimestamp"], row["stoptimestamp"], **about)
            yield _with_problem(place, problem)

    def _frame_columns(self) -> tuple[str, str] | None:
        for first, lasts in FRAME_COLUMNS:
            if first in self.columns and (last := next((name for name in lasts if name in self.columns), "")):
                return first, last
        return None

    def _known(self, label: str) -> str:
        if column_name(label) in self.columns:
            return column_name(label)
        raise not_found(str(self.file), f"no column {label!r} for the label", self.columns)


def _of_charades(where: str, row: Row, split: str | None, classes: Mapping[str, str]) -> Iterator[Segment]:
    for number, action in enumerate(filter(None, row["actions"].split(";"))):
        code, *times = action.split()
        place = f"{where}, action {number + 1}"
        start, end = times if len(times) == 2 else ("", "")
        found = segment(place, [row["id"]], start, end, label=classes.get(code, code), split=split)
        yield _with_problem(found, f"the class list has no {code}" if classes and code not in classes else "")


def _with_problem(place: Segment, problem: str) -> Segment:
    return replace(place, problem=problem) if problem else place


def _rows_of_csv(file: Path) -> Iterator[tuple[str, Row]]:
    for line in read_table(file):
        if line.is_optional and line.readings[0].keys() == {"path"}:
            # A comment under a header.
            continue
        yield line.where, {column_name(name): value.strip() for name, value in line.readings[0].items()}


def _rows_of_json(file: Path, content: list[dict[str, Any]]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(content, 1):
        values = {column_name(name): str(value).strip() for name, value in row.items() if value is not None}
        yield f"{file}, entry {number}", values


def _first(row: Row, columns: Iterable[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")

"""Read labels and splits from a data set's own files: tables, JSON, `path label` lists, official split files.

A file names a video by a path or an id, with or without suffix, and gives its label, its split, or both. `labels.py`
matches these names with the videos of a store.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mgm_prep.sources.class_lists import CLASS_LIST_NAME, parse_class_list, read_class_list
from mgm_prep.sources.names import SPLITS, text_of
from mgm_prep.sources.tables import COMMENT_SIGN, NAME_COLUMNS, Line, column_name, read_table
from mgm_shared.errors import UserError
from mgm_shared.text_files import is_text, read_json, read_lines

LABEL_COLUMNS = (
    "template labelname classname actionname label classlabel class category action target labelid classid".split()
)
SPLIT_COLUMNS = "split subset partition set".split()
START_COLUMNS, END_COLUMNS = "timestart starttime start".split(), "timeend endtime end".split()
NUMBER = re.compile(r"\d+(\.\d+)?")

SPLIT_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?:list)?(?![a-z])")
# trainlist01.txt and testlist01.txt of UCF101; <class>_test_split1.txt of HMDB51 with a code for each clip.
UCF101_LIST = re.compile(r"(train|test)list0?(\d)\.txt", re.IGNORECASE)
UCF101_LINE = re.compile(r"(.+?)(?:\s+\d+)?")
HMDB51_LIST = re.compile(r"(.+)_test_split(\d)\.txt", re.IGNORECASE)
HMDB51_LINE = re.compile(r"(.+?)\s+([012])")
HMDB51_SPLITS: dict[str, str | None] = {"0": None, "1": "train", "2": "test"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """What a file says about one video."""

    names: tuple[str, ...]
    """What the video is called there; the second only where no video has the first name."""
    values: dict[str, str | None]
    """`label`, `split` or both. None states that the video has none; a key that is missing states nothing."""
    is_optional: bool = False
    """Whether the line is a comment unless it names a video, because it begins with `#`."""
    alternatives: "tuple[Annotation, ...]" = ()
    """Other readings of the same line, for where no video has these names; the last one of a comment is its text."""

    @property
    def readings(self) -> "tuple[Annotation, ...]":
        """All ways to read the line, the most likely one first."""
        return self, *self.alternatives

    @property
    def shown(self) -> str:
        """The name, or the text of what may be a comment, for messages."""
        return text_of(self.readings[-1 if self.is_optional else 0].names[0])


def read_annotations(files: Sequence[Path], fold: int = 1) -> list[Annotation]:
    """All annotations of the files, in order. A directory stands for its annotation files, of official split `fold`.

    One of the files may be a class list (`class_lists.py`); numbers in the others then become names. UserError for a
    file that cannot be read or understood, and for a number that the class list lacks.
    """
    tables: list[list[Annotation]] = []
    class_lists: list[dict[str, str]] = []
    for file in _files(files, fold):
        is_json = file.suffix.lower() == ".json"
        content = read_json(file) if is_json else None
        classes = parse_class_list(content) if is_json else read_class_list(file)
        if classes is not None:
            class_lists.append(classes)
        else:
            tables.append(_of_json(content, file) if is_json else annotations_of_table(file))
    if len(class_lists) > 1:
        raise UserError(f"{len(class_lists)} class lists were given; give the one whose numbers the others use")
    annotations = [annotation for table in tables for annotation in table]
    return [_named(annotation, class_lists[0]) for annotation in annotations] if class_lists else annotations


def is_annotation_folder(folder: Path, fold: int = 1) -> bool:
    """Whether annotation files lie directly in the directory."""
    return bool(_members(folder, fold))


def annotations_of_table(file: Path) -> list[Annotation]:
    """The annotations of a text file: a split file of UCF101 or HMDB51, or a list or table (`tables.py`)."""
    if match := HMDB51_LIST.fullmatch(file.name):
        return [_of_hmdb51(text.strip(), match[1], where) for where, text in _lines(file)]
    if UCF101_LIST.fullmatch(file.name):
        return _of_lines([_ucf101_line(text.strip(), where) for where, text in _lines(file)], file)
    return _of_lines(read_table(file), file)


def _files(files: Sequence[Path], fold: int) -> Iterable[Path]:
    for file in files:
        members = _members(file, fold) if file.is_dir() else [file]
        if not members:
            raise UserError(f"{file} holds no annotation file (.csv, .json, or the split files of UCF101 or HMDB51)")
        yield from members


def _members(folder: Path, fold: int) -> list[Path]:
    def is_wanted(file: Path) -> bool:
        official = UCF101_LIST.fullmatch(file.name) or HMDB51_LIST.fullmatch(file.name)
        if official:
            return int(official[2]) == fold
        return file.suffix.lower() in (".csv", ".json") or bool(CLASS_LIST_NAME.match(file.name))

    return sorted(file for file in folder.iterdir() if file.is_file() and is_wanted(file))


def _named(annotation: Annotation, classes: dict[str, str]) -> Annotation:
    """The annotation and its other readings, with the class's name for its number."""
    label = annotation.values.get("label")
    alternatives = tuple(_named(reading, classes) for reading in annotation.alternatives)
    if label is None or not label.isdigit():
        return replace(annotation, alternatives=alternatives)
    if label not in classes:
        raise UserError(f"{annotation.names[0]} has label {label}, which the class list of {len(classes)} lacks")
    name = _checked_label(classes[label], f"the name of class {label}")
    return replace(annotation, values=annotation.values | {"label": name}, alternatives=alternatives)


def _lines(file: Path) -> Iterable[tuple[str, str]]:
    return ((f"{file}, line {number}", text) for number, text in read_lines(file).items())


def _ucf101_line(text: str, where: str) -> Line:
    # The class is the folder, whatever classInd.txt says; the test lists give no number.
    match = UCF101_LINE.fullmatch(text)
    name = match[1] if match else text
    row = {"path": name, "label": PurePosixPath(name).parent.name}
    return Line(where=where, text=text, readings=(row,), is_optional=text.startswith(COMMENT_SIGN))


def _of_hmdb51(text: str, label: str, where: str) -> Annotation:
    if match := HMDB51_LINE.fullmatch(text):
        values = {"label": _checked_label(label, where), "split": HMDB51_SPLITS[match[2]]}
        return Annotation(names=(match[1],), values=values)
    if text.startswith(COMMENT_SIGN):
        return _comment(text)
    raise UserError(f"{where}: {text!r} does not end in 0 (in neither split), 1 (train) or 2 (test)")


def _comment(text: str) -> Annotation:
    return Annotation(names=(text.strip(),), values={}, is_optional=True)


def _of_json(content: Any, file: Path) -> list[Annotation]:
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{file}: want a list of objects, one a video, or a class list")
    split = split_in_name(file)
    rows = [{key: str(value).strip() for key, value in row.items() if value is not None} for row in content]
    return [_of_row(row, split, f"{file}, entry {number}") for number, row in enumerate(rows, 1)]


def _of_lines(lines: Iterable[Line], file: Path) -> list[Annotation]:
    split = split_in_name(file)
    return [_of_line(line, split) for line in lines]


def _of_line(line: Line, default_split: str | None) -> Annotation:
    """The line's readings as one annotation. UserError when none of them is good, unless it may be a comment."""
    found: list[Annotation] = []
    problem: UserError | None = None
    for row in line.readings:
        try:
            found.append(_of_row(row, default_split, line.where))
        except UserError as error:
            problem = problem or error
    if line.is_optional:
        # Of `#wave,a.mp4` under the header `label,path` the name begins with no #, so that this is a comment.
        found = [reading for reading in found if reading.names[0].startswith(COMMENT_SIGN)] + [_comment(line.text)]
    elif problem and not found:
        raise problem
    if len(found) == 1 and not line.is_optional:
        return found[0]
    return replace(found[0], is_optional=line.is_optional, alternatives=tuple(found[1:]))


def split_in_name(file: Path) -> str | None:
    """The split that the file's name states, for tables without a column for it."""
    in_name = {SPLITS[found] for found in SPLIT_IN_NAME.findall(file.stem.lower())}
    return in_name.pop() if len(in_name) == 1 else None


def _of_row(given: dict[str, str], default_split: str | None, where: str) -> Annotation:
    row = {column_name(key): value for key, value in given.items()}
    name = _first(row, NAME_COLUMNS)
    if not name:
        raise UserError(f"{where}: nothing names the video; known columns are {', '.join(NAME_COLUMNS)}")
    split = _first(row, SPLIT_COLUMNS).strip()
    if split and split.lower() not in SPLITS:
        raise UserError(f"{where}: split {split!r} is not train, val or test")
    values: dict[str, str | None] = {}
    if label := _checked_label(_first(row, LABEL_COLUMNS).strip(), where):
        # Something-Something's templates: `Holding [something]` is the class `Holding something`.
        values["label"] = label.replace("[", "").replace("]", "") if "template" in row else label
    if stated := SPLITS[split.lower()] if split else default_split:
        values["split"] = stated
    start, end = _first(row, START_COLUMNS), _first(row, END_COLUMNS)
    if NUMBER.fullmatch(start) and NUMBER.fullmatch(end):
        # Kinetics' crawlers name a clip by its seconds.
        return Annotation(names=(f"{name}_{float(start):06.0f}_{float(end):06.0f}", name), values=values)
    return Annotation(names=(name,), values=values)


def _checked_label(label: str, where: str) -> str:
    """The label. UserError when it is not UTF-8 text."""
    if not is_text(label):
        raise UserError(f"{where}: the label is not UTF-8 text; convert the file to UTF-8")
    return label


def _first(row: dict[str, str], columns: Iterable[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")

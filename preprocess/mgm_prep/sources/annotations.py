"""Read what a data set's own files say of its videos: CSV and JSON tables, `path label` lists, official split files.

A file names a video by a path or an id, with or without suffix, and gives its label, its split, or both. Which video of
a store that is, `labels.py` decides.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mgm_shared.errors import UserError

# Names that FFmpeg's whitelisted demuxers (container.py) read. Other files are counted and named, never opened.
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m1v .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg "
    ".mts .mxf .nut .ogm .ogv .ts .vob .webm .wmv".split()
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# Column names as they occur, without case, spaces and punctuation; of several that occur the first counts.
NAME_COLUMNS = (
    "path filepath videopath file filename video videoid videoname vidname clip clipid clipname "
    "youtubeid youtubeidentifier name id".split()
)
LABEL_COLUMNS = (
    "template labelname classname actionname label classlabel class category action target labelid classid".split()
)
SPLIT_COLUMNS = "split subset partition set".split()
START_COLUMNS, END_COLUMNS = "timestart starttime start".split(), "timeend endtime end".split()

SPLIT_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?:list)?(?![a-z])")
AFTER_SUFFIX = re.compile(rf"(?<=\S)(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))})(?=\s)", re.IGNORECASE)
CLASS_LIST = re.compile(r"class_?(es|ind|ids|index|list|names)", re.IGNORECASE)
# trainlist01.txt and testlist01.txt of UCF101; <class>_test_split1.txt of HMDB51 with a code for each clip.
UCF101_LIST = re.compile(r"(train|test)list0?(\d)\.txt", re.IGNORECASE)
HMDB51_LIST = re.compile(r"(.+)_test_split(\d)\.txt", re.IGNORECASE)
HMDB51_CODES: dict[str, str | None] = {"0": None, "1": "train", "2": "test"}

NUMBER, SEVERAL_NUMBERS = re.compile(r"\d+(\.\d+)?"), re.compile(r"-?\d+(\s+-?\d+)+")


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What a file says of one video."""

    names: tuple[str, ...]
    """What the video is called there; the second only where no video has the first name."""
    values: dict[str, str | None]
    """`label`, `split` or both; None says expressly that it has none, what is not said is absent."""


def read_annotations(files: Sequence[Path], fold: int = 1) -> list[Annotation]:
    """All that the files say, in order. A directory stands for its annotation files, of the official split `fold`.

    One of the files may be a class list: classInd.txt, or JSON as Something-Something's labels.json (name → number) and
    Diving48's vocabulary (names in order); numbers in the others then become names. UserError for a file that cannot be
    read or understood, and for a number that the class list lacks.
    """
    tables: list[list[Annotation]] = []
    class_lists: list[dict[str, str]] = []
    for file in _files(files, fold):
        content = _read_json(file) if file.suffix.lower() == ".json" else file
        classes = _class_list(content)
        if classes is not None:
            class_lists.append(classes)
        else:
            tables.append(read_table(file) if isinstance(content, Path) else _of_json(content, file))
    if len(class_lists) > 1:
        raise UserError(f"{len(class_lists)} class lists were given; give the one whose numbers the others use")
    annotations = [annotation for table in tables for annotation in table]
    return [_named(annotation, class_lists[0]) for annotation in annotations] if class_lists else annotations


def is_annotation_folder(folder: Path, fold: int = 1) -> bool:
    """Whether annotation files lie directly in the directory."""
    return bool(_members(folder, fold))


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
        return file.suffix.lower() in (".csv", ".json") or bool(CLASS_LIST.match(file.name))

    return sorted(file for file in folder.iterdir() if file.is_file() and is_wanted(file))


def _class_list(content: Any) -> dict[str, str] | None:
    """Number → name, when the file is a class list and no table of videos."""
    if isinstance(content, Path):
        if not CLASS_LIST.match(content.name):
            return None
        pairs = [line.split(maxsplit=1) for line in _read_text(content).splitlines() if line.strip()]
        if all(len(pair) == 2 and pair[0].isdigit() for pair in pairs):
            return {number: name.strip() for number, name in pairs}
        raise UserError(f"{content}: want a number and a class name on each line")
    if isinstance(content, dict) and content and all(str(number).isdigit() for number in content.values()):
        return {str(number): name for name, number in content.items()}
    if isinstance(content, list) and content and all(isinstance(entry, str | list) for entry in content):
        names = [entry if isinstance(entry, str) else " ".join(map(str, entry)) for entry in content]
        return {str(number): name for number, name in enumerate(names)}
    return None


def _named(annotation: Annotation, classes: dict[str, str]) -> Annotation:
    label = annotation.values.get("label")
    if label is None or not label.isdigit():
        return annotation
    if label not in classes:
        raise UserError(f"{annotation.names[0]} has label {label}, which the class list of {len(classes)} lacks")
    return Annotation(names=annotation.names, values=annotation.values | {"label": classes[label]})


def read_table(file: Path) -> list[Annotation]:
    """What a text file says: delimited with or without a header, or a list that is split at white space."""
    lines = {number: line.strip() for number, line in enumerate(_read_text(file).splitlines(), 1) if line.strip()}
    # Names of HMDB51 and of crawled videos may begin with the sign that makes a comment elsewhere.
    if match := HMDB51_LIST.fullmatch(file.name):
        return [_of_hmdb51(line, match[1], f"{file}, line {number}") for number, line in lines.items()]
    lines = {number: line for number, line in lines.items() if not line.startswith("#")}
    where = [f"{file}, line {number}" for number in lines]
    if UCF101_LIST.fullmatch(file.name):
        # The class is the folder, whatever classInd.txt says; the test lists give no number.
        names = [line.split()[0] for line in lines.values()]
        return _of_rows([{"path": name, "label": PurePosixPath(name).parent.name} for name in names], file, where)
    cells = _cells(list(lines.values()))
    header = [_column(cell) for cell in cells[0]] if cells else []
    if not set(header) & set(NAME_COLUMNS):
        header = ["path", "label", "split"]
        for place, row in zip(where, cells, strict=True):
            if len(row) > 3 or (len(row) == 3 and row[2].lower() not in ("", *SPLITS)):
                raise UserError(f"{place}: want `path,label,split` with split train, val or test")
            if len(row) > 1 and SEVERAL_NUMBERS.fullmatch(row[1]):
                raise UserError(f"{place}: want `path label`, and several numbers follow the path")
    else:
        cells, where = cells[1:], where[1:]
        for place, row in zip(where, cells, strict=True):
            if len(row) != len(header):
                raise UserError(f"{place}: {len(row)} values under a header of {len(header)}")
    return _of_rows([dict(zip(header, row, strict=False)) for row in cells], file, where)


def _cells(lines: list[str]) -> list[list[str]]:
    """Split at the delimiter that divides each line into as many values; else each at its commas, or after its path."""
    for delimiter in "\t;,":
        rows = [_delimited(line, delimiter) for line in lines]
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return rows
    return [_delimited(line, ",") if "," in line else _path_and_label(line) for line in lines]


def _delimited(line: str, delimiter: str) -> list[str]:
    (row,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
    return [cell.strip() for cell in row]


def _path_and_label(line: str) -> list[str]:
    """`a b.mp4 7` is the path `a b.mp4` and label 7: a path may hold spaces, and so may a label."""
    ends = [match.end() for match in AFTER_SUFFIX.finditer(line)]
    if ends:
        return [line[: ends[-1]], line[ends[-1] :].strip()]
    return [line] if PurePosixPath(line).suffix.lower() in VIDEO_SUFFIXES else line.split(maxsplit=1)


def _of_json(content: Any, file: Path) -> list[Annotation]:
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{file}: want a list of objects, one a video, or a class list")
    return _of_rows(content, file, [f"{file}, entry {number}" for number in range(1, len(content) + 1)])


def _of_hmdb51(line: str, label: str, where: str) -> Annotation:
    name, _, code = line.rpartition(" ")
    if code not in HMDB51_CODES:
        raise UserError(f"{where}: {line!r} does not end in 0 (in neither split), 1 (train) or 2 (test)")
    return Annotation(names=(name.strip(),), values={"label": label, "split": HMDB51_CODES[code]})


def _of_rows(rows: Sequence[dict[str, Any]], file: Path, where: Sequence[str]) -> list[Annotation]:
    """Rows with named columns → annotations; without a column for it the file's name may give the split."""
    in_name = {SPLITS[found] for found in SPLIT_IN_NAME.findall(file.stem.lower())}
    default_split = in_name.pop() if len(in_name) == 1 else None
    return [_of_row(row, default_split, place) for row, place in zip(rows, where, strict=True)]


def _of_row(given: dict[str, Any], default_split: str | None, where: str) -> Annotation:
    row = {_column(key): str(value).strip() for key, value in given.items() if value is not None}
    name = _first(row, NAME_COLUMNS)
    if not name:
        raise UserError(f"{where}: nothing names the video; known columns are {', '.join(NAME_COLUMNS)}")
    split = _first(row, SPLIT_COLUMNS)
    if split and split.lower() not in SPLITS:
        raise UserError(f"{where}: split {split!r} is not train, val or test")
    values: dict[str, str | None] = {}
    if label := _first(row, LABEL_COLUMNS):
        # Something-Something's templates: `Holding [something]` is the class `Holding something`.
        values["label"] = label.replace("[", "").replace("]", "") if "template" in row else label
    if stated := SPLITS[split.lower()] if split else default_split:
        values["split"] = stated
    start, end = _first(row, START_COLUMNS), _first(row, END_COLUMNS)
    if NUMBER.fullmatch(start) and NUMBER.fullmatch(end):
        # Kinetics' crawlers name a clip by its seconds.
        return Annotation(names=(f"{name}_{float(start):06.0f}_{float(end):06.0f}", name), values=values)
    return Annotation(names=(name,), values=values)


def _first(row: dict[str, str], columns: Iterable[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _column(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _read_json(file: Path) -> Any:
    try:
        return json.loads(_read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; give a CSV, a list or JSON") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None

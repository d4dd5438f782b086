"""Which of several files hold segments, which class names for them, and which labels of whole videos."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from mgm_prep.config import ReadAs
from mgm_prep.sources.annotations import is_annotation_folder
from mgm_prep.sources.class_lists import parse_class_list, read_class_list
from mgm_prep.sources.lerobot import is_lerobot, read_episodes
from mgm_prep.sources.segment_json import (
    Elements,
    is_activitynet,
    is_element_list,
    is_finegym,
    of_activitynet,
    of_finegym,
)
from mgm_prep.sources.segment_tables import SegmentTable
from mgm_prep.sources.segments import Segment
from mgm_prep.sources.tables import header_columns, read_table
from mgm_shared.errors import UserError
from mgm_shared.text_files import read_json, read_lines

# c000 Holding some clothes
CHARADES_CLASS = re.compile(r"(c\d{3})\s+(.+)")
# Clabel: 0; set: 1; Glabel: 1; (VT) round-off, flic-flac on
FINEGYM_CLASS = re.compile(r"Clabel:\s*(\d+);.*;\s*([^;]+)")
CLASS_LINES = {"charades": CHARADES_CLASS, "finegym": FINEGYM_CLASS}
FOLDER_SUFFIXES = (".csv", ".json", ".txt")

Classes = dict[str, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class SegmentFiles:
    """Files by what they hold."""

    segments: list[Segment] = field(default_factory=list)
    """All segments of the files, in order."""
    others: list[Path] = field(default_factory=list)
    """Files and folders with labels of whole videos."""


def read_segment_files(
    files: Sequence[Path], *, read_as: ReadAs = "auto", label: str = "", fold: int = 1
) -> SegmentFiles:
    """Read the segments of files, of folders of files, and of LeRobot datasets; return the other files as they are.

    Args:
        files: Files, folders with annotation files, and LeRobot datasets.
        read_as: What a file is that could have segments or labels of whole videos.
        label: Which label to take: verb, noun or action of EPIC-Kitchens, element or event of FineGym, or a column.
        fold: Which official split of UCF101 or HMDB51 a folder stands for; see `read_annotations`.

    UserError for files that cannot be read or understood, and for a `label` without segments.
    """
    if read_as == "labels":
        return SegmentFiles(others=list(files))
    datasets = [file for file in files if is_lerobot(file)]
    found = _Sorted.of(chain.from_iterable(_members(file, fold) for file in files if file not in datasets), read_as)
    if not found.sources and not datasets:
        if label:
            raise UserError(f"--label {label} chooses a label of segments, and no file has segments")
        return SegmentFiles(others=list(files))
    segments = [one for dataset in datasets for one in read_episodes(dataset)]
    names, others = _numbered_classes(found.others)
    return SegmentFiles(segments=segments + _named(found.segments(label), names), others=others)


@dataclass(frozen=True, kw_only=True)
class _Sorted:
    sources: list[tuple[Path, object]]
    """Files with segments: the table, or the JSON content."""
    elements: list[Path]
    classes: Classes
    others: list[Path]

    @classmethod
    def of(cls, files: Iterable[Path], read_as: ReadAs) -> "_Sorted":
        found = cls(sources=[], elements=[], classes={}, others=[])
        for file in files:
            found.add(file, read_as)
        return found

    def add(self, file: Path, read_as: ReadAs) -> None:
        if file.is_dir():
            self.others.append(file)
        elif file.suffix.lower() == ".json":
            self._add_json(file, read_as)
        elif is_element_list(file):
            self.elements.append(file)
        elif (classes := _class_names(file)) is not None:
            kind, names = classes
            self.classes[kind] = names
        elif (table := SegmentTable.of_csv(file)) is not None and table.has_segments(read_as):
            self.sources.append((file, table))
        else:
            self._add_other(file, read_as)

    def segments(self, label: str) -> list[Segment]:
        elements = Elements.read(self.elements)
        segments: list[Segment] = []
        for file, content in self.sources:
            if isinstance(content, SegmentTable):
                segments += content.segments(label, self.classes)
            elif is_activitynet(content):
                if label:
                    raise UserError(f"{file} has one kind of labels; --label is for files with several")
                segments += of_activitynet(file, content)  # type: ignore[arg-type]
            else:
                names = self.classes.get("finegym", {})
                segments += of_finegym(file, content, elements.named(names), label)  # type: ignore[arg-type]
        return segments

    def _add_json(self, file: Path, read_as: ReadAs) -> None:
        content = read_json(file)
        table = SegmentTable.of_json(file, content)
        if is_activitynet(content) or is_finegym(content):
            self.sources.append((file, content))
        elif table is not None and table.has_segments(read_as):
            self.sources.append((file, table))
        else:
            self._add_other(file, read_as)

    def _add_other(self, file: Path, read_as: ReadAs) -> None:
        if read_as == "segments":
            raise UserError(f"{file} has no segments: want columns such as path, start_s, end_s, label, split")
        self.others.append(file)


def _members(file: Path, fold: int) -> list[Path]:
    """The files of a folder of annotation files; any other folder or file by itself."""
    if not file.is_dir() or not is_annotation_folder(file, fold):
        return [file]
    members = sorted(one for one in file.iterdir() if one.is_file() and one.suffix.lower() in FOLDER_SUFFIXES)
    found = _Sorted.of(members, "auto")
    # A folder without segments is read as before: its files depend on the fold.
    return members if found.sources else [file]


def _numbered_classes(files: Sequence[Path]) -> tuple[dict[str, str], list[Path]]:
    """The names of a class list among the files (`class_lists.py`), by number, and the other files."""
    lists = {file: names for file in files if file.is_file() and (names := _class_list(file)) is not None}
    if len(lists) > 1:
        raise UserError(f"{len(lists)} class lists were given; give the one whose numbers the others use")
    return next(iter(lists.values()), {}), [file for file in files if file not in lists]


def _class_list(file: Path) -> dict[str, str] | None:
    return parse_class_list(read_json(file)) if file.suffix.lower() == ".json" else read_class_list(file)


def _named(segments: list[Segment], names: Mapping[str, str]) -> list[Segment]:
    """The segments with names for class numbers; one whose number has no name gets a problem."""
    if not names:
        return segments
    return [
        replace(one, label=names.get(one.label, one.label), problem=one.problem or _unnamed(one.label, names))
        if one.label and one.label.isdigit()
        else one
        for one in segments
    ]


def _unnamed(number: str, names: Mapping[str, str]) -> str:
    return "" if number in names else f"the class list of {len(names)} lacks the label {number}"


def _class_names(file: Path) -> tuple[str, dict[str, str]] | None:
    """The kind and the names of a class list of EPIC-Kitchens, Charades or FineGym; None for another file."""
    lines = [line.strip() for line in read_lines(file).values()]
    for kind, pattern in CLASS_LINES.items():
        if lines and all(pattern.fullmatch(line) for line in lines):
            return kind, {match[1]: match[2].strip() for line in lines if (match := pattern.fullmatch(line))}
    if header_columns(file)[:2] == ["id", "key"]:
        kinds = [kind for kind in ("verb", "noun") if kind in file.name.lower()]
        if len(kinds) != 1:
            raise UserError(f"{file} is a class list of EPIC-Kitchens: its name must say verb or noun")
        return kinds[0], {line.readings[0]["id"]: line.readings[0]["key"] for line in read_table(file)}
    return None

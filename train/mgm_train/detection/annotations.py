"""The annotation files of AVA: action classes, labelled boxes, and the key frames that are not scored.

A folder of annotations has, for AVA v2.2: ava_train_v2.2.csv and ava_val_v2.2.csv, a line for each (box, action);
ava_action_list_v2.2_for_activitynet_2019.pbtxt with the 60 scored classes, and perhaps ava_action_list_v2.2.pbtxt with
all 80; ava_val_excluded_timestamps_v2.2.csv. Other data sets take the same forms and names.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgm_shared.errors import UserError
from mgm_shared.text_files import read_text
from mgm_train.detection.box_tables import BoxTable, Moment, read_box_csv, read_moments

# A name and a number in a block of a label list, in either order.
BLOCK = re.compile(r"\{([^{}]*)\}")
NAME = re.compile(r"""\bname\s*:\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")
NUMBER = re.compile(r"\b(?:id|label_id)\s*:\s*(\d+)")
# Words in the names of CSV files that are no labels.
NO_LABELS = {"excluded", "predicted", "proposals", "detections", "boxes", "det"}
# A list of classes with a higher number is no list of classes.
MAX_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True)
class ActionClasses:
    """The classes by their number, from 1. Numbers without a name are not used; only `scored` ones count in a test."""

    names: list[str]
    """Name of class number k + 1; empty where the lists have none."""
    scored: list[int]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """A folder of annotation files."""

    folder: Path

    @property
    def classes(self) -> ActionClasses:
        """All classes of the lists in the folder; the scored ones are those of a list for ActivityNet, if there is one.

        UserError when the folder has no list, or one that cannot be read.
        """
        files = sorted([*self.folder.glob("*.pbtxt"), *self.folder.glob("*.pbtxt.txt")])
        if not files:
            raise UserError(
                f"{self.folder} has no action list, such as ava_action_list_v2.2_for_activitynet_2019.pbtxt"
            )
        lists = {file: read_class_list(file) for file in files}
        of_challenge = [names for file, names in lists.items() if "activitynet" in file.name]
        if len(of_challenge) > 1:
            raise UserError(f"{self.folder} has several action lists for ActivityNet; keep the one of your version")
        name_of = {number: name for names in lists.values() for number, name in names.items()}
        scored = of_challenge[0] if of_challenge else name_of
        names = [name_of.get(number, "") for number in range(1, max(name_of) + 1)]
        return ActionClasses(names=names, scored=sorted(scored))

    def labels(self, split: str) -> BoxTable:
        """The labelled boxes of a split: a row for each box and action. UserError for a class that no list has."""
        table = read_box_csv(self._file(split), last="person")
        classes = self.classes
        # 0 stands for no action.
        is_known_K = np.array([True, *map(bool, classes.names)])
        is_known_B = (table.class_B <= len(classes)) & is_known_K[table.class_B.clip(max=len(classes))]
        if not is_known_B.all():
            row = int((~is_known_B).argmax())
            raise UserError(f"{table.file}, row {row + 1}: no action list has class {table.class_B[row]}")
        return table

    def excluded(self, split: str) -> set[Moment]:
        """The key frames of a split that are not scored; none where there is no such file."""
        files = [file for file in self._csv_files(split) if "excluded" in _words(file)]
        return set().union(*map(read_moments, files))

    def _file(self, split: str) -> Path:
        files = [file for file in self._csv_files(split) if not NO_LABELS & _words(file)]
        if len(files) != 1:
            found = f"several: {', '.join(file.name for file in files)}" if files else "none"
            wanted = f"one CSV file of labelled boxes for split {split!r}, such as ava_{split}_v2.2.csv"
            raise UserError(f"{self.folder} must have {wanted}; it has {found}")
        return files[0]

    def _csv_files(self, split: str) -> list[Path]:
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is no folder of annotation files")
        return sorted(file for file in self.folder.glob("*.csv") if split in _words(file))


def read_class_list(file: Path) -> dict[int, str]:
    """Number → name of the blocks `item { name: "…" id: N }`.

    UserError where a block lacks one of them, or two blocks have the same.
    """
    name_of: dict[int, str] = {}
    for block in BLOCK.findall(read_text(file)):
        name, number = NAME.search(block), NUMBER.search(block)
        if name is None or number is None or not 1 <= int(number[1]) <= MAX_CLASSES:
            raise UserError(f"{file}: a block has no name, or no id from 1 to {MAX_CLASSES}: {' '.join(block.split())}")
        if int(number[1]) in name_of:
            raise UserError(f"{file} has class {number[1]} twice")
        name_of[int(number[1])] = re.sub(r"\\(.)", r"\1", name[1][1:-1])
    if len(set(name_of.values())) < len(name_of):
        raise UserError(f"{file} has two classes of the same name")
    if not name_of:
        raise UserError(f'{file} is no action list: it has no block such as label {{ name: "stand" label_id: 12 }}')
    return name_of


def _words(file: Path) -> set[str]:
    return set(re.split(r"[_\-. ]", file.name.lower()))

"""Labels as class numbers: of all samples of a split, or of those that a class map names.

A class map assigns a class to some labels of a store; videos with other labels are left out. It lets a model train on
the classes that two data sets share, and be tested on the other data set (partial domain adaptation).
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.index import codes
from mgm_shared.samples import SampleSource
from mgm_shared.text_files import is_text, read_lines

MAP_COLUMNS = ["label", "class"]
LEFT_OR_RIGHT = re.compile(r"\b(left|right)\b")


def read_class_map(file: Path) -> dict[str, str]:
    """Read a CSV file with the columns `label` and `class` as label → class. UserError for anything else."""
    try:
        lines = read_lines(file)
    except UserError as error:
        raise UserError(f"{error}; give a CSV file with the columns label and class") from None
    if not all(map(is_text, lines.values())):
        raise UserError(f"{file} is not UTF-8 text; convert it to UTF-8")
    # A name in quotes may hold a line break.
    rows = list(csv.reader(io.StringIO("\n".join(lines.values()), newline=""), skipinitialspace=True))
    rows = [row for row in rows if any(row)]
    if not rows or rows[0] != MAP_COLUMNS or any(len(row) != 2 or not all(row) for row in rows):
        raise UserError(f"{file} must begin with the line `label,class` and have two names in every line")
    label_of_row = [label for label, _ in rows[1:]]
    if twice := sorted({label for label in label_of_row if label_of_row.count(label) > 1}):
        raise UserError(f"{file} names a label twice: {_some(twice)}")
    return dict(rows[1:])


def noun_of(store: SampleSource | None, count: int = 1) -> str:
    """What to call `count` samples in messages: video or segment."""
    noun = "segment" if getattr(store, "is_segments", False) else "video"
    return noun if count == 1 else f"{noun}s"


def split_rows(store: SampleSource, split: str) -> NDArray[np.int64]:
    """The rows of `store.table`, the samples, that belong to a split, ascending. UserError if there are none.

    If no sample is marked for training, the samples without a split are; otherwise, as in HMDB51, only the marked ones.
    """
    code_of_row, splits = codes(store.table, "split")
    unmarked = "none" if "train" in splits else "train"
    rows = np.flatnonzero(np.array([(name or unmarked) == split for name in splits])[code_of_row])
    if not len(rows):
        noun = noun_of(store)
        there = ", ".join(sorted({name or unmarked for name in splits})) or f"no {noun} at all"
        raise UserError(f"{store.path} has no {noun} of split {split!r}, only {there}")
    return rows


def class_names(store: SampleSource, split: str = "train", class_map: Mapping[str, str] | None = None) -> list[str]:
    """The sorted class names of a split; class k is the k-th name. UserError if a sample has no label."""
    _, name_of_row = _classes(store, split, class_map)
    return sorted(set(name_of_row.tolist()))


def label_numbers(
    store: SampleSource, split: str, classes: list[str], class_map: Mapping[str, str] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a split that are used, and the class number of each. UserError for a label not in `classes`."""
    rows, name_of_row = _classes(store, split, class_map)
    names, code_of_row = np.unique(name_of_row, return_inverse=True)
    place_of = {name: place for place, name in enumerate(classes)}
    if unknown := sorted(set(names.tolist()) - set(place_of)):
        raise UserError(f"split {split!r} of {store.path} has labels that training does not know: {_some(unknown)}")
    return rows, np.array([place_of[name] for name in names.tolist()])[code_of_row]


def label_subset(label_N: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """Places of the videos whose labels are used, ascending: `fraction` of each class, rounded, and at least one.

    The videos of a class are drawn by (seed, class) alone, and a larger fraction contains a smaller one of the same
    seed, so runs that differ in the fraction or in anything else but the seed are compared on the same videos.
    """
    share = Fraction(fraction).limit_denominator(10_000)
    kept = []
    for label in np.unique(label_N).tolist():
        places = np.flatnonzero(label_N == label)
        num_kept = max(1, int(share * len(places) + Fraction(1, 2)))
        kept.append(np.random.default_rng([seed, label]).permutation(places)[:num_kept])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def describe_map(store: SampleSource, split: str, class_map: Mapping[str, str]) -> str:
    """Describe how many samples of a split a class map uses, and which of its labels no video of the store has."""
    rows, _ = _classes(store, split, class_map)
    nouns = noun_of(store, 2)
    text = f"the class map takes {len(rows)} of {len(split_rows(store, split))} {nouns} of split {split!r}"
    absent = sorted(set(class_map) - set(codes(store.table, "label")[1]))
    return f"{text}; no {noun_of(store)} of {store.path} has the label {_some(absent)}" if absent else text


def mirror_pair(store: SampleSource) -> tuple[str, str] | None:
    """Two labels that a mirror image exchanges, such as "moving left" and "moving right"; None if there are none.

    A model that learns from mirrored clips cannot tell them apart. Something-Something has such classes.
    """
    return exchanged_pair(label for label in codes(store.table, "label")[1] if label)


def exchanged_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of some class names that a mirror image exchanges; None if there are none."""
    labels = {label.lower(): label for label in names}
    for name, label in sorted(labels.items()):
        mirrored = LEFT_OR_RIGHT.sub(lambda word: "left" if word[0] == "right" else "right", name)
        if mirrored != name and mirrored in labels:
            return label, labels[mirrored]
    return None


def mirror_warning(store: SampleSource) -> str:
    """A warning for runs that mirror clips of classes that a mirror image exchanges; empty otherwise."""
    return flip_warning(mirror_pair(store))


def flip_warning(pair: tuple[str, str] | None) -> str:
    """A warning for runs that mirror clips of two classes that a mirror image exchanges; empty for None."""
    if pair is None:
        return ""
    return f"warning: half of the clips are mirrored, and {pair[0]!r} mirrored is {pair[1]!r}; use --no-flip"


def _classes(
    store: SampleSource, split: str, class_map: Mapping[str, str] | None
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """The rows of a split that are used, and their class names. UserError if one has no label, or none is used."""
    rows = split_rows(store, split)
    code_of_row, labels = codes(store.table, "label")
    code_of_row = code_of_row[rows]
    is_missing = np.array([not label for label in labels])[code_of_row]
    if is_missing.any():
        raise _without_label(store, int(rows[is_missing.argmax()]))
    names = [label if class_map is None else class_map.get(label or "") for label in labels]
    is_named = np.array([name is not None for name in names])[code_of_row]
    if not is_named.any():
        there = sorted({labels[code] or "" for code in np.unique(code_of_row)})
        raise UserError(f"the class map names no label of split {split!r} of {store.path}, which has {_some(there)}")
    return rows[is_named], np.array([name or "" for name in names])[code_of_row[is_named]]


def _without_label(store: SampleSource, row: int) -> UserError:
    if noun_of(store) == "segment":
        name, advice = store.table["sample_id"][row].as_py(), "attach segments with labels by `mgm-prep labels`"
    else:
        name = store.table["video_id"][row].as_py()
        advice = "extract from class folders, or from a list file with labels"
    return UserError(f"{noun_of(store)} {name!r} has no label; {advice}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + ("…" if len(names) > 5 else "")

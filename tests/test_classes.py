"""Labels as class numbers, and class maps: the published ones against the lists that they are made from."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from synthetic import StandIn

from mgm_shared.errors import UserError
from mgm_train.data.labels import (
    class_names,
    describe_map,
    label_numbers,
    label_subset,
    mirror_pair,
    read_class_map,
    split_rows,
)

CLASS_MAPS = Path(__file__).parent.parent / "pipelines" / "classes"


@dataclass
class TableStore(StandIn):  # type: ignore[misc]  # for a Store
    """As much of a store as its table: videos a, b, c … with these labels and splits."""

    labels: Sequence[str | None]
    splits: Sequence[str | None] = field(default_factory=list)
    path: str = "memory"

    @property
    def table(self) -> Any:
        splits = self.splits or [None] * len(self.labels)
        columns = {"video_id": list("abcdefghij"[: len(self.labels)])}
        return pa.table(columns | {"label": pa.array(self.labels, pa.string()), "split": pa.array(splits, pa.string())})


def test_classes_are_the_sorted_labels_of_the_split() -> None:
    store = TableStore(["up", "down", "up", "left"], ["train", "train", "test", "val"])
    assert class_names(store) == ["down", "up"]
    rows, labels = label_numbers(store, "test", ["down", "up"])
    assert (rows.tolist(), labels.tolist()) == ([2], [1])
    with pytest.raises(UserError, match=r"val.*left"):
        label_numbers(store, "val", ["down", "up"])


def test_a_video_without_a_split_trains() -> None:
    store = TableStore(["x", None], [None, "test"])
    assert split_rows(store, "train").tolist() == [0]
    assert split_rows(store, "test").tolist() == [1]
    with pytest.raises(UserError, match="no video of split 'val', only test, train"):
        split_rows(store, "val")


def test_a_video_without_a_split_does_not_train_beside_those_that_are_marked_for_it() -> None:
    """HMDB51 has 1,666 videos that its lists put into neither split."""
    store = TableStore(["x", "x", "x"], [None, "train", "test"])
    assert split_rows(store, "train").tolist() == [1]
    with pytest.raises(UserError, match="only none, test, train"):
        split_rows(store, "val")


def test_a_video_without_a_label_is_named() -> None:
    with pytest.raises(UserError, match="'b' has no label"):
        class_names(TableStore(["x", None]))


def test_a_class_map_renames_labels_and_leaves_the_others_out() -> None:
    store = TableStore(["Diving", "Archery", "Knitting", "Archery", "Diving"], ["train"] * 3 + ["test"] * 2)
    class_map = {"Diving": "dive", "Archery": "shoot_bow", "Punch": "punch"}
    assert class_names(store, class_map=class_map) == ["dive", "shoot_bow"]
    rows, labels = label_numbers(store, "train", ["dive", "fencing", "shoot_bow"], class_map)
    assert (rows.tolist(), labels.tolist()) == ([0, 1], [0, 2])
    assert describe_map(store, "train", class_map) == (
        "the class map takes 2 of 3 videos of split 'train'; no video of memory has the label Punch"
    )
    with pytest.raises(UserError, match="labels that training does not know: shoot_bow"):
        label_numbers(store, "train", ["dive"], class_map)
    with pytest.raises(UserError, match=r"names no label of split 'test' of memory, which has Archery, Diving"):
        label_numbers(store, "test", ["punch"], {"Punch": "punch"})


def test_two_labels_may_be_one_class() -> None:
    store = TableStore(["jog", "run", "sit"])
    assert class_names(store, class_map={"jog": "run", "run": "run"}) == ["run"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the line `label,class`"),
        ("class,label\na,b\n", "must begin with the line `label,class`"),
        ("label,class\na,b,c\n", "two names in every line"),
        ("label,class\na,\n", "two names in every line"),
        ("label,class\na,b\na,c\n", "names a label twice: a"),
    ],
)
def test_what_is_no_class_map(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_map(tmp_path / "map.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_class_map(tmp_path / "nothing.csv")


def test_classes_that_a_mirror_exchanges_are_found() -> None:
    names = ["Pulling something from left to right", "Pulling something from right to left", "Turning the camera left"]
    assert mirror_pair(TableStore(names)) == (names[0], names[1])
    assert mirror_pair(TableStore(["Left", None, "right", "up"])) == ("Left", "right")
    assert mirror_pair(TableStore(["left hook", "upright", "brightness", "up", None])) is None


@pytest.mark.parametrize(("source", "target"), [("ucf14", "hmdb7"), ("hmdb14", "ucf7")])
def test_the_published_partial_domains(source: str, target: str) -> None:
    """Fourteen classes train; the first seven of the other data set's alphabet are tested (Xu et al. 2021)."""
    trained, tested = read_class_map(CLASS_MAPS / f"{source}.csv"), read_class_map(CLASS_MAPS / f"{target}.csv")
    assert len(set(trained.values())) == len(trained) == 14
    assert len(set(tested.values())) == len(tested) == 7
    assert set(tested.values()) < set(trained.values())
    whole = read_class_map(CLASS_MAPS / f"{target.removesuffix('7')}14.csv")
    assert sorted(tested) == sorted(whole)[:7]
    assert tested.items() <= whole.items()


def test_a_label_in_quotes_may_hold_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_bytes(b'label,class\n"a\nb",c\n"d\r\ne",f\n')
    assert read_class_map(tmp_path / "map.csv") == {"a\nb": "c", "d\ne": "f"}


def test_a_share_of_the_labels_is_of_each_class_and_part_of_a_larger_share() -> None:
    label_N = np.repeat([0, 1, 2, 5], [40, 10, 3, 1])[np.random.default_rng(0).permutation(54)]
    chosen = {share: label_subset(label_N, share, seed=3) for share in (0.05, 0.2, 0.25, 0.5, 1.0)}
    counts = {share: np.bincount(label_N[places], minlength=6).tolist() for share, places in chosen.items()}
    # Rounded, half up, and at least one: a class is never left out.
    assert counts == {
        0.05: [2, 1, 1, 0, 0, 1],
        0.2: [8, 2, 1, 0, 0, 1],
        0.25: [10, 3, 1, 0, 0, 1],
        0.5: [20, 5, 2, 0, 0, 1],
        1.0: [40, 10, 3, 0, 0, 1],
    }
    for smaller, larger in itertools.pairwise(chosen.values()):
        assert set(smaller.tolist()) <= set(larger.tolist())
    assert all(places.tolist() == sorted(set(places.tolist())) for places in chosen.values())
    assert chosen[0.2].tolist() == label_subset(label_N, 0.2, seed=3).tolist()
    assert chosen[0.2].tolist() != label_subset(label_N, 0.2, seed=4).tolist()


def test_another_class_does_not_change_which_videos_of_a_class_are_drawn() -> None:
    both = np.array([0] * 20 + [1] * 20)
    alone = label_subset(np.zeros(20, np.int64), 0.3, seed=1)
    assert label_subset(both, 0.3, seed=1)[:6].tolist() == alone.tolist()

"""AVA's files: labels, action lists, excluded key frames, and person boxes in their three public forms."""

import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_boxes import NAMES, SCORED, Row, write_annotations, write_proposals

from mgm_shared.errors import UserError
from mgm_train.detection.annotations import Annotations, read_class_list
from mgm_train.detection.box_tables import moment_text
from mgm_train.detection.key_frames import KeyFrames
from mgm_train.detection.proposals import read_proposals

BOX, OTHER = (0.1, 0.2, 0.3, 0.5), (0.5, 0.2, 0.9, 0.8)
ROWS: list[Row] = [
    ("one", 902, BOX, 1),
    ("one", 902, OTHER, 5),
    ("one", 902, BOX, 4),
    ("one", 1798, BOX, 2),
    ("-two_", 902, OTHER, 6),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_annotations(tmp_path / "ann", ROWS, excluded="one,0902\n-two_,1000\n")
    return tmp_path / "ann"


def test_labels_become_key_frames_with_distinct_boxes(folder: Path) -> None:
    frames = KeyFrames.of(Annotations(folder=folder).labels("val"), 6)
    assert frames.moments == [("-two_", 902_000), ("one", 902_000), ("one", 1_798_000)]
    assert frames.num_boxes_F.tolist() == [1, 2, 1]
    assert frames.box_B4[frames.boxes_of(1)].tolist() == [list(BOX), list(OTHER)]
    actions = [np.flatnonzero(is_action_K).tolist() for is_action_K in frames.is_action_BK]
    assert actions == [[5], [0, 3], [4], [1]], "classes count from 1, columns from 0"


def test_the_order_of_the_lines_does_not_matter(folder: Path) -> None:
    expected = KeyFrames.of(Annotations(folder=folder).labels("val"), 6)
    write_annotations(folder, ROWS[::-1])
    found = KeyFrames.of(Annotations(folder=folder).labels("val"), 6)
    for name in ("name_F", "time_ms_F", "first_F", "box_B4", "is_action_BK"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_classes_and_excluded_key_frames(folder: Path) -> None:
    annotations = Annotations(folder=folder)
    assert annotations.classes.names == list(NAMES.values())
    assert annotations.classes.scored == list(SCORED)
    assert annotations.excluded("val") == {("one", 902_000), ("-two_", 1_000_000)}
    assert annotations.excluded("train") == set()
    frames = KeyFrames.of(annotations.labels("val"), 6).without(annotations.excluded("val"))
    assert frames.moments == [("-two_", 902_000), ("one", 1_798_000)]
    assert frames.box_B4.tolist() == [list(OTHER), list(BOX)]
    (folder / "toy_action_list_v1.0.pbtxt").unlink()
    assert annotations.classes.names == ["stand", "go left", "fly", "", "go right", "come"], "4 is in no list"
    with pytest.raises(UserError, match="row 3: no action list has class 4"):
        annotations.labels("val")


def test_the_forms_of_action_lists(tmp_path: Path) -> None:
    file = tmp_path / "list.pbtxt"
    text = 'item {\n  name: "bend/bow (at \\"waist\\")"\n  id: 1\n}\nlabel {label_id: 80 label_type: X name: \'lift\'}'
    file.write_text(text)
    assert read_class_list(file) == {1: 'bend/bow (at "waist")', 80: "lift"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no action list"),
        ('item { name: "a" }', "no name, or no id"),
        ('item { name: "a" id: 0 }', "no id from 1"),
        ('item { name: "a" id: 1 } item { name: "b" id: 1 }', "class 1 twice"),
        ('item { name: "a" id: 1 } item { name: "a" id: 2 }', "two classes of the same name"),
    ],
)
def test_other_action_lists_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.pbtxt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / "list.pbtxt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one,902,0.1,0.2,0.3,0.5,1", "Expected 8 columns, got 7"),
        ("one,902,0.1,0.2,x,0.5,1,0", "row 2: the box 'x' is no number"),
        ("one,late,0.1,0.2,0.3,0.5,1,0", "row 2: the time 'late' is no number"),
        ("one,902,10,20,30,50,1,0", "row 2: .* is no box: left, top, right, bottom in shares"),
        ("one,902,nan,0.2,0.3,0.5,1,0", "row 2: nan is no finite box"),
        ("one,-1,0.1,0.2,0.3,0.5,1,0", "row 2: -1.0 is no time"),
        ("one,902,0.1,0.2,0.3,0.5,99,0", "row 2: no action list has class 99"),
        ("one,902,0.1,0.2,0.3,0.5,1.5,0", "row 2: 1.5 is no number of an action"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "toy_val_v1.0.csv").write_text(f"one,902,0.1,0.2,0.3,0.5,1,0\n{line}\n")
    with pytest.raises(UserError, match=message):
        Annotations(folder=folder).labels("val")


def test_lines_of_windows_and_key_frames_without_an_action(folder: Path) -> None:
    (folder / "toy_val_v1.0.csv").write_bytes(b"one,0902,0.1,0.2,0.3,0.5,1,0\r\none,903,0.1,0.2,0.3,0.5,,0\r\n")
    frames = KeyFrames.of(Annotations(folder=folder).labels("val"), 6)
    assert frames.moments == [("one", 902_000), ("one", 903_000)]
    assert frames.is_action_BK.sum(1).tolist() == [1, 0]


def test_a_box_without_an_area_is_left_out_and_its_key_frame_stays(folder: Path) -> None:
    (folder / "toy_val_v1.0.csv").write_text("one,902,0.1,0.2,0.1,0.5,1,0\none,903,0.1,0.2,0.3,0.5,1,0\n")
    frames = KeyFrames.of(Annotations(folder=folder).labels("val"), 6)
    assert frames.num_boxes_F.tolist() == [0, 1]


def test_a_folder_that_lacks_a_file_says_which(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"one CSV file of labelled boxes for split 'test', such as ava_test_v2.2.csv"):
        Annotations(folder=folder).labels("test")
    (folder / "other_val_v3.csv").write_text("")
    with pytest.raises(UserError, match=r"several: other_val_v3.csv, toy_val_v1.0.csv"):
        Annotations(folder=folder).labels("val")
    with pytest.raises(UserError, match="has no action list"):
        _ = Annotations(folder=tmp_path).classes
    with pytest.raises(UserError, match="is no folder"):
        Annotations(folder=tmp_path / "absent").labels("val")


@pytest.mark.parametrize("suffix", ["csv", "json", "pkl"])
def test_the_three_forms_of_proposals_say_the_same(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"proposals.{suffix}"
    write_proposals(file, ROWS, score=0.9)
    found = read_proposals(file, 0.9)
    frames = KeyFrames.of(found.boxes, 6)
    assert frames.moments == [("-two_", 902_000), ("one", 902_000), ("one", 1_798_000)]
    np.testing.assert_allclose(frames.box_B4, [OTHER, BOX, OTHER, BOX], atol=1e-12)
    assert frames.score_B.tolist() == [0.9] * 4
    assert not frames.is_action_BK.any()
    digest = subprocess.run(["sha256sum", file], check=True, capture_output=True, text=True).stdout[:12]
    assert found.description == (
        f"proposals: {file} (sha256 {digest}): 4 of 4 boxes have a score of at least 0.9, in 3 key frames"
    )
    assert len(read_proposals(file, 0.91).boxes) == 0


def test_pictures_of_another_folder_and_of_no_file(tmp_path: Path) -> None:
    (tmp_path / "boxes").mkdir()
    file = tmp_path / "boxes" / "proposals.json"
    write_proposals(file, ROWS)
    (tmp_path / "boxes" / "pictures.json").rename(tmp_path / "pictures.json")
    assert len(read_proposals(file, 0.8, [tmp_path]).boxes) == 4
    with pytest.raises(UserError, match="numbers its pictures; put the JSON file with their list beside it"):
        read_proposals(file, 0.8)


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("called",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_Evil(), r"it names builtins.print; only dicts of arrays are read"),
        ({"one,0902": _Evil()}, r"it names builtins.print"),
        ({"one,0902": np.zeros((2, 4))}, r"'one,0902' is no entry"),
        ({"one": np.zeros((2, 5))}, r"'one' is no entry"),
        ({3: np.zeros((2, 5))}, r"3 is no entry"),
        ([1, 2], "is no pickled dict"),
        ({"one,0902": np.full((1, 5), 2.0)}, "is no box"),
    ],
)
def test_other_pickles_are_rejected_and_call_nothing(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        read_proposals(tmp_path / "proposals.pkl", 0.8)
    assert "called" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps({"one,0902": np.array([[*BOX, 0.9]], np.float32)}, protocol=protocol))
    found = read_proposals(file, 0.8).boxes
    np.testing.assert_allclose(found.box_B4, [BOX], atol=1e-7)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="is damaged, or no pickle of arrays"):
        read_proposals(file, 0.8)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "must be a .csv, .json or .pkl file"),
        ("a.csv", "one,902,0.1,0.2,0.3,0.5,0.9\n", "has 7 columns where 8 are wanted"),
        ("a.csv", "one,902,0.1,0.2,0.3,0.5,,7\n", "row 1: 7.0 is no score from 0 to 1"),
        ("a.json", "[", "is not JSON"),
        ("a.json", '{"a": 1}', "is no list of objects"),
        ("a.json", '{"annotations": [{}], "images": [{"id": 1, "movie": "m", "timestamp": 9}]}',
         "numbers its pictures"),
    ],
)  # fmt: skip
def test_other_files_are_rejected(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_proposals(tmp_path / name, 0.8)
    with pytest.raises(UserError, match="does not exist"):
        read_proposals(tmp_path / "absent.csv", 0.8)


def test_an_empty_file_has_no_proposals(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    assert len(KeyFrames.of(read_proposals(tmp_path / "a.csv", 0.8).boxes, 3)) == 0


@pytest.mark.parametrize(("time_ms", "text"), [(902_000, "0902"), (1_798_000, "1798"), (2_480, "0002.480")])
def test_times_are_written_as_ava_does(time_ms: int, text: str) -> None:
    assert moment_text(time_ms) == text

"""Annotation files as their publishers spell them; the lines are taken from the published formats."""

import json
from pathlib import Path
from typing import Any

import pytest

from mgm_prep.sources.annotations import read_annotations
from mgm_shared.errors import UserError


def _read(file: Path, text: str, fold: int = 1) -> Any:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return _said(read_annotations([file], fold))


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def _said(annotations: Any) -> dict[Any, Any]:
    certain = [a for a in annotations if not a.is_optional]
    return {a.names[0]: (a.values.get("label", "-"), a.values.get("split", "-")) for a in certain}


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\na/0.mp4,wave,train\nb 1.mp4,jump,val\n",
        "\ufeffVideo Path;Class;Subset\na/0.mp4;wave;training\nb 1.mp4;jump;validate\n",
        "split\tlabel_id\tlabel_name\tfilename\nTrain\t3\twave\ta/0.mp4\nVal\t4\tjump\tb 1.mp4\n",
        "a/0.mp4,wave,train\nb 1.mp4,jump,val\n",
        '# mine\n\n"a/0.mp4", "wave", train\n"b 1.mp4", jump, val\n',
        "  id  , label , split , is_cc\n a/0.mp4 , wave , train , 0\n b 1.mp4, jump, validation, 1\n",
    ],
)
def test_tables_with_and_without_header(tmp_path: Path, text: str) -> None:
    assert _read(tmp_path / "mine.csv", text) == {"a/0.mp4": ("wave", "train"), "b 1.mp4": ("jump", "val")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.csv", "/data/a b/0.mp4 17\n/data/1.webm 2\n"),
        ("k400_train.csv", "/data/a b/0.mp4,17\n/data/1.webm,2\n"),
        ("training_list.txt", "/data/a b/0.mp4\t17\n/data/1.webm\t2\n"),
    ],
)
def test_videomae_s_lists(tmp_path: Path, name: str, text: str) -> None:
    assert _read(tmp_path / name, text) == {"/data/a b/0.mp4": ("17", "train"), "/data/1.webm": ("2", "train")}


def test_a_list_without_suffixes_and_one_of_names_alone(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.txt", "78687 Holding something\n12 Closing something\n")["12"] == (
        "Closing something",
        "-",
    )
    assert _read(tmp_path / "contest.txt", "a b.mp4\nc.mp4\n") == {"a b.mp4": ("-", "-"), "c.mp4": ("-", "-")}


def test_something_something_v2(tmp_path: Path) -> None:
    row = {"id": "78687", "label": "holding potato", "template": "Holding [something] next to [something]"}
    (tmp_path / "something-something-v2-train.json").write_text(json.dumps([row | {"placeholders": ["potato", "x"]}]))
    (tmp_path / "something-something-v2-validation.json").write_text(json.dumps([row | {"id": "74225"}]))
    (tmp_path / "something-something-v2-test.json").write_text('[{"id": "1420"}, {"id": "3"}]')
    (tmp_path / "something-something-v2-labels.json").write_text(
        '{"Holding something next to something": "0", "Moving something, and something away": "1"}'
    )
    (tmp_path / "test-answers.csv").write_text("1420;Moving something, and something away\n3;Pushing something\n")
    annotations = read_annotations([tmp_path])
    merged: dict[str, dict[str, str | None]] = {}
    for annotation in annotations:
        merged.setdefault(annotation.names[0], {}).update(annotation.values)
    assert merged == {
        "78687": {"label": "Holding something next to something", "split": "train"},
        "74225": {"label": "Holding something next to something", "split": "val"},
        "1420": {"label": "Moving something, and something away", "split": "test"},
        "3": {"label": "Pushing something", "split": "test"},
    }


def test_kinetics(tmp_path: Path) -> None:
    text = (
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "testifying,---QUuC4vJs,84,94,validate,0\n"
        '"air drumming, loud",--nQbRBEz2s,104,114,train,1\n'
    )
    assert _read(tmp_path / "kinetics.csv", text) == {
        "---QUuC4vJs_000084_000094": ("testifying", "val"),
        "--nQbRBEz2s_000104_000114": ("air drumming, loud", "train"),
    }
    unlabelled = "youtube_id,time_start,time_end,split\nabc,0.0,10.0,test\n"
    assert _read(tmp_path / "test.csv", unlabelled) == {"abc_000000_000010": ("-", "test")}


def test_ucf101(tmp_path: Path) -> None:
    folder = tmp_path / "ucfTrainTestlist"
    train = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nArchery/v_Archery_g08_c01.avi 3\n"
    _read(folder / "trainlist02.txt", "Archery/v_Archery_g01_c01.avi 3\n")
    _read(folder / "trainlist01.txt", train)
    _read(folder / "testlist01.txt", "Archery/v_Archery_g01_c01.avi\r\n")
    (folder / "classInd.txt").write_text("1 ApplyEyeMakeup\n3 Archery\n")
    assert _said(read_annotations([folder])) == {
        "Archery/v_Archery_g01_c01.avi": ("Archery", "test"),
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": ("ApplyEyeMakeup", "train"),
        "Archery/v_Archery_g08_c01.avi": ("Archery", "train"),
    }
    assert _said(read_annotations([folder], 2)) == {"Archery/v_Archery_g01_c01.avi": ("Archery", "train")}
    with pytest.raises(UserError, match="holds no annotation file"):
        read_annotations([tmp_path])


def test_ucf101_s_names_may_hold_spaces_and_signs(tmp_path: Path) -> None:
    text = "Yo Yo/v_Yo Yo_g08 c01.avi 1\n#1/a.avi 3\nArchery/7.avi\n"
    annotations = {a.names[0]: a for a in read_annotations([_written(tmp_path / "trainlist01.txt", text)])}
    assert {name: a.values for name, a in annotations.items()} == {
        "Yo Yo/v_Yo Yo_g08 c01.avi": {"label": "Yo Yo", "split": "train"},
        "#1/a.avi": {"label": "#1", "split": "train"},
        "Archery/7.avi": {"label": "Archery", "split": "train"},
    }
    assert [a.is_optional for a in annotations.values()] == [False, True, False]


def test_hmdb51(tmp_path: Path) -> None:
    folder = tmp_path / "testTrainMulti_7030_splits"
    text = "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n#20_Rhythm_u_nm_np1_fr_goo_0.avi 2 \natm_0.avi 0 \n"
    _read(folder / "brush_hair_test_split2.txt", "other.avi 1\n")
    assert _read(folder / "brush_hair_test_split1.txt", text) == {
        "April_09_brush_hair_u_nm_np1_ba_goo_0.avi": ("brush_hair", "train"),
        "#20_Rhythm_u_nm_np1_fr_goo_0.avi": ("brush_hair", "test"),
        "atm_0.avi": ("brush_hair", None),
    }
    assert len(read_annotations([folder])) == 3
    assert _said(read_annotations([folder], 2)) == {"other.avi": ("brush_hair", "train")}


def test_diving48_and_its_vocabulary(tmp_path: Path) -> None:
    text = '[{"vid_name": "-mmq0PT-u8k_00155", "label": 1, "start_frame": 0, "end_frame": 117}]'
    file = tmp_path / "Diving48_V2_test.json"
    assert _read(file, text) == {"-mmq0PT-u8k_00155": ("1", "test")}
    vocabulary = tmp_path / "Diving48_vocab.json"
    vocabulary.write_text('[["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]]')
    assert _said(read_annotations([vocabulary, file])) == {"-mmq0PT-u8k_00155": ("Back 15som 15Twis FREE", "test")}
    vocabulary.write_text('["dive"]')
    with pytest.raises(UserError, match="-mmq0PT-u8k_00155 has label 1, which the class list of 1 lacks"):
        read_annotations([file, vocabulary])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,label,split\na.mp4,wave,train\nb.mp4,jump\n", r"a\.csv, line 3: 2 values under a header of 3"),
        ("a.csv", "path,label,split\na.mp4,wave,holdout\n", r"line 2: split 'holdout' is not train, val or test"),
        ("a.csv", "\na.mp4,wave,x\n", r"line 2: want `path,label,split`"),
        ("a.txt", "a.mp4 0 -1\n", r"line 1: want `path label`, and several numbers"),
        ("a.txt", "a 40 7\n", r"line 1: want `path label`, and several numbers"),
        ("a.csv", "path,label\n,wave\n", r"line 2: nothing names the video"),
        ("a_test_split1.txt", "a.avi 3\n", r"line 1: 'a\.avi 3' does not end in 0"),
        ("classInd.txt", "wave\n", "want a number and a class name"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"a.mp4": "wave"}', "want a list of objects"),
        ("a.json", '[{"label": "wave"}]', "entry 1: nothing names the video"),
    ],
)
def test_what_cannot_be_understood_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _read(tmp_path / name, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classInd.txt", "1 wave\n2 jump\n"),
        ("mine.csv", "path,label\na.mp4,größe\n"),
        ("mine.json", '[{"path": "a.mp4", "label": "größe"}]'),
        ("testlist01.txt", "größe/a.mp4\n"),
        ("größe_test_split1.txt", "a.mp4 1\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_every_format_in_the_encodings_of_windows(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
    read = read_annotations([tmp_path / name])
    assert [a.values["label"] for a in read] == ([] if name == "classInd.txt" else ["größe"])


def test_a_very_long_name(tmp_path: Path) -> None:
    """The csv module refuses values of more than 128 KiB."""
    name = "x" * 200_000
    assert _read(tmp_path / "a.csv", f"{name},1\nb\n") == {name: ("1", "-"), "b": ("-", "-")}


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("a.mp4,1\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="it has NUL bytes; save it as UTF-8"):
        read_annotations([tmp_path / "a.csv"])
    (tmp_path / "a.csv").write_bytes(b"\xff\xfea")
    with pytest.raises(UserError, match="begins as UTF-16 text but is none"):
        read_annotations([tmp_path / "a.csv"])
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON"):
        read_annotations([tmp_path / "a.json"])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_annotations([tmp_path / "none.csv"])
    (tmp_path / "latin.csv").write_bytes("a.mp4,Crème\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_annotations([tmp_path / "latin.csv"])
    for name in ("classInd.txt", "classes.txt"):
        (tmp_path / name).write_text("1 a\n")
    with pytest.raises(UserError, match="2 class lists were given"):
        read_annotations([tmp_path / "classInd.txt", tmp_path / "classes.txt"])

"""Labels and splits attached to a store: which video is meant, what stays, what is reported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mgm_prep.cli import main
from mgm_prep.extraction.matching import match_videos
from mgm_prep.sources.annotations import Annotation, read_annotations
from mgm_shared.store import Store, open_store

IDS = ["train/a/0.mp4", "train/b/0.mp4", "20bn/78687.webm", "20bn/1.webm", "x.avi", "x.mp4", "deep/er/y.mov"]


def _match(*names: str, ids: list[str] = IDS) -> Any:
    entries = [Annotation(names=(name,), values={"label": str(number)}) for number, name in enumerate(names)]
    return match_videos(entries, ids)


@pytest.mark.parametrize(
    ("name", "video_id"),
    [
        ("train/a/0.mp4", "train/a/0.mp4"),
        ("a/0", "train/a/0.mp4"),
        ("/data/k400/train/b/0.avi", "train/b/0.mp4"),
        ("78687", "20bn/78687.webm"),
        ("/elsewhere/78687.mp4", "20bn/78687.webm"),
        ("x.mp4", "x.mp4"),
        ("./deep\\er\\y.mov", "deep/er/y.mov"),
    ],
)
def test_a_name_finds_its_video(name: str, video_id: str) -> None:
    match = _match(name)
    assert list(match.values) == [video_id]
    assert not match.unmatched + match.ambiguous


@pytest.mark.parametrize("name", ["0.mp4", "x", "x.mkv"])
def test_a_name_of_several_is_ambiguous(name: str) -> None:
    match = _match(name)
    assert (match.values, match.unmatched, match.ambiguous) == ({}, [], [name])


def test_what_fits_nothing_is_never_guessed() -> None:
    assert _match("c/0.mp4").unmatched == ["c/0.mp4"]
    assert _match("686", "8687.webm", "er").unmatched == ["686", "8687.webm", "er"]
    # Two files of one name in the list, one in the store: it could be either.
    match = _match("p/78687.webm", "q/78687.webm")
    assert (match.values, match.unmatched) == ({}, ["p/78687.webm", "q/78687.webm"])


def test_entries_that_contradict_each_other_are_ambiguous() -> None:
    assert _match("x.mp4", "x.mp4").ambiguous == ["x.mp4"]
    same = [Annotation(names=("1",), values={"label": "a"}), Annotation(names=("1",), values={"label": "a"})]
    assert match_videos(same, IDS).values == {"20bn/1.webm": {"label": "a"}}
    both = [Annotation(names=("1",), values={"label": "a"}), Annotation(names=("1",), values={"split": "test"})]
    assert match_videos(both, IDS).values == {"20bn/1.webm": {"label": "a", "split": "test"}}
    second = [Annotation(names=("yt_000001_000011", "yt"), values={"label": "a"})]
    assert match_videos(second, ["k/yt.mp4"]).values == {"k/yt.mp4": {"label": "a"}}
    assert match_videos(second, ["k/yt.mp4", "k/yt_000001_000011.mp4"]).values.keys() == {"k/yt_000001_000011.mp4"}


def test_names_that_begin_with_a_number_sign(tmp_path: Path) -> None:
    """A line is a comment only if no video has its name; one that was commented out attaches nothing."""
    ids = ["brush_hair/#20_Rhythm.avi", "train/a/0.mp4", "#x/1.mp4", "1.mp4"]
    (tmp_path / "list.txt").write_text("# of mine\n#20_Rhythm.avi hair\n#train/a/0.mp4 a\n#x/1.mp4 b\n#1.mp4 c\n")
    match = match_videos(read_annotations([tmp_path / "list.txt"]), ids)
    assert match.values == {"brush_hair/#20_Rhythm.avi": {"label": "hair"}, "#x/1.mp4": {"label": "b"}}
    assert match.comments == ["# of mine", "#train/a/0.mp4 a", "#1.mp4 c"]
    assert (match.unmatched, match.ambiguous) == ([], [])
    # HMDB51's own lists have no comments.
    (tmp_path / "hair_test_split1.txt").write_text("#20_Rhythm.avi 1\n#21_gone.avi 2\n# mine\n")
    match = match_videos(read_annotations([tmp_path / "hair_test_split1.txt"]), ids)
    assert match.values == {"brush_hair/#20_Rhythm.avi": {"label": "hair", "split": "train"}}
    assert (match.unmatched, match.comments) == (["#21_gone.avi"], ["# mine"])


def test_odd_names_are_matched_by_what_the_store_has(tmp_path: Path) -> None:
    ids = ["a,b.mp4", "two words.mp4", "x.avi.mp4", "x.mkv.mp4", r"caf\xe9.mp4", "xe9.mp4", "\u2028line.mp4"]
    text = "a,b.mp4,1\ntwo words.mp4,2\nx.avi,3\nx.mkv,4\ncaf\udce9.mp4,5\nxe9,6\n\u2028line.mp4,7\n"
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    match = match_videos(read_annotations([tmp_path / "list.csv"]), ids)
    assert match.values == {video_id: {"label": str(number)} for number, video_id in enumerate(ids, 1)}
    assert (match.unmatched, match.ambiguous) == ([], [])


def test_copies_of_one_name_are_told_apart_by_the_suffix_of_their_video() -> None:
    """As `transcode` names them when a.mkv came after a.avi."""
    match = _match("a.avi", "a.mkv", ids=["a.mp4", "a.mkv.mp4"])
    assert match.values == {"a.mp4": {"label": "0"}, "a.mkv.mp4": {"label": "1"}}


@pytest.fixture
def store(pan_store: Store, tmp_path: Path) -> Path:
    return shutil.copytree(str(pan_store.path), tmp_path / "copy.store")


def _labels(store: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["labels", str(store), *map(str, arguments)])


def _bytes(folder: Path) -> dict[Any, Any]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_labels_are_attached_and_no_frame_is_touched(store: Path, tmp_path: Path) -> None:
    parts, digest = _bytes(store / "parts"), open_store(store).digest
    text = "path,label\ntrain/left/0.mp4,west\ntest/up/0.mp4,north\nnone.mp4,x\n0.mp4,y\n#train/up/0.mp4,z\n"
    (tmp_path / "mine.csv").write_text(text)
    result = _labels(store, tmp_path / "mine.csv", "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["listed"], summary["attached"], summary["unmatched"], summary["ambiguous"]) == (5, 2, 1, 1)
    assert summary["comments"] == 1
    assert "1 entries begin with # and name no video, so they count as comments, such as #train" in result.stderr
    assert "1 entries name no video of the store, such as none.mp4" in result.stderr
    videos = open_store(store).videos
    assert videos["label"].to_dict() == {
        **{f"{split}/{label}/0.mp4": label for split in ("train", "test") for label in ("left", "right", "up", "down")},
        "train/left/0.mp4": "west",
        "test/up/0.mp4": "north",
    }
    # The splits are still those of the folders.
    assert all(str(video_id).startswith(split) for video_id, split in videos["split"].items())
    assert open_store(store).digest != digest
    assert _bytes(store / "parts") == parts
    (store / "index.parquet").unlink()
    assert open_store(store).videos["label"].to_dict() == videos["label"].to_dict()
    assert CliRunner().invoke(main, ["index", str(store)]).exit_code == 0
    assert CliRunner().invoke(main, ["verify", str(store)]).exit_code == 0
    assert open_store(store)["train/left/0.mp4"].label == "west"


def test_what_a_later_file_does_not_say_stays(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("path,label\ntrain/left/0.mp4,west\n")
    (tmp_path / "mine_test.txt").write_text("train/left/0.mp4\n")
    assert _labels(store, tmp_path / "mine.csv").exit_code == 0
    assert _labels(store, tmp_path / "mine_test.txt").exit_code == 0
    video = open_store(store)["train/left/0.mp4"]
    assert (video.label, video.split) == ("west", "test")
    before = _bytes(store)
    assert _labels(store, tmp_path / "mine_test.txt", tmp_path / "mine.csv").exit_code == 0
    assert _bytes(store) == before
    assert _labels(store, tmp_path / "mine.csv", "-n").exit_code == 0
    assert _bytes(store) == before


def test_class_folders_can_be_attached(store: Path, pan_videos: Path, tmp_path: Path) -> None:
    for path in pan_videos.glob("*/*/0.mp4"):
        copy = tmp_path / "sorted" / f"{path.parent.name}s" / path.relative_to(pan_videos)
        copy.parent.mkdir(parents=True)
        copy.touch()
    assert _labels(store, tmp_path / "sorted").exit_code == 0
    # The longest path decides: `lefts/train/left/0.mp4` is the store's `train/left/0.mp4`.
    assert open_store(store)["train/left/0.mp4"].label == "lefts/train/left"


def test_bad_input_changes_nothing(store: Path, tmp_path: Path) -> None:
    before = _bytes(store)
    (tmp_path / "mine.csv").write_text("path,label\nnone.mp4,west\n")
    for arguments, message in {
        (tmp_path / "none.csv",): "cannot be read",
        (tmp_path / "mine.csv",): "the files name no video of",
    }.items():
        result = _labels(store, *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert "is not an mgm store" in _labels(tmp_path, tmp_path / "mine.csv").stderr
    assert _bytes(store) == before


def test_extract_attaches_labels_too(pan_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("path,label\ntrain/left/0.mp4,west\n")
    arguments = ["extract", pan_videos, tmp_path / "out.store", "--workers", 0, "--labels", tmp_path / "mine.csv"]
    assert CliRunner().invoke(main, [str(argument) for argument in arguments]).exit_code == 0
    video = open_store(tmp_path / "out.store")["train/left/0.mp4"]
    assert (video.label, video.split) == ("west", "train")
    before = _bytes(tmp_path / "out.store")
    assert CliRunner().invoke(main, [str(argument) for argument in arguments]).exit_code == 0
    assert _bytes(tmp_path / "out.store") == before
    bad = [*arguments[:2], tmp_path / "bad.store", "--labels", tmp_path / "none.csv"]
    assert CliRunner().invoke(main, [str(argument) for argument in bad]).exit_code == 2
    assert not (tmp_path / "bad.store").exists()

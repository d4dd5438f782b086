"""Which files of a directory are videos, and what their folders say."""

import pytest

from mgm_prep.sources.discover import Source, find_sources
from mgm_shared.errors import UserError


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_are_labels_and_splits(tmp_path):
    _touch(tmp_path, "train/wave/b.mp4", "test/wave/a.MKV", "jump/x.webm", "y.avi", "validation/n.mp4", "a/b/z.ts")
    found = find_sources(tmp_path)
    assert [(s.video_id, s.label, s.split) for s in found.sources] == [
        ("a/b/z.ts", "a/b", None),
        ("jump/x.webm", "jump", None),
        ("test/wave/a.MKV", "wave", "test"),
        ("train/wave/b.mp4", "wave", "train"),
        ("validation/n.mp4", None, "val"),
        ("y.avi", None, None),
    ]


def test_other_files_are_counted_and_loops_end(tmp_path):
    _touch(tmp_path, "a.mp4", "notes.txt", "labels.csv", "README", ".hidden.mp4", ".cache/c.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/loop").symlink_to(tmp_path / "b")
    found = find_sources(tmp_path)
    assert [source.video_id for source in found.sources] == ["a.mp4"]
    assert found.ignored == {".txt": 1, ".csv": 1, "no suffix": 1}


def test_links_to_folders_are_followed_once(tmp_path):
    """Two folders that hold links to each other make a loop of two steps."""
    _touch(tmp_path, "data/wave/a.mp4", "data/jump/b.mp4", "elsewhere/c.mp4")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/wave/over").symlink_to(tmp_path / "data/jump")
    (tmp_path / "data/jump/back").symlink_to(tmp_path / "data/wave")
    assert [source.video_id for source in find_sources(tmp_path / "data").sources] == [
        "jump/b.mp4",
        "jump/back/a.mp4",
        "linked/c.mp4",
        "wave/a.mp4",
        "wave/over/b.mp4",
    ]


def test_a_list_file(tmp_path):
    (tmp_path / "list.txt").write_text("# path label\n\nb.mp4 left\ntrain/c d.mp4,right\na.mp4\n")
    assert find_sources(tmp_path / "list.txt").sources == [
        Source(video_id="a.mp4", path=tmp_path / "a.mp4", label=None, split=None),
        Source(video_id="b.mp4", path=tmp_path / "b.mp4", label="left", split=None),
        Source(video_id="train/c d.mp4", path=tmp_path / "train/c d.mp4", label="right", split="train"),
    ]
    (tmp_path / "list.csv").write_text("a.mp4,left,train\nb.mp4,right,test\nc.mp4,,val\n")
    splits = [(source.label, source.split) for source in find_sources(tmp_path / "list.csv").sources]
    assert splits == [("left", "train"), ("right", "test"), (None, "val")]
    (tmp_path / "list.csv").write_text("a.mp4,left,training1\n")
    with pytest.raises(UserError, match=r"line 1: want `path,label,split`"):
        find_sources(tmp_path / "list.csv")
    (tmp_path / "list.txt").write_text("a.mp4\na.mp4\n")
    with pytest.raises(UserError, match=r"list\.txt: a\.mp4 is listed twice"):
        find_sources(tmp_path / "list.txt")


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no video"):
        find_sources(tmp_path)
    _touch(tmp_path, "clip.mp4")
    with pytest.raises(UserError, match="neither a directory of videos nor a list file"):
        find_sources(tmp_path / "clip.mp4")

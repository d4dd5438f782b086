"""Which files of a directory are videos, and what their folders say."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from mgm_prep.sources.discover import Source, describe_ignored, find_sources
from mgm_shared.errors import UserError


def _touch(root: Any, *names: Any) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_are_labels_and_splits(tmp_path: Path) -> None:
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


def test_other_files_are_counted_and_loops_end(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "notes.txt", "labels.csv", "README", ".hidden.mp4", ".cache/c.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/loop").symlink_to(tmp_path / "b")
    found = find_sources(tmp_path)
    assert [source.video_id for source in found.sources] == ["a.mp4"]
    assert found.ignored == {".txt": 1, ".csv": 1, "no suffix": 1, "hidden": 2}


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
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


def test_a_list_file(tmp_path: Path) -> None:
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
    (tmp_path / "list.txt").write_text("./a.mp4\na.mp4\n")
    with pytest.raises(UserError, match=r"a\.mp4 is listed twice \(as \./a\.mp4 and a\.mp4\)"):
        find_sources(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text(". 1\n")
    assert [source.split for source in find_sources(tmp_path / "list.txt").sources] == [None]


# Names that a comma, a quote, a sign or white space makes ambiguous, as bytes where they are not UTF-8.
ODD_NAMES = [
    *(
        "#122_a.mp4",
        "# 1 b.mp4",
        "a,b.mp4",
        "a;b.mp4",
        "a b.mp4",
        "a 1.mp4",
        " lead.mp4",
        "-x.mp4",
        "%d.mp4",
        "c:d.mp4",
    ),
    *('"quoted".mp4', '"open.mp4', "it's.mp4", "\u2028line.mp4", "tab\tbed.mp4", "x.mp4 y.mp4", "\x1b[1m.mp4", "é.mp4"),
    *("#dir/e.mp4", "caf\udce9.mp4", "l\udce9,on.mp4"),
]


@pytest.mark.parametrize("end", ["", " 7", ",7"], ids=["names", "white space", "commas"])
def test_a_list_finds_every_odd_name(tmp_path: Path, end: str) -> None:
    """The oracle is the directory itself: each file once, under its own name, with the label behind it."""
    _touch(tmp_path, *ODD_NAMES)
    text = "".join(f"{name}{end}\n" for name in ODD_NAMES)
    (tmp_path / "list.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = find_sources(tmp_path / "list.txt")
    assert sorted(source.path.relative_to(tmp_path).as_posix() for source in found.sources) == sorted(ODD_NAMES)
    assert {source.label for source in found.sources} == {end[1:] or None}
    assert found.comments == []
    in_folder = {source.video_id for source in find_sources(tmp_path).sources}
    assert {source.video_id for source in found.sources} <= in_folder


def test_a_table_with_a_header_lists_every_odd_name(tmp_path: Path) -> None:
    """As the csv module writes it; a line break in a name is possible there."""
    names = [name for name in [*ODD_NAMES, "two\nlines.mp4"] if name != " lead.mp4"]
    _touch(tmp_path, *names)
    with (tmp_path / "list.csv").open("w", newline="", errors="surrogateescape") as file:
        csv.writer(file).writerows([("path", "label"), *((name, 'a, "b"') for name in names)])
    found = find_sources(tmp_path / "list.csv")
    assert sorted(source.path.relative_to(tmp_path).as_posix() for source in found.sources) == sorted(names)
    assert {source.label for source in found.sources} == {'a, "b"'}


def test_a_line_with_a_number_sign_is_a_comment_unless_it_names_a_file(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4", "#c.mp4")
    (tmp_path / "list.txt").write_text("# path label\n#\na.mp4 left\n#b.mp4 left\n  #c.mp4 right\n#gone.mp4 left\n")
    found = find_sources(tmp_path / "list.txt")
    assert [(source.video_id, source.label) for source in found.sources] == [("#c.mp4", "right"), ("a.mp4", "left")]
    assert found.comments == ["# path label", "#", "#b.mp4 left", "#gone.mp4 left"]
    assert "4 lines begin with # and name no file, such as '# path label'" in describe_ignored(found)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lists_of_windows_programs(tmp_path: Path, encoding: str, line_end: str) -> None:
    (tmp_path / "list.txt").write_bytes(line_end.join(["é.mp4 größe", "", "b.mp4 2  "]).encode(encoding))
    assert [(source.video_id, source.label) for source in find_sources(tmp_path / "list.txt").sources] == [
        ("b.mp4", "2"),
        ("é.mp4", "größe"),
    ]


def test_each_file_is_one_source_whatever_its_name(tmp_path: Path) -> None:
    r"""A name of Latin-1 bytes, and one that spells these bytes as the first one's id does."""
    names = [b"caf\xe9.mp4", b"caf\\xe9.mp4", b"caf\\\\xe9.mp4", b"caf\\xe8.mp4", "café.mp4".encode()]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    found = find_sources(tmp_path)
    assert sorted(os.fsencode(source.path.name) for source in found.sources) == sorted(names)
    ids = {source.video_id: os.fsencode(source.path.name) for source in found.sources}
    assert len(ids) == len(names)
    assert all(ids[name.decode()] == name for name in names[1:])
    (tmp_path / "caf\\xe9.mp4").unlink()
    # Alone it has the plain id, and a list may name it by that or by its bytes.
    assert r"caf\xe9.mp4" in {source.video_id for source in find_sources(tmp_path).sources}
    for line in (b"caf\\xe9.mp4", b"caf\xe9.mp4"):
        (tmp_path / "list.txt").write_bytes(line + b" latte\n")
        (source,) = find_sources(tmp_path / "list.txt").sources
        assert (source.video_id, os.fsencode(source.path.name)) == (r"caf\xe9.mp4", b"caf\xe9.mp4")


def test_a_path_that_is_too_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 bytes is the most that the system takes; folders below can be made step by step."""
    monkeypatch.chdir(tmp_path)
    for _ in range(17):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    os.chdir(tmp_path)
    with pytest.raises(UserError, match="File name too long"):
        find_sources(tmp_path)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no video"):
        find_sources(tmp_path)
    _touch(tmp_path, "clip.mp4")
    with pytest.raises(UserError, match="neither a directory of videos nor a list file"):
        find_sources(tmp_path / "clip.mp4")

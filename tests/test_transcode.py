"""Copies whose vectors are velocities: shown on a pan, and on what a folder of videos holds."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec.context import Flags2
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import Recording
from synthetic import ffmpeg, pan, shown_at_s, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.runtime.execution import Execution
from mgm_prep.sources.discover import Source
from mgm_prep.transcoding import copies
from mgm_prep.transcoding.copies import plan_copies
from mgm_prep.transcoding.transcode import transcode
from mgm_shared.store import open_store

VELOCITY = (3, -2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    (root / "train/wave").mkdir(parents=True)
    write_video(root / "train/wave/b.mp4", pan(VELOCITY, num_frames=26), options={"bf": "3"})
    write_video(root / "train/wave/b.avi", pan(VELOCITY, num_frames=4, height=64, width=64), "mpeg4")
    write_video(root / "vp9.webm", pan(VELOCITY, num_frames=8), "libvpx-vp9", {"cpu-used": "8"})
    write_video(root / "turned.mp4", pan(VELOCITY, num_frames=4), rotation=90)
    (root / "broken.mp4").write_bytes(b"no video")
    (root / "playlist.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{root / 'turned.mp4'}\n")
    return root


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["transcode", *map(str, arguments), "--workers", "0", "--json"])


def _failures(out: Any) -> list[Any]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def _preview(videos: Path, out: Any) -> Any:
    preview = json.loads(_run(videos, out, "-n").stdout)
    assert preview.pop("out") == str(out)
    return preview


def test_the_copies_have_velocities_for_vectors(videos: Path, tmp_path: Path) -> None:
    result = _run(videos, tmp_path / "out")
    assert result.exit_code == 3, result.output
    summary = json.loads(result.stdout)
    assert (summary["listed"], summary["done"], summary["failed"]) == (6, 4, 2)
    rows = _failures(tmp_path / "out")
    assert [row["video_id"] for row in rows] == ["broken.mp4", "playlist.mp4"]
    assert all(row["reason"] for row in rows)
    extract(tmp_path / "out", tmp_path / "out.store", ExtractSettings())
    store = open_store(tmp_path / "out.store")
    assert list(store.videos.index) == ["train/wave/b.avi.mp4", "train/wave/b.mp4.mp4", "turned.mp4", "vp9.mp4"]
    assert set(store.videos["motion_source"]) == {"codec"}
    assert (store["turned.mp4"].height, store["turned.mp4"].width) == (320, 240)
    video = store["train/wave/b.mp4.mp4"]
    assert video.picture_type.tolist() == [1 if t % 12 == 0 else 2 for t in range(26)]
    for t in np.nonzero(video.picture_type == 2)[0].tolist():
        assert np.abs(np.nanmedian(video.motion[t], axis=(0, 1)) - VELOCITY).max() <= 0.25


def _median_displacements(path: Path) -> Iterator[Any]:
    """Of each picture with vectors, read without our decoder and without any thought of how far its reference is."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.flags2 |= Flags2.export_mvs
        for frame in container.decode(stream):
            if side_data := frame.side_data.get("MOTION_VECTORS"):
                vectors = side_data.to_ndarray()
                displacements = [-vectors[name] / vectors["motion_scale"] for name in ("motion_x", "motion_y")]
                yield tuple(np.median(displacements, axis=1).tolist()), set(vectors["source"].tolist())


def test_the_raw_vectors_are_velocities(videos: Path, tmp_path: Path) -> None:
    """What the codec exports is the pan itself, and all of it leads back; of the source, with B pictures, it is not."""
    _run(videos, tmp_path / "out")
    assert {displacement for displacement, _ in _median_displacements(videos / "train/wave/b.mp4")} != {VELOCITY}
    for name in ("train/wave/b.mp4.mp4", "vp9.mp4"):
        assert list(_median_displacements(tmp_path / "out" / name)) == [(VELOCITY, {-1})] * (23 if "b" in name else 7)


def test_a_copy_never_leaves_its_folder_and_takes_no_longer_than_it_may(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("../elsewhere/1.mp4\n")
    result = _run(tmp_path / "list.txt", tmp_path / "out")
    assert result.exit_code == 2
    assert "leads out of" in result.stderr
    slow = tmp_path / "ffmpeg"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(slow))
    (tmp_path / "one").mkdir()
    (tmp_path / "one/turned.mp4").symlink_to(videos / "turned.mp4")
    assert _run(tmp_path / "one", tmp_path / "out", "--max-seconds", "1").exit_code == 3
    assert "takes longer than 1 s" in (tmp_path / "out/failures.jsonl").read_text()
    assert not [file.name for file in (tmp_path / "out").rglob("*.mp4")]


def test_a_second_call_does_what_is_missing(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _preview(videos, out) == {"listed": 6, "done": 0, "to_do": 6, "outdated": 0}
    assert not out.exists()
    _run(videos, out)
    assert _preview(videos, out) == {"listed": 6, "done": 4, "to_do": 2, "outdated": 0}
    before = (out / "vp9.mp4").read_bytes()
    (out / "turned.mp4").unlink()
    (out / f".{'0' * 32}.part.mp4").write_bytes(before[:100])
    summary = json.loads(_run(videos, out).stdout)
    assert (summary["done"], summary["transcoded_now"], summary["failed"]) == (4, 1, 2)
    assert (out / "vp9.mp4").read_bytes() == before
    assert not list(out.rglob("*.part.mp4"))
    assert _run(videos, videos / "copies").exit_code == 2


def test_a_video_that_came_after_its_copy_is_transcoded_again(tmp_path: Path) -> None:
    video = tmp_path / "videos/a.mp4"
    video.parent.mkdir()
    write_video(video, pan(VELOCITY, num_frames=4))
    out = tmp_path / "out"
    assert json.loads(_run(video.parent, out).stdout)["transcoded_now"] == 1
    assert json.loads(_run(video.parent, out).stdout)["transcoded_now"] == 0
    write_video(video, pan(VELOCITY, num_frames=6))
    later_s = (out / "a.mp4").stat().st_mtime + 1
    os.utime(video, (later_s, later_s))
    assert _preview(video.parent, out) == {"listed": 1, "done": 0, "to_do": 1, "outdated": 1}
    assert json.loads(_run(video.parent, out).stdout)["transcoded_now"] == 1
    with av.open(str(out / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_times_are_kept_and_the_short_side_is_shortened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    uneven = "setpts='if(lt(N,10),N,N*2)/25/TB'"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=322x242:r=25:d=0.8", "-vf", uneven, "-fps_mode", "passthrough",
           "-c:v", "libx264", str(tmp_path / "in/-a:%d.mp4"))  # fmt: skip
    result = _run(tmp_path / "in", tmp_path / "out", "--short-side", "120")
    assert result.exit_code == 0, result.output
    times_s = []
    for folder in ("in", "out"):
        with av.open(f"file:{tmp_path / folder / '-a:%d.mp4'}") as container:
            frames = list(container.decode(video=0))
        times_s.append([shown_at_s(frame) for frame in frames])
    np.testing.assert_allclose(times_s[1], times_s[0], atol=1e-3)
    assert (frames[0].height, frames[0].width) == (120, 160)


# File names as bytes, and the names of their copies.
NAMES = {
    b"a.avi": "a.avi.mp4",
    b"a.avi.mp4": "a.avi.mp4.mp4",
    b"a.mkv": "a.mkv.mp4",
    b"b.mp4": "b.mp4.mp4",
    b"b.MP4": "b.MP4.mp4",
    b"C.mp4": "C.mp4",
    b"c.mp4": "c.mp4",
    b"folder.avi": "folder.avi.mp4",
    b"folder.mp4/d.avi": "folder.mp4/d.mp4",
    b"caf\xe9.avi": r"caf\xe9.avi.mp4",
    b"caf\\xe9.webm": r"caf\xe9.webm.mp4",
    b"d\xe9/e.mp4": r"d\xe9/e.mp4",
    b"%03d.mp4": "%03d.mp4",
    b"concat:x|y.mp4": "concat:x|y.mp4",
    b"-y.mp4": "-y.mp4",
    b"#1 of 2.mp4": "#1 of 2.mp4",
    b"new\nline.mp4": "new\nline.mp4",
    b"'q\"t\\.mp4": "'q\"t\\.mp4",
    b" ends .mp4": " ends .mp4",
    b"x" * 251 + b".mp4": "x" * 251 + ".mp4",
}


def test_every_name_has_a_copy_of_its_own(tmp_path: Path) -> None:
    """The oracle is the picture: each video is of another grey, and so is its copy."""
    root, out = tmp_path / "in", tmp_path / "out"
    grey_of = {}
    for number, name in enumerate(NAMES):
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        grey_of[NAMES[name]] = grey = 20 + 10 * number
        write_video(tmp_path / "one.mp4", [np.full((32, 32, 3), grey, np.uint8)] * 2, options={"qp": "0"})
        (tmp_path / "one.mp4").rename(path)
    summary = transcode(root, out)
    assert (summary.listed, summary.done, summary.failed) == (len(NAMES), len(NAMES), 0)
    written = {file.relative_to(out).as_posix(): file for file in out.rglob("*.mp4") if file.is_file()}
    assert written.keys() == grey_of.keys()
    for copy, file in written.items():
        with av.open(f"file:{file}") as container:
            grey = next(container.decode(video=0)).to_ndarray(format="rgb24").mean()
        assert abs(grey - grey_of[copy]) < 4, copy
    assert transcode(root, out).transcoded_now == 0


def _planned(*names: Any) -> list[Any]:
    sources = [Source(video_id=name, path=Path(name), label=None, split=None) for name in names]
    return [copy.target.as_posix() for copy in plan_copies(sources, Path())]


@settings(deadline=None)
@given(st.lists(st.text("aA.", min_size=1, max_size=4).map(lambda stem: stem + "x"), max_size=4), st.data())
def test_no_two_copies_share_a_path(stems: Any, data: st.DataObject) -> None:
    suffix = st.sampled_from(["", ".mp4", ".avi", ".avi.mp4", ".mp4.avi", ".MP4"])
    names = sorted({stem + data.draw(suffix) for stem in stems for _ in range(3)})
    targets = _planned(*names)
    assert len(set(targets)) == len(names)
    assert all(target.endswith(".mp4") for target in targets)


def test_what_fails_is_a_row_and_the_others_are_done(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    video = write_video(tmp_path / "one.mp4", pan(VELOCITY, num_frames=2, height=32, width=32))
    for name in ("a.mp4", "b.mp4", "z" * 252 + ".ts", "both.avi", "both.mkv"):
        (root / name).symlink_to(video)
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "gone.mp4").symlink_to("nowhere")
    os.mkfifo(root / "pipe.mp4")
    (out / "both.avi.mp4/inside").mkdir(parents=True)
    summary = transcode(root, out)
    assert (summary.listed, summary.done, summary.failed, summary.transcoded_now) == (8, 3, 5, 3)
    rows = {row["video_id"]: row["reason"] for row in _failures(out)}
    assert rows.pop("z" * 252 + ".ts") == "its copy cannot be written: File name too long"
    assert rows.pop("both.avi") == "its copy cannot be written: Is a directory"
    assert rows == {
        "loop.mp4": "Too many levels of symbolic links",
        "gone.mp4": "No such file or directory",
        "pipe.mp4": "not a regular file",
    }
    assert sorted(file.name for file in out.iterdir() if file.is_file()) == [
        "a.mp4", "b.mp4", "both.mkv.mp4", "copies.jsonl", "failures.jsonl"
    ]  # fmt: skip


def test_a_copy_keeps_its_path_when_other_videos_come_and_go(tmp_path: Path) -> None:
    """Also when another call gives another list: no copy is taken for that of another video."""
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    video = write_video(root / "a.avi", pan(VELOCITY, num_frames=2, height=32, width=32), "mpeg4")
    transcode(root, out)
    (root / "a.mkv").hardlink_to(video)
    progress = Recording()
    assert transcode(root, out, execution=Execution(progress=progress)).transcoded_now == 1
    assert progress.steps == [["transcoding", "video", 1, 1]]
    (root / "a.avi").unlink()
    assert transcode(root, out).transcoded_now == 0
    (root / "a.webm").hardlink_to(root / "a.mkv")
    (tmp_path / "in/list.txt").write_text("a.webm\n")
    assert transcode(root / "list.txt", out).transcoded_now == 1
    assert [json.loads(line) for line in (out / "copies.jsonl").read_text().splitlines()] == [
        {"video_id": "a.avi", "copy": "a.mp4"},
        {"video_id": "a.mkv", "copy": "a.mkv.mp4"},
        {"video_id": "a.webm", "copy": "a.webm.mp4"},
    ]
    assert sorted(file.name for file in out.glob("*.mp4")) == ["a.mkv.mp4", "a.mp4", "a.webm.mp4"]


def test_a_file_system_that_ignores_case_loses_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and on exFAT, where the later copy would replace the first."""
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    video = write_video(root / "a.mp4", pan(VELOCITY, num_frames=2, height=32, width=32))
    for name in ("A.mp4", "é.mp4", "e\u0301.mp4", "b.mp4"):
        (root / name).hardlink_to(video)
    monkeypatch.setattr(copies, "_ignores_case", lambda folder: True)
    summary = transcode(root, out)
    assert (summary.listed, summary.done, summary.failed) == (5, 3, 2)
    rows = _failures(out)
    assert [row["video_id"] for row in rows] == ["a.mp4", "é.mp4"]
    assert "the file system ignores case in names" in rows[0]["reason"]
    monkeypatch.undo()
    assert transcode(root, out).done == 5


def test_a_full_disk_blames_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    write_video(root / "a.mp4", pan(VELOCITY, num_frames=2, height=32, width=32))
    full = subprocess.CompletedProcess([], 1, b"", b"[mp4] Error writing trailer: No space left on device\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: full)
    with pytest.raises(OSError, match="No space left") as caught:
        transcode(root, out)
    assert caught.value.errno == errno.ENOSPC
    assert (out / "failures.jsonl").read_text() == ""
    assert not list(out.glob("*.mp4"))


def test_labels_by_name_find_the_copies(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    video = write_video(root / "#1_a.avi", pan(VELOCITY, num_frames=2, height=32, width=32), "mpeg4")
    (root / "#1_a.mkv").hardlink_to(video)
    transcode(root, out)
    (tmp_path / "list.txt").write_text("#1_a.avi one\n#1_a.mkv two\n")
    extract(out, tmp_path / "out.store", labels=[tmp_path / "list.txt"])
    assert open_store(tmp_path / "out.store").videos["label"].to_dict() == {
        "#1_a.avi.mp4": "one",
        "#1_a.mkv.mp4": "two",
    }

"""Copies whose vectors are velocities: shown on a pan, and on what a folder of videos holds."""

import json
import os

import av
import numpy as np
import pytest
from av.codec.context import Flags2
from click.testing import CliRunner
from synthetic import ffmpeg, pan, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.store import open_store

VELOCITY = (3, -2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    (root / "train/wave").mkdir(parents=True)
    write_video(root / "train/wave/b.mp4", pan(VELOCITY, num_frames=26), options={"bf": "3"})
    write_video(root / "train/wave/b.avi", pan(VELOCITY, num_frames=4, height=64, width=64), "mpeg4")
    write_video(root / "vp9.webm", pan(VELOCITY, num_frames=8), "libvpx-vp9", {"cpu-used": "8"})
    write_video(root / "turned.mp4", pan(VELOCITY, num_frames=4), rotation=90)
    (root / "broken.mp4").write_bytes(b"no video")
    (root / "playlist.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{root / 'turned.mp4'}\n")
    return root


def _run(*arguments):
    return CliRunner().invoke(main, ["transcode", *map(str, arguments), "--workers", "0", "--json"])


def test_the_copies_have_velocities_for_vectors(videos, tmp_path):
    result = _run(videos, tmp_path / "out")
    assert result.exit_code == 3, result.output
    summary = json.loads(result.stdout)
    assert (summary["listed"], summary["done"], summary["failed"]) == (6, 4, 2)
    rows = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [row["video_id"] for row in rows] == ["broken.mp4", "playlist.mp4"]
    assert all(row["reason"] for row in rows)
    extract(tmp_path / "out", tmp_path / "out.store", ExtractSettings())
    store = open_store(tmp_path / "out.store")
    assert list(store.videos.index) == ["train/wave/b.avi.mp4", "train/wave/b.mp4.mp4", "turned.mp4", "vp9.mp4"]
    assert set(store.videos["motion_source"]) == {"codec"}
    assert (store["turned.mp4"].height, store["turned.mp4"].width) == (320, 240)
    video = store["train/wave/b.mp4.mp4"]
    assert video.picture_type.tolist() == [1 if t % 12 == 0 else 2 for t in range(26)]
    for t in np.nonzero(video.picture_type == 2)[0]:
        assert np.abs(np.nanmedian(video.motion[t], axis=(0, 1)) - VELOCITY).max() <= 0.25


def _median_displacements(path):
    """Of each picture with vectors, read without our decoder and without any thought of how far its reference is."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.flags2 |= Flags2.export_mvs
        for frame in container.decode(stream):
            if side_data := frame.side_data.get("MOTION_VECTORS"):
                vectors = side_data.to_ndarray()
                displacements = [-vectors[name] / vectors["motion_scale"] for name in ("motion_x", "motion_y")]
                yield tuple(np.median(displacements, axis=1).tolist()), set(vectors["source"].tolist())


def test_the_raw_vectors_are_velocities(videos, tmp_path):
    """What the codec exports is the pan itself, and all of it leads back; of the source, with B pictures, it is not."""
    _run(videos, tmp_path / "out")
    assert {displacement for displacement, _ in _median_displacements(videos / "train/wave/b.mp4")} != {VELOCITY}
    for name in ("train/wave/b.mp4.mp4", "vp9.mp4"):
        assert list(_median_displacements(tmp_path / "out" / name)) == [(VELOCITY, {-1})] * (23 if "b" in name else 7)


def test_a_copy_never_leaves_its_folder_and_takes_no_longer_than_it_may(videos, tmp_path, monkeypatch):
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
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == ["failures.jsonl"]


def test_a_second_call_does_what_is_missing(videos, tmp_path):
    out = tmp_path / "out"
    assert json.loads(_run(videos, out, "-n").stdout)["transcoded_now"] == 0
    assert not out.exists()
    _run(videos, out)
    before = (out / "vp9.mp4").read_bytes()
    (out / "turned.mp4").unlink()
    (out / ".0123.part.mp4").write_bytes(before[:100])
    summary = json.loads(_run(videos, out).stdout)
    assert (summary["done"], summary["transcoded_now"], summary["failed"]) == (4, 1, 2)
    assert (out / "vp9.mp4").read_bytes() == before
    assert not list(out.rglob("*.part.mp4"))
    assert _run(videos, videos / "copies").exit_code == 2


def test_a_video_that_came_after_its_copy_is_transcoded_again(tmp_path):
    video = tmp_path / "videos/a.mp4"
    video.parent.mkdir()
    write_video(video, pan(VELOCITY, num_frames=4))
    out = tmp_path / "out"
    assert json.loads(_run(video.parent, out).stdout)["transcoded_now"] == 1
    assert json.loads(_run(video.parent, out).stdout)["transcoded_now"] == 0
    write_video(video, pan(VELOCITY, num_frames=6))
    later_s = (out / "a.mp4").stat().st_mtime + 1
    os.utime(video, (later_s, later_s))
    assert json.loads(_run(video.parent, out).stdout)["transcoded_now"] == 1
    with av.open(str(out / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_times_are_kept_and_the_short_side_is_shortened(tmp_path):
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
        times_s.append([float(frame.pts * frame.time_base) for frame in frames])
    np.testing.assert_allclose(times_s[1], times_s[0], atol=1e-3)
    assert (frames[0].height, frames[0].width) == (120, 160)

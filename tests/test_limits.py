"""What a hostile or broken file may cost: pixels, memory, time, and how much damage is still a video."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic import ffmpeg, moving_pattern, pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.failures import read_failures
from mgm_shared.store import open_store

PEAK_MB = """
import sys
from pathlib import Path
from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.pyav import VideoFile
try:
    with VideoFile(Path(sys.argv[1]), ExtractSettings(max_pixels=int(sys.argv[2]))) as video:
        print(sum(1 for _ in video.pictures()), end=" ")
except Unreadable:
    print("refused", end=" ")
# Not getrusage: its peak includes that of the process which forked this one.
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) // 1024)
"""


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx264", "mp4"), ("mpeg4", "ts"), ("ffv1", "mkv"), ("flv", "flv"), ("mpeg2video", "mpg")]
)
def test_larger_pictures_are_refused(tmp_path: Path, codec: str, suffix: str) -> None:
    path = moving_pattern(tmp_path / f"clip.{suffix}", "-c:v", codec, size="96x64", seconds=0.2)
    with pytest.raises(Unreadable, match="pictures have 96×64 px, more than max-pixels = 5000"):
        VideoFile(path, ExtractSettings(max_pixels=5000))
    with VideoFile(path, ExtractSettings(max_pixels=96 * 64)) as video:
        assert sum(1 for _ in video.pictures()) == 5


def test_a_refused_picture_takes_no_memory(tmp_path: Path) -> None:
    """8000×8000 px in a file of 190 kB. Peak memory of processes of their own, with the limit and without it."""
    path = tmp_path / "large.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=8000x8000:d=0.08:r=25", "-c:v", "libx264", "-preset", "ultrafast",
           "-x264-params", "rc-lookahead=1", str(path))  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peak_mb = {}
    for limit in (10**6, 10**9):
        command = [sys.executable, "-c", PEAK_MB, str(path), str(limit)]
        outcome, peak = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()
        peak_mb[outcome] = int(peak)
    assert peak_mb["2"] > peak_mb["refused"] + 90


def test_a_stream_that_grows_keeps_what_was_small(tmp_path: Path) -> None:
    small = moving_pattern(tmp_path / "a.h264", "-c:v", "libx264", size="64x64", seconds=0.4)
    large = moving_pattern(tmp_path / "b.h264", "-c:v", "libx264", size="320x240", seconds=0.4)
    (tmp_path / "both.h264").write_bytes(small.read_bytes() + large.read_bytes())
    for limit, num_frames in ((320 * 240, 20), (320 * 240 - 1, 10)):
        with VideoFile(tmp_path / "both.h264", ExtractSettings(max_pixels=limit)) as video:
            assert sum(1 for _ in video.pictures()) == num_frames
            assert (video.num_errors > 0) == (num_frames == 10)


def test_the_shown_size_counts_too(tmp_path: Path) -> None:
    """480 lines of pixels that are 255 times as wide as high would be 163,200 columns."""
    wide = ("-vf", "setsar=255:max=255", "-c:v", "mpeg4")
    path = moving_pattern(tmp_path / "clip.avi", *wide, size="640x480", seconds=0.2)
    with pytest.raises(Unreadable, match="163200×480 px, more than max-pixels"):
        VideoFile(path)


def test_a_slow_video_is_given_up(tmp_path: Path) -> None:
    path = moving_pattern(tmp_path / "clip.mp4", "-c:v", "libx264", size="64x64")
    with VideoFile(path, ExtractSettings(max_seconds=1)) as video:
        pictures = video.pictures()
        next(pictures)
        time.sleep(1.01)
        with pytest.raises(Unreadable, match="max-seconds = 1"):
            list(pictures)
    with VideoFile(path, ExtractSettings(max_seconds=0)) as video:
        assert sum(1 for _ in video.pictures()) == 40


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder with a sound clip, one with some damage and one that is mostly damage."""
    (tmp_path / "in").mkdir()
    for name, share in (("sound", 0.0), ("some", 0.1), ("most", 1.0)):
        path = write_video(
            tmp_path / f"in/{name}.mp4", pan((2, 1), num_frames=40, height=64, width=96), "libx264", {"bf": "0"}
        )
        content = bytearray(path.read_bytes())
        start, end = content.find(b"mdat") + 2500, content.find(b"moov") - 100
        for offset in range(int(end - share * (end - start)), end, 9):
            content[offset] ^= 0xFF
        path.write_bytes(content)
    return tmp_path / "in"


def test_max_corrupt_decides(damaged: Path, tmp_path: Path) -> None:
    kept = {}
    for max_corrupt in (0.0, 0.5, 1.0):
        store = tmp_path / f"{max_corrupt}.store"
        extract(damaged, store, ExtractSettings(max_corrupt=max_corrupt))
        kept[max_corrupt] = open_store(store).videos["num_corrupt"].to_dict()
        for failure in read_failures(store).values():
            assert f"damaged, more than max-corrupt = {max_corrupt:.0%}" in failure.reason
    assert kept[0.0].keys() == {"sound.mp4"}
    assert kept[0.5].keys() == {"sound.mp4", "some.mp4"}
    assert kept[1.0].keys() == {"sound.mp4", "some.mp4", "most.mp4"}
    assert kept[1.0]["sound.mp4"] == 0 < kept[1.0]["some.mp4"] < kept[1.0]["most.mp4"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer, and reading a device never ends."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device"):
        with pytest.raises(Unreadable, match="not a regular file"):
            VideoFile(tmp_path / f"{name}.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Unreadable, match="No such file"):
        VideoFile(tmp_path / "dangling.mp4")


def test_another_time_limit_may_go_on(damaged: Path, tmp_path: Path) -> None:
    """The limit depends on the machine, so it is no part of what makes a store."""
    for max_seconds in (100, 200):
        extract(damaged, tmp_path / "out.store", ExtractSettings(max_seconds=max_seconds))
    assert "max_seconds" not in open_store(tmp_path / "out.store").attributes["settings"]

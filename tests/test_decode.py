"""What comes out of a file: every frame, in order, with its time and orientation, and nothing out of another file."""

import gc
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from synthetic import FFMPEG, ffmpeg, moving_pattern, pan, shown_at_s, write_video

from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.h264 import ParameterSets
from mgm_prep.decoding.pyav import VideoFile


def _count(path: Path) -> tuple[int, int]:
    with VideoFile(path) as video:
        return sum(1 for _ in video.pictures()), video.num_errors


def test_every_frame_of_real_clips(real_videos: Path) -> None:
    for path in sorted(real_videos.glob("*.mp4")):
        with av.open(str(path)) as container:
            expected = [shown_at_s(frame) for frame in container.decode(video=0)]
        with VideoFile(path) as video:
            got = [picture.time_s for picture in video.pictures()]
        np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize("first", ["audio", "video"])
def test_audio_in_front_costs_no_frame(tmp_path: Path, first: str) -> None:
    path = tmp_path / "clip.mp4"
    maps = ["-map", "1:a", "-map", "0:v"] if first == "audio" else ["-map", "0:v", "-map", "1:a"]
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=1.6", "-f", "lavfi", "-i", "sine=d=1.6", *maps, "-bf", "3",
           "-c:v", "libx264", "-c:a", "aac", str(path))  # fmt: skip
    assert _count(path) == (40, 0)


def test_an_edit_list_and_a_damaged_stream(tmp_path: Path) -> None:
    long = moving_pattern(tmp_path / "long.mp4", "-c:v", "libx264", "-g", "25", "-bf", "3", seconds=3)
    ffmpeg("-ss", "1.4", "-i", str(long), "-c", "copy", str(tmp_path / "cut.mp4"))
    assert _count(tmp_path / "cut.mp4") == (40, 0)
    damaged = bytearray(long.read_bytes())
    middle = damaged.find(b"mdat") + 3000
    for offset in range(0, 420, 7):
        damaged[middle + offset] ^= 0xFF
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    with VideoFile(tmp_path / "damaged.mp4") as video:
        pictures = list(video.pictures())
        assert len(pictures) >= 70
        assert video.num_errors + sum(picture.is_corrupt for picture in pictures) > 0


def test_a_cut_file_gives_what_it_holds(tmp_path: Path) -> None:
    moving_pattern(tmp_path / "whole.mp4", "-c:v", "libx264", "-movflags", "+faststart")
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    num_frames, num_errors = _count(tmp_path / "cut.mp4")
    assert 10 < num_frames < 40
    assert num_errors > 0


@pytest.mark.parametrize("content", [b"", b"not a video\n" * 40, b"\x00" * 5000])
def test_what_is_no_video_says_so(tmp_path: Path, content: Any) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(Unreadable, match=r"\w"):
        VideoFile(tmp_path / "clip.mp4")


def test_audio_alone_and_cover_art_are_no_video(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", str(tmp_path / "audio.mp4"))
    with pytest.raises(Unreadable, match="no video stream"):
        VideoFile(tmp_path / "audio.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-f", "lavfi", "-i", "testsrc2=s=64x64:d=0.04",
           "-map", "0:a", "-map", "1:v", "-c:a", "aac", "-c:v", "png", "-disposition:v", "attached_pic",
           str(tmp_path / "cover.mp4"))  # fmt: skip
    with pytest.raises(Unreadable, match="no video stream"):
        VideoFile(tmp_path / "cover.mp4")


def test_a_rotated_clip_is_shown_upright(tmp_path: Path) -> None:
    """The ffmpeg program, which rotates by itself, is the oracle."""
    straight = write_video(tmp_path / "straight.mp4", pan((3, 0), num_frames=2))
    for degrees in (90, 180, 270):
        turned = tmp_path / f"turned{degrees}.mp4"
        ffmpeg("-display_rotation", str(degrees), "-i", str(straight), "-c", "copy", str(turned))
        with VideoFile(turned) as video:
            picture = next(video.pictures())
            shown = picture.orientation.frame(picture.frame.to_ndarray(format="rgb24").astype(np.uint8))
            size = (round(video.header.display_height), round(video.header.display_width))
        expected = np.frombuffer(
            ffmpeg("-i", str(turned), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"), np.uint8
        ).reshape(shown.shape)
        assert shown.shape[:2] == size
        assert np.abs(shown.astype(int) - expected).mean() < 2


def test_the_sample_aspect_ratio_widens(tmp_path: Path) -> None:
    path = moving_pattern(tmp_path / "wide.mp4", "-vf", "setsar=16/11", "-c:v", "libx264", size="176x144", seconds=0.2)
    with VideoFile(path) as video:
        assert (video.header.display_height, video.header.display_width) == (144, 256)


@pytest.mark.parametrize("container", ["clip.mp4", "clip.h264"])
def test_reference_pictures_are_recognised(tmp_path: Path, container: str) -> None:
    """x264 marks the middle one of three B pictures as a reference; so says ffmpeg's own trace of the headers."""
    path = moving_pattern(tmp_path / container, "-c:v", "libx264", "-bf", "3", "-x264-params", "b-adapt=0:scenecut=0")
    trace = subprocess.run(
        [FFMPEG, "-hide_banner", "-i", str(path), "-c", "copy", "-bsf:v", "trace_headers", "-f", "null", "-"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    expected, idc = [], 0
    for line in trace.splitlines():
        if " nal_ref_idc " in line:
            idc = int(line.split("=")[-1])
        if " first_mb_in_slice " in line:
            expected.append(idc > 0)
    with VideoFile(path) as video:
        pictures = sorted(video.pictures(), key=lambda picture: picture.decode_index)
    assert [picture.is_reference for picture in pictures] == expected
    assert 0 < sum(expected) < len(expected)


def test_a_packet_without_a_slice_counts_as_reference() -> None:
    avcc = bytes([1, 100, 0, 31, 255, 0xE0, 0])
    assert ParameterSets(avcc).read(b"").is_reference
    assert ParameterSets(avcc).read(b"\x00\x00\x00\x02\x06\x05").is_reference
    assert ParameterSets().read(b"\x00\x00\x01\x06\x05").is_reference


def test_frames_that_nobody_holds_are_gone(tmp_path: Path) -> None:
    path = moving_pattern(tmp_path / "clip.mp4", "-c:v", "libx264", "-bf", "3", seconds=4)
    most = 0
    gc.collect()
    # What exists already is not counted, which takes most of the time.
    gc.freeze()
    try:
        with VideoFile(path) as video:
            for picture in video.pictures():
                assert picture.vectors_K is not None or picture.picture_type == 1
                most = max(most, sum(type(found) is av.VideoFrame for found in gc.get_objects()))
    finally:
        gc.unfreeze()
    # The first one, the newest, and those that the decoder hands out together at the end.
    assert 1 <= most <= 6

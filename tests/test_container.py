"""Which containers are read, what is said of the others, and which of several streams is the video."""

import struct
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hostile import CONCAT, HLS
from synthetic import ffmpeg, moving_pattern, pan, texture, write_video

from mgm_prep.decoding.container import Unreadable, main_stream, open_container
from mgm_prep.decoding.formats import ALLOWED_FORMATS
from mgm_prep.decoding.pyav import VideoFile

# FFmpeg's demuxers that open what a file or its name leads to, or none; and what is no video.
FORBIDDEN = (
    "alias_pix avisynth concat dash data dvdvideo ffmetadata hds hls image2 image2pipe imf lavfi mlv rawvideo rtp rtsp "
    "sap sdp smoothstreaming tedcaptions tty vapoursynth vobsub webm_dash_manifest"
).split()


def test_the_allowed_formats_exist_and_open_no_other_file() -> None:
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(ALLOWED_FORMATS) <= known
    assert not set(ALLOWED_FORMATS) & set(FORBIDDEN)
    assert not [name for name in ALLOWED_FORMATS if name.endswith("_pipe")]


def _dhav(path: Path, num_frames: int) -> Path:
    """The container of Dahua's recorders: a header, H.264 and the header's size for each frame."""
    moving_pattern(path.with_name("a.h264"), "-c:v", "libx264", "-bf", "0", size="96x64", seconds=num_frames / 25)
    content = b""
    with av.open(str(path.with_name("a.h264"))) as container:
        for number, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            extension = struct.pack("<BBBB", 0x81, 0, 8, 25) + struct.pack("<BxxxHH", 0x82, 96, 64)
            size = 24 + len(extension) + packet.size + 8
            date = 21 << 26 | 5 << 22 | 4 << 17 | 3 << 12
            header = struct.pack("<4sBxxxIII", b"DHAV", 0xFD if packet.is_keyframe else 0xFC, number, size, date)
            header += struct.pack("<HBx", 40 * number % 1000, len(extension))
            # The clock counts seconds in one field and milliseconds in another.
            header = header[:16] + struct.pack("<I", date + number // 25) + header[20:]
            content += header + extension + bytes(packet) + struct.pack("<4sI", b"dhav", size)
    path.write_bytes(content)
    path.with_name("a.h264").unlink()
    return path


def _count(path: Path) -> int:
    with VideoFile(path) as video:
        return sum(1 for _ in video.pictures())


def test_a_recorders_container_under_another_name(tmp_path: Path) -> None:
    path = _dhav(tmp_path / "a.mp4", 50)
    with VideoFile(path) as video:
        times_s = [picture.time_s for picture in video.pictures()]
        assert (video.header.frame_rate, video.header.height, video.header.width) == (25, 64, 96)
    assert len(times_s) == 50
    np.testing.assert_allclose(np.diff(times_s), 0.04, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.rm", ("-c:v", "rv20")),
        ("a.y4m", ("-pix_fmt", "yuv420p")),
        ("a.gxf", ("-c:v", "mpeg2video", "-s", "720x576")),
        ("a.amv", ("-c:v", "amv", "-s", "160x128", "-ac", "1", "-ar", "22050", "-block_size", "882")),
        ("a.swf", ("-c:v", "flv1")),
        ("a.gif", ()),
        ("a.apng", ("-f", "apng")),
        ("a.roq", ("-c:v", "roqvideo", "-s", "256x128", "-r", "30")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_containers(tmp_path: Path, name: str, options: Any) -> None:
    """Under their own suffix and under one that is not theirs."""
    sources = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=0.8", "-f", "lavfi", "-i", "sine=d=0.8")
    ffmpeg(*(sources if name == "a.amv" else sources[:4]), *options, str(tmp_path / name))
    rows = ffmpeg("-i", str(tmp_path / name), "-map", "0:v", "-fps_mode", "passthrough", "-f", "framecrc", "-")
    expected = sum(not row.startswith(b"#") for row in rows.splitlines())
    assert _count(tmp_path / name) == expected > 10
    (tmp_path / name).rename(tmp_path / "b.mp4")
    assert _count(tmp_path / "b.mp4") == expected


SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"


@pytest.mark.parametrize(
    ("name", "content", "container"),
    [
        ("a.m3u8", HLS.format(url="secret.ts").encode(), "hls"),
        ("a.mp4", CONCAT.format(url="secret.mp4").encode(), "concat"),
        ("a.mp4", SDP.encode(), "sdp"),
        ("a.mp4", b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), "wav"),
        ("a.mp4", cv2.imencode(".png", texture(64, 64))[1].tobytes(), "png_pipe"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_container_that_is_not_allowed_is_named(tmp_path: Path, name: str, content: Any, container: str) -> None:
    level = av.logging.get_level()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable) as raised:
        VideoFile(tmp_path / name)
    assert str(raised.value) == f"container {container} is not allowed"
    assert av.logging.get_level() == level


def _chosen_of(path: Path, *tracks: tuple[str, float], default: int = 0) -> tuple[int, int]:
    """Write tracks of these sizes and seconds; the (height, width) of the one that is taken."""
    inputs: list[str] = []
    for size, seconds in tracks:
        inputs += ["-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d={seconds}"]
    maps = [word for number in range(len(tracks)) for word in ("-map", f"{number}:v")]
    flags = [f"-disposition:v:{number}" for number in range(len(tracks))]
    marks = [word for number, flag in enumerate(flags) for word in (flag, "default" if number == default else "0")]
    ffmpeg(*inputs, *maps, *marks, "-c:v", "libx264", str(path))
    with open_container(path, {}) as container:
        context = main_stream(container).codec_context
        return context.height, context.width


SUFFIXES = [".mp4", ".mov", ".mkv", ".ts", ".avi"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("default", [0, 1])
def test_the_video_of_a_motion_photo(tmp_path: Path, suffix: str, default: int) -> None:
    """53 frames beside two large ones, which are the default or not, in front or behind."""
    tracks = [("320x240", 0.08), ("96x64", 2.12)]
    assert _chosen_of(tmp_path / f"a{suffix}", *tracks, default=default) == (64, 96)
    assert _chosen_of(tmp_path / f"b{suffix}", *tracks[::-1], default=default) == (64, 96)


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
def test_of_tracks_about_as_long_the_default(tmp_path: Path, suffix: Any) -> None:
    """One frame more or less makes no track the better one, nor does a rate that is up to twice as high."""
    assert _chosen_of(tmp_path / f"a{suffix}", ("96x64", 0.8), ("64x96", 0.84), default=0) == (64, 96)
    assert _chosen_of(tmp_path / f"b{suffix}", ("96x64", 0.84), ("64x96", 0.8), default=1) == (96, 64)
    assert _chosen_of(tmp_path / f"c{suffix}", ("96x64", 0.8), ("64x96", 1.6), default=0) == (64, 96)


def test_of_tracks_about_as_long_the_largest(tmp_path: Path) -> None:
    tracks = [("64x48", 0.8), ("96x64", 0.84), ("320x240", 0.04), ("80x64", 0.8)]
    assert _chosen_of(tmp_path / "a.mkv", *tracks, default=9) == (64, 96)


def test_without_durations_packets_are_counted(tmp_path: Path) -> None:
    """A live Matroska file states neither frames nor durations."""
    still = write_video(tmp_path / "still.mp4", pan((1, 1), num_frames=2, height=240, width=320))
    clip = write_video(tmp_path / "clip.mp4", pan((1, 1), num_frames=30, height=64, width=96))
    path = tmp_path / "a.mkv"
    ffmpeg("-i", str(still), "-i", str(clip), "-map", "0:v", "-map", "1:v", "-c", "copy", "-live", "1",
           "-fflags", "+bitexact", "-disposition:v:0", "default", str(path))  # fmt: skip
    with open_container(path, {}) as container:
        assert not any(
            stream.frames or stream.duration or "DURATION" in stream.metadata for stream in container.streams
        )
        assert main_stream(container).codec_context.height == 64
    assert _count(path) == 30

"""Containers as they occur: what ends up in the store, against what the ffmpeg program makes of the same file."""

import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from synthetic import FFMPEG, ffmpeg, ffmpeg_rgb, moving_pattern, pan, psnr, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.timestamps import mean_rate, shown_at
from mgm_prep.extraction.extract import extract
from mgm_shared.store import Video, open_store

VELOCITY = (3, -2)
THREE_OF_NINE = ("-vf", "select='not(mod(n,3))+lt(n,10)'", "-fps_mode", "vfr")
H264 = ("-c:v", "libx264", "-bf", "3", "-g", "25")
COPY = ("-c", "copy")


def _stored(path: Path, tmp_path: Path, **settings: Any) -> Video:
    """The one video of a store made of a folder that holds nothing else."""
    (tmp_path / "in").mkdir(exist_ok=True)
    path.rename(tmp_path / "in" / path.name)
    extract(tmp_path / "in", tmp_path / "out.store", ExtractSettings(frame_codec="lossless", **settings))
    return open_store(tmp_path / "out.store")[path.name]


def _ffmpeg_times(path: Path) -> list[float]:
    """When the ffmpeg program shows each frame, told by its filter showinfo."""
    command = [FFMPEG, "-hide_banner", "-copyts", "-i", str(path), "-map", "0:v:0", "-vf", "showinfo"]
    command += ["-fps_mode", "passthrough", "-f", "null", "-"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [float(time_s) for time_s in re.findall(r"pts_time:\s*([-\d.]+)", log)]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("variable rate.mp4", (), (*H264, *THREE_OF_NINE)),
        ("variable rate.mkv", (), (*H264, *THREE_OF_NINE)),
        ("edit list.mp4", ("-ss", "1.4"), COPY),
        ("starts late.mp4", ("-itsoffset", "7.5"), COPY),
        ("starts late.mkv", ("-itsoffset", "7.5"), COPY),
        ("starts late.ts", (), (*COPY, "-output_ts_offset", "100")),
        ("no edit list.mp4", (), (*COPY, "-use_editlist", "0")),
        ("fragments.mp4", (), (*COPY, "-movflags", "frag_keyframe+empty_moov")),
        ("decoding times only.avi", (), COPY),
        ("b pictures.avi", (), ("-c:v", "mpeg4", "-bf", "2")),
        ("program stream.mpg", (), ("-c:v", "mpeg2video", "-bf", "2")),
        ("no times.h264", (), (*COPY, "-bsf:v", "h264_mp4toannexb")),
        ("29.97.mov", (), ("-c:v", "mjpeg", "-r", "30000/1001")),
        ("hidden frames.webm", (), ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-lag-in-frames", "16")),
        ("milliseconds.flv", (), COPY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_times_are_those_of_the_ffmpeg_program(tmp_path: Path, name: str, before: Any, after: Any) -> None:
    long = moving_pattern(tmp_path / "long.mp4", *H264, size="96x64", seconds=3)
    ffmpeg(*before, "-i", str(long), *after, str(tmp_path / name))
    expected = _ffmpeg_times(tmp_path / name)
    video = _stored(tmp_path / name, tmp_path, no_vectors="skip")
    np.testing.assert_allclose(video.time_s, expected, atol=1e-6)
    assert (np.diff(video.time_s) > 0).all()
    assert video.fps == pytest.approx((len(expected) - 1) / (expected[-1] - expected[0]), rel=1e-6)


def test_a_picture_without_a_time_comes_a_step_later() -> None:
    nan = float("nan")
    assert shown_at([0, 1, nan, 3], [nan] * 4, 25) == [0, 1, 2, 3]
    assert shown_at([nan] * 3, [nan] * 3, 4) == [0, 0.25, 0.5]
    assert shown_at([1, 3, 2, 5, 4], [5, 6, 7, 8, nan], 25) == [5, 6, 7, 8, 9]
    assert shown_at([1, 3, 2, 4], [5, 5, 5, 5], 25) == [1, 1.5, 2, 4]
    assert mean_rate([0, 1, 3], 25) == pytest.approx(2 / 3)
    assert mean_rate([2.0], 25) == 25


def _with_matrix(mp4: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The file with another display matrix in its track header (ISO 14496-12, 8.3.2)."""
    content = bytearray(mp4)
    box = content.find(b"tkhd") + 4
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, box + (52 if content[box] else 40), *values)
    return bytes(content)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0),
                                    (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)], ids=str)  # fmt: skip
def test_all_eight_orientations(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Frames against the ffmpeg program, which turns by itself; vectors against the shift between the stored frames."""
    path = write_video(tmp_path / "a.mp4", pan(VELOCITY, num_frames=6, height=96, width=160))
    path.write_bytes(_with_matrix(path.read_bytes(), *matrix))
    shown = ffmpeg("-i", str(path), "-vf", "scale=iw/2:ih/2:flags=area", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    video = _stored(path, tmp_path, short_side=48)
    expected_THWC = np.frombuffer(shown, np.uint8).reshape(video.frames[:].shape)
    assert psnr(expected_THWC, video.frames[:]) > 38
    dx, dy = np.nanmedian(video.motion[1:], axis=(0, 1, 2))
    frames_THW = video.frames[:].mean(-1).astype(np.float64)
    shift, _ = cv2.phaseCorrelate(
        frames_THW[0], frames_THW[3], cv2.createHanningWindow(frames_THW.shape[:0:-1], cv2.CV_64F)
    )
    np.testing.assert_allclose((3 * dx, 3 * dy), shift, atol=0.5)
    assert video.record["rotation"] in ((90, 270) if matrix[0] == 0 else (0, 180))


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (0, 0, 0, 32767), (1, 1, -1, 1)], ids=str)
def test_a_senseless_matrix_turns_nothing(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = write_video(tmp_path / "a.mp4", pan(VELOCITY, num_frames=3, height=96, width=160))
    path.write_bytes(_with_matrix(path.read_bytes(), *matrix))
    video = _stored(path, tmp_path)
    assert (video.height, video.width, video.record["rotation"]) == (96, 160, 0)


@pytest.mark.parametrize("turned", [False, True])
def test_wide_pixels(tmp_path: Path, turned: bool) -> None:
    """2:1 pixels, before the turn: the stored picture and its motion are twice as wide, or high."""
    path = write_video(tmp_path / "square.mp4", pan(VELOCITY, num_frames=6, height=96, width=160))
    turn = ("-display_rotation", "90") if turned else ()
    ffmpeg(*turn, "-i", str(path), *COPY, "-aspect", "320:96", str(tmp_path / "wide.mp4"))
    path.unlink()
    video = _stored(tmp_path / "wide.mp4", tmp_path, short_side=4096)
    assert (video.height, video.width) == ((320, 96) if turned else (96, 320))
    expected = (-2, -6) if turned else (6, -2)
    np.testing.assert_allclose(np.nanmedian(video.motion[1:], axis=(0, 1, 2)), expected, atol=0.1)


def test_another_size_in_mid_stream(tmp_path: Path) -> None:
    """The second half is scaled to the size of the first, its vectors with it."""
    for name, size, velocity in (("a", (96, 160), (3, -2)), ("b", (240, 320), (6, -4))):
        frames = pan(velocity, num_frames=8, height=size[0], width=size[1])
        write_video(tmp_path / f"{name}.h264", frames)
    both = tmp_path / "both.h264"
    both.write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    reference = ffmpeg_rgb(both, 96, 160, is_scaled=True)
    video = _stored(both, tmp_path)
    assert (video.num_frames, video.height, video.width) == (16, 96, 160)
    assert psnr(reference, video.frames[:]) > 38
    np.testing.assert_allclose(np.nanmedian(video.motion[1:8], axis=(0, 1, 2)), (3, -2), atol=0.1)
    np.testing.assert_allclose(np.nanmedian(video.motion[9:], axis=(0, 1, 2)), (3, -4 * 96 / 240), atol=0.1)


@pytest.mark.parametrize("default", ["none", "small"])
def test_of_several_streams_the_default_or_the_largest(tmp_path: Path, default: str) -> None:
    small = moving_pattern(tmp_path / "small.mp4", *H264, size="64x64", seconds=0.4)
    large = write_video(tmp_path / "large.mp4", pan(VELOCITY, num_frames=20, height=96, width=160))
    both = tmp_path / "both.mkv"
    flags = ("-disposition", "0") if default == "none" else ("-disposition:v:0", "default", "-disposition:v:1", "0")
    ffmpeg("-i", str(small), "-i", str(large), "-map", "0:v", "-map", "1:v", *COPY, *flags, str(both))
    expected = ffmpeg_rgb(large, 96, 160) if default == "none" else ffmpeg_rgb(small, 64, 64)
    video = _stored(both, tmp_path)
    assert video.frames.shape == expected.shape
    assert psnr(expected, video.frames[:]) > 38


@pytest.mark.parametrize("kind", ["attached picture", "track of one frame"])
def test_a_still_in_front_is_not_the_video(tmp_path: Path, kind: str) -> None:
    """Cover art and previews, larger than the video and its first stream as far as the container allows."""
    clip = write_video(tmp_path / "clip.mp4", pan(VELOCITY, num_frames=12, height=96, width=160))
    path = tmp_path / "still.mp4"
    flags = ("-disposition:v:0", "attached_pic" if kind == "attached picture" else "default")
    ffmpeg("-i", str(clip), "-f", "lavfi", "-i", "testsrc2=s=640x480:d=0.04", "-map", "1:v", "-map", "0:v", "-c:v:0",
           "png", "-c:v:1", "copy", *flags, str(path))  # fmt: skip
    with av.open(str(path)) as container:
        assert {stream.codec_context.name for stream in container.streams.video} == {"png", "h264"}
    video = _stored(path, tmp_path)
    assert (video.num_frames, video.height, video.width) == (12, 96, 160)


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_a_missing_key_frame_at_the_start(tmp_path: Path, suffix: str) -> None:
    """A broadcast that is joined in mid-stream: what cannot be decoded is left out, the rest is there and right."""
    whole = tmp_path / f"whole.{suffix}"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2.4", *H264, "-g", "20", "-sc_threshold", "0", str(whole))
    content = whole.read_bytes()
    cut = len(content) // 8 // 188 * 188
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: 188 * 3 if suffix == "ts" else 0] + content[cut:])
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    video = _stored(path, tmp_path)
    assert 40 <= video.num_frames == len(expected) < 60
    assert psnr(expected[-40:], video.frames[-40:]) > 40
    assert np.isnan(video.motion[video.num_frames - 40]).all()

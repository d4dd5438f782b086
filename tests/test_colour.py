"""Pixels against the ffmpeg program's own rgb24, for every matrix and range that streams are tagged with.

Twice each: as RGB, and as JPEG's planes.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from synthetic import ffmpeg, ffmpeg_rgb, moving_pattern, psnr

from mgm_prep.decoding.colour import PlaneScaler, to_rgb
from mgm_prep.decoding.pyav import VideoFile

# Blurred, because readers differ in how they enlarge chroma at hard edges, and that is not what is tested.
SMOOTH = "testsrc2=s=320x240:r=25:d=0.2,gblur=sigma=5"


def _by_planes() -> Any:
    scaler = PlaneScaler()
    return lambda frame, height, width: _jfif_rgb(scaler.planes(frame, height, width))


def _jfif_rgb(planes: Any) -> Any:
    """ITU-T T.871, 7; chroma repeated, as the ffmpeg program does."""
    y = planes.y_HW.astype(np.float32)
    cb, cr = (np.kron(plane, np.ones((2, 2))) - 128 for plane in planes[1:])
    rgb_HWC = np.stack(
        [y + 1.402 * cr, y - 0.114 * 1.772 / 0.587 * cb - 0.299 * 1.402 / 0.587 * cr, y + 1.772 * cb], -1
    )
    return np.clip(np.rint(rgb_HWC), 0, 255).astype(np.uint8)


WAYS = pytest.mark.parametrize("way", [lambda: to_rgb, _by_planes], ids=["rgb", "planes"])


def _ours(path: Path, height: Any, width: Any, way: Any, num_frames: Any = None) -> np.ndarray:
    with VideoFile(path) as video:
        convert = way()
        return np.stack([convert(p.frame, height, width) for p in islice(video.pictures(), num_frames)])


@WAYS
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("value_range", ["tv", "pc"])
def test_matrix_and_range_are_honoured(tmp_path: Path, way: Any, matrix: str, value_range: str) -> None:
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-vf",
           f"scale=out_color_matrix={matrix}:out_range={value_range},format=yuv420p", "-c:v", "libx264", "-crf", "12",
           "-colorspace", matrix, "-color_range", value_range, str(path))  # fmt: skip
    reference = ffmpeg_rgb(path, 240, 320)
    assert psnr(reference, _ours(path, 240, 320, way)) > 42
    # The same planes read with the other range are far off, so the test can fail.
    wrong = np.clip((reference.astype(np.float32) - 16) * 255 / 219, 0, 255)
    assert psnr(reference, wrong) < 30


@WAYS
@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "gray", "nv12"])
def test_other_pixel_formats(tmp_path: Path, way: Any, pixel_format: str) -> None:
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-pix_fmt", pixel_format, "-c:v", "libx264", "-crf", "12", str(path))
    # Planes halve the chroma of 4:4:4.
    least = 37 if (way, pixel_format) == (_by_planes, "yuv444p") else 42
    assert psnr(ffmpeg_rgb(path, 240, 320), _ours(path, 240, 320, way)) > least


@WAYS
@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le"])
def test_ten_bits(tmp_path: Path, way: Any, pixel_format: str) -> None:
    """Against swscale's accurate mode: its default for 10 bits is a level or two off."""
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-pix_fmt", pixel_format, "-c:v", "libx264", "-crf", "12", str(path))
    assert psnr(ffmpeg_rgb(path, 240, 320, is_scaled=True), _ours(path, 240, 320, way)) > 40


@WAYS
@pytest.mark.parametrize("matrix", ["bt709", "bt2020nc"])
@pytest.mark.parametrize("value_range", ["tv", "pc"])
def test_ten_bits_have_a_matrix_and_a_range_too(tmp_path: Path, way: Any, matrix: str, value_range: str) -> None:
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-vf",
           f"scale=out_color_matrix={matrix}:out_range={value_range},format=yuv420p10le", "-c:v", "libx264", "-crf",
           "12", "-colorspace", matrix, "-color_range", value_range, str(path))  # fmt: skip
    assert psnr(ffmpeg_rgb(path, 240, 320, is_scaled=True), _ours(path, 240, 320, way)) > 39


@WAYS
@pytest.mark.parametrize(
    ("pixel_format", "codec", "suffix"),
    [
        ("yuva420p", "ffv1", "mkv"),
        ("yuva420p", "libvpx-vp9", "webm"),
        ("bgra", "ffv1", "mkv"),
        ("ya8", "ffv1", "mkv"),
        ("gray10le", "ffv1", "mkv"),
        ("yuv444p10le", "libx264", "mp4"),
        ("yuv440p", "ffv1", "mkv"),
        ("yuv411p", "ffv1", "mkv"),
        ("uyvy422", "rawvideo", "avi"),
        ("gbrp", "libx264rgb", "mp4"),
        ("yuvj444p", "mjpeg", "mov"),
    ],
)
def test_alpha_grey_packed_and_sampled_otherwise(
    tmp_path: Path, way: Any, pixel_format: str, codec: str, suffix: str
) -> None:
    """Alpha is left out, as by the ffmpeg program; planes halve whatever chroma is finer."""
    path = tmp_path / f"clip.{suffix}"
    quality = {"libvpx-vp9": ("-crf", "10", "-b:v", "0", "-cpu-used", "8"), "mjpeg": ("-q:v", "2")}
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-pix_fmt", pixel_format, "-c:v", codec, *quality.get(codec, ()), str(path))
    assert psnr(ffmpeg_rgb(path, 240, 320, is_scaled=True), _ours(path, 240, 320, way)) > 37


@WAYS
def test_a_palette_has_its_colours(tmp_path: Path, way: Any) -> None:
    """GIF's dots of colour are finer than 4:2:0 can hold, so their mean over 9×9 px is compared."""
    path = tmp_path / "clip.gif"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, str(path))
    both = (ffmpeg_rgb(path, 240, 320), _ours(path, 240, 320, way))
    assert psnr(*(np.stack([cv2.blur(frame, (9, 9)) for frame in frames]) for frames in both)) > 40


@WAYS
def test_rgb_streams_are_taken_as_they_are(tmp_path: Path, way: Any) -> None:
    path = moving_pattern(tmp_path / "clip.mkv", "-c:v", "ffv1", "-pix_fmt", "bgr0", seconds=0.2)
    assert psnr(ffmpeg_rgb(path, 240, 320), _ours(path, 240, 320, way)) > 48


@WAYS
def test_shrinking_averages(real_videos: Path, way: Any) -> None:
    """720p → 256 lines: close to swscale's area filter, and no aliasing."""
    path = real_videos / "bigbuckbunny.mp4"
    ours = _ours(path, 256, 456, way, num_frames=40)
    # The 720p chroma has more detail than half of 256 lines can hold.
    least = 39 if way is _by_planes else 40
    assert psnr(ffmpeg_rgb(path, 256, 456, is_scaled=True)[:40], ours) > least

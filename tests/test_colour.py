"""Pixels against the ffmpeg program's own rgb24, for every matrix and range that streams are tagged with."""

import numpy as np
import pytest
from synthetic import ffmpeg, ffmpeg_rgb, moving_pattern, psnr

from mgm_prep.colour import to_rgb
from mgm_prep.decode import VideoFile

# Blurred, because readers differ in how they enlarge chroma at hard edges, and that is not what is tested.
SMOOTH = "testsrc2=s=320x240:r=25:d=0.2,gblur=sigma=5"


def _ours(path, height, width):
    with VideoFile(path) as video:
        return np.stack([to_rgb(picture.frame, height, width) for picture in video.pictures()])


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("value_range", ["tv", "pc"])
def test_matrix_and_range_are_honoured(tmp_path, matrix, value_range):
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-vf",
           f"scale=out_color_matrix={matrix}:out_range={value_range},format=yuv420p", "-c:v", "libx264", "-crf", "12",
           "-colorspace", matrix, "-color_range", value_range, str(path))  # fmt: skip
    reference = ffmpeg_rgb(path, 240, 320)
    assert psnr(reference, _ours(path, 240, 320)) > 42
    # The same planes read with the other range are far off, so the test can fail.
    wrong = np.clip((reference.astype(np.float32) - 16) * 255 / 219, 0, 255)
    assert psnr(reference, wrong) < 30


@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "gray", "nv12"])
def test_other_pixel_formats(tmp_path, pixel_format):
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-pix_fmt", pixel_format, "-c:v", "libx264", "-crf", "12", str(path))
    assert psnr(ffmpeg_rgb(path, 240, 320), _ours(path, 240, 320)) > 42


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le"])
def test_ten_bits(tmp_path, pixel_format):
    """Against swscale's accurate mode: its default for 10 bits is a level or two off."""
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", SMOOTH, "-pix_fmt", pixel_format, "-c:v", "libx264", "-crf", "12", str(path))
    assert psnr(ffmpeg_rgb(path, 240, 320, is_scaled=True), _ours(path, 240, 320)) > 40


def test_rgb_streams_are_taken_as_they_are(tmp_path):
    path = moving_pattern(tmp_path / "clip.mkv", "-c:v", "ffv1", "-pix_fmt", "bgr0", seconds=0.2)
    assert psnr(ffmpeg_rgb(path, 240, 320), _ours(path, 240, 320)) > 50


def test_shrinking_averages(real_videos):
    """720p → 256 lines: close to swscale's area filter, and no aliasing."""
    path = real_videos / "bigbuckbunny.mp4"
    with VideoFile(path) as video:
        ours = np.stack([to_rgb(p.frame, 256, 456) for p, _ in zip(video.pictures(), range(40), strict=False)])
    assert psnr(ffmpeg_rgb(path, 256, 456, is_scaled=True)[:40], ours) > 40

"""A film is read back by another program, ffmpeg: every picture, its colours, its size and its time."""

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from synthetic import shown_at_s

from mgm_shared.mp4 import save_mp4

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [236, 200, 20], [0, 0, 0], [255, 255, 255]], np.uint8)


def _pictures(height: int, width: int) -> list[np.ndarray]:
    """Two fields of colour, others in each picture."""
    pictures = []
    for t in range(len(COLOURS)):
        picture_HWC = np.empty((height, width, 3), np.uint8)
        picture_HWC[:, : width // 2], picture_HWC[:, width // 2 :] = COLOURS[t], COLOURS[t - 1]
        pictures.append(picture_HWC)
    return pictures


def _read_back(file: Path, height: int, width: int) -> np.ndarray:
    """Full-range RGB by the matrix that the file names."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(file)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 97)])
def test_another_program_reads_every_picture(tmp_path: Path, height: int, width: int) -> None:
    pictures = _pictures(height, width)
    save_mp4(pictures, tmp_path / "new/film.mp4", frames_per_s=12.5)
    shown_THWC = _read_back(tmp_path / "new/film.mp4", height + height % 2, width + width % 2)
    assert len(shown_THWC) == len(pictures)
    for picture_HWC, shown_HWC in zip(pictures, shown_THWC, strict=True):
        # Away from the edge of the fields, which shares its colour between two pixels, and from the line added.
        for columns in (slice(4, width // 2 - 4), slice(width // 2 + 4, width - 4)):
            difference = shown_HWC[4 : height - 4, columns].astype(int) - picture_HWC[4 : height - 4, columns]
            assert np.abs(difference).max() <= 6
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["film.mp4"]


def test_it_plays_as_fast_as_the_clip_anywhere(tmp_path: Path) -> None:
    save_mp4(_pictures(64, 96), tmp_path / "film.mp4", frames_per_s=29.97 / 4)
    with av.open(str(tmp_path / "film.mp4")) as film:
        video = film.streams.video[0]
        times_s = [shown_at_s(frame) for frame in film.decode(video)]
        np.testing.assert_allclose(np.diff(times_s), 4 / 29.97, rtol=1e-3)
        # Other formats of pixels are shown by no browser.
        assert (video.codec.name, video.pix_fmt) == ("h264", "yuv420p")
        assert video.average_rate == pytest.approx(Fraction(2997, 400), rel=1e-3)
    raw = (tmp_path / "film.mp4").read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")

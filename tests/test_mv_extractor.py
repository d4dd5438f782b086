"""The second decoder held to PyAV: where it can be right (H.264 without B pictures, video first) the stores agree."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic import ffmpeg, pan, psnr, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.mv_extractor import CapturedFile
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.extract import extract
from mgm_shared.schema import PICTURE_TYPES
from mgm_shared.store import open_store

pytest.importorskip("mvextractor")

SETTINGS = {
    "one reference": {"bf": "0", "refs": "1"},
    "four references": {"bf": "0", "refs": "4"},
    "baseline": {"profile": "baseline"},
    "scene cuts": {"bf": "0", "g": "9"},
}


def _both(tmp_path: Path) -> Iterator[Any]:
    """The store of tmp_path/in by either decoder."""
    for decoder in ("pyav", "mv-extractor"):
        store = tmp_path / f"{decoder}.store"
        extract(tmp_path / "in", store, ExtractSettings(decoder=decoder, frame_codec="lossless"))
        yield open_store(store)


@pytest.mark.parametrize(
    ("setting", "size"),
    [
        ("one reference", (240, 320)),
        ("one reference", (186, 250)),
        ("one reference", (400, 560)),
        ("four references", (240, 320)),
        ("baseline", (186, 250)),
        ("scene cuts", (240, 320)),
    ],
    ids=str,
)
def test_the_stores_agree(tmp_path: Path, setting: str, size: tuple[int, int]) -> None:
    """Counts, times, types, raw vectors and motion, at native size, odd, and resized.

    Which of several references a block used is told by the pixels, and those passed through RGB on one side.
    """
    (tmp_path / "in").mkdir()
    frames = pan((3, -2), num_frames=20, height=size[0], width=size[1], is_grey=False)
    write_video(tmp_path / "in/a.mp4", frames, options=SETTINGS[setting])
    pyav, other = (store["a.mp4"] for store in _both(tmp_path))
    assert other.num_frames == pyav.num_frames == 20
    is_equal_TYX = ((other.motion[:] == pyav.motion[:]) | np.isnan(pyav.motion[:])).all(-1)
    assert is_equal_TYX.mean() >= (1.0 if setting == "one reference" else 0.99)
    np.testing.assert_array_equal(np.isnan(other.motion[:]), np.isnan(pyav.motion[:]))
    np.testing.assert_array_equal(other.time_s, pyav.time_s)
    np.testing.assert_array_equal(other.picture_type, pyav.picture_type)
    assert psnr(pyav.frames[:], other.frames[:]) > 30
    records = [dict(video.record) | {"start": 0} for video in (pyav, other)]
    assert records[0] == records[1]
    with VideoFile(tmp_path / "in/a.mp4") as file, CapturedFile(tmp_path / "in/a.mp4") as captured:
        for picture, twin in zip(file.pictures(), captured.pictures(), strict=True):
            assert (picture.decode_index, picture.is_reference) == (twin.decode_index, twin.is_reference)
            if picture.picture_type != PICTURE_TYPES.index("I"):
                np.testing.assert_array_equal(picture.vectors_K, twin.vectors_K)


def test_the_choice_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in/a.mp4", pan((3, -2), num_frames=4, height=64, width=96), options={"bf": "0"})
    command = ["extract", str(tmp_path / "in"), str(tmp_path / "out.store"), "--workers", "0", "--decoder"]
    assert CliRunner().invoke(main, [*command, "mv-extractor"]).exit_code == 0
    described = CliRunner().invoke(main, ["inspect", str(tmp_path / "out.store"), "--json"])
    described = json.loads(described.stdout)
    assert described["settings"]["decoder"] == "mv-extractor"
    assert "motion-vector-extractor" in described["libraries"]
    refused = CliRunner().invoke(main, [*command, "pyav"])
    assert refused.exit_code == 2
    assert "was extracted with decoder = mv-extractor" in refused.stderr


def test_times_and_orientation_are_the_container_s(tmp_path: Path) -> None:
    """mv-extractor knows neither; both decoders must tell the same of a turned clip of variable rate."""
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "turned.mp4", pan((3, -2), num_frames=30), options={"bf": "0", "refs": "1"}, rotation=90)
    ffmpeg("-noautorotate", "-i", str(tmp_path / "turned.mp4"), "-vf", "select='lt(n,10)+not(mod(n,3))'", "-fps_mode",
           "vfr", "-bf", "0", "-refs", "1", "-c:v", "libx264", str(tmp_path / "in/a.mp4"))  # fmt: skip
    pyav, other = (store["a.mp4"] for store in _both(tmp_path))
    assert (pyav.height, pyav.width) == (320, 240)
    np.testing.assert_array_equal(other.motion[:], pyav.motion[:])
    np.testing.assert_array_equal(other.time_s, pyav.time_s)
    assert len(set(np.diff(pyav.time_s).round(3))) == 2


def test_what_it_loses_is_counted(tmp_path: Path) -> None:
    """It drops the last pictures where audio is stream 0, and all of them behind 512 packets of audio."""
    first = tmp_path / "first.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=1.6", "-f", "lavfi", "-i", "sine=d=1.6", "-map", "1:a", "-map",
           "0:v", "-bf", "3", "-c:v", "libx264", "-c:a", "aac", str(first))  # fmt: skip
    with CapturedFile(first) as video:
        num_pictures = sum(1 for _ in video.pictures())
    assert num_pictures < 40
    assert video.num_errors == 40 - num_pictures
    late = tmp_path / "late.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=d=16", "-itsoffset", "14", "-i", str(first), "-map", "0:a", "-map", "1:v",
           "-c:v", "copy", "-c:a", "aac", str(late))  # fmt: skip
    with CapturedFile(late) as video, pytest.raises(Unreadable, match="decodes no picture of it"):
        list(video.pictures())

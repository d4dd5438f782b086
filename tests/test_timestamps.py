"""Times that a container gives wrongly: they rise in the store, stay as they are where they rise, and give the rate.

The oracles are the ffmpeg program, which mends the clock of joined streams, and the numbers that a file was made with.
"""

import re
import subprocess
from math import inf, nan
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from synthetic import FFMPEG, ffmpeg, moving_pattern

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.timestamps import mean_rate, rising, shown_at
from mgm_prep.extraction.extract import extract
from mgm_shared.store import Video, open_store

H264 = ("-c:v", "libx264", "-bf", "2", "-g", "25")


def _stored(path: Path, decoder: Literal["pyav", "mv-extractor"] = "pyav") -> Video:
    """The one video of a store made of a folder that holds nothing else."""
    folder = path.with_name("in")
    folder.mkdir(exist_ok=True)
    path.rename(folder / path.name)
    extract(folder, path.with_name("out.store"), ExtractSettings(no_vectors="skip", decoder=decoder))
    return open_store(path.with_name("out.store"))[path.name]


def _ffmpeg_times(path: Path) -> list[float]:
    """When the ffmpeg program shows each frame, after it mended the clock, by its filter showinfo."""
    command = [FFMPEG, "-hide_banner", "-i", str(path), "-map", "0:v:0", "-vf", "showinfo"]
    command += ["-fps_mode", "passthrough", "-f", "null", "-"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [float(time_s) for time_s in re.findall(r"pts_time:\s*([-\d.]+)", log)]


def _joined(path: Path, *offsets_s: float) -> Path:
    """Streams of 0.4 s and 25 frames a second, one behind the other, whose clocks begin at these times."""
    joined = b""
    for number, offset_s in enumerate(offsets_s):
        piece = path.with_name(f"{number}{path.suffix}")
        moving_pattern(piece, *H264, "-output_ts_offset", str(offset_s), size="96x64", seconds=0.4)
        joined += piece.read_bytes()
    path.write_bytes(joined)
    return path


@pytest.mark.parametrize("suffix", [".ts", ".m2ts"])
@pytest.mark.parametrize(
    "offsets_s", [(0, 0), (0, 0, 0), (0, 3600), (3600, 0), (0, 5 * 3600, 20), (0, 0.2)], ids=lambda value: str(value)
)
def test_joined_streams_are_one(tmp_path: Path, suffix: str, offsets_s: Any) -> None:
    """The clock jumps back, or forward by hours; the frames are those of one video all the same."""
    path = _joined(tmp_path / f"a{suffix}", *offsets_s)
    expected = _ffmpeg_times(path)
    video = _stored(path)
    assert len(video.time_s) == len(expected) == 10 * len(offsets_s)
    np.testing.assert_allclose(np.diff(video.time_s), 0.04, atol=1e-6)
    np.testing.assert_allclose(video.time_s - video.time_s[0], np.array(expected) - expected[0], atol=0.021)
    assert video.fps == pytest.approx(25)


def test_the_second_decoder_keeps_joined_streams_in_order(tmp_path: Path) -> None:
    pytest.importorskip("mvextractor")
    video = _stored(_joined(tmp_path / "a.ts", 0, 0), "mv-extractor")
    np.testing.assert_allclose(np.diff(video.time_s), 0.04, atol=1e-6)


def test_a_clock_that_wraps(tmp_path: Path) -> None:
    """MPEG-TS counts 2^33 ticks of 90 kHz, 26.5 hours."""
    moving_pattern(tmp_path / "a.ts", *H264, "-output_ts_offset", str(2**33 / 90000 - 1.8), size="96x64", seconds=1.6)
    video = _stored(tmp_path / "a.ts")
    assert len(video.time_s) == 40
    np.testing.assert_allclose(np.diff(video.time_s), 0.04, atol=1e-4)
    assert video.fps == pytest.approx(25)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv"])
def test_a_pause_is_kept(tmp_path: Path, suffix: str) -> None:
    """A screen that is still for 12 s, as a recorder of screens writes it. The rate is that of the rest."""
    path = tmp_path / f"a{suffix}"
    pause = ("-vf", "setpts='PTS+if(gte(N,20),12/TB,0)'", "-fps_mode", "passthrough")
    moving_pattern(path, *pause, *H264, size="96x64", seconds=1.6)
    video = _stored(path)
    steps_s = np.diff(video.time_s)
    assert steps_s[19] == pytest.approx(12.04, abs=1e-3)
    np.testing.assert_allclose(np.delete(steps_s, 19), 0.04, atol=1e-3)
    assert video.fps == pytest.approx(25, rel=1e-3)


def test_a_rate_that_the_container_rounds(tmp_path: Path) -> None:
    """Matroska has milliseconds, and the median of 33 and 34 ms is another rate: the mean is the right one."""
    pause = ("-vf", "setpts='PTS+if(gte(N,20),12/TB,0)'", "-fps_mode", "passthrough")
    source = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=30000/1001:d=1.6")
    ffmpeg(*source, *pause, *H264, str(tmp_path / "a.mkv"))
    assert _stored(tmp_path / "a.mkv").fps == pytest.approx(30000 / 1001, rel=2e-3)


def test_equal_times_in_a_file(tmp_path: Path) -> None:
    """A camera that writes whole seconds: the frames of a second are spread over it."""
    path = tmp_path / "a.mkv"
    moving_pattern(tmp_path / "right.mkv", "-c:v", "mjpeg", size="96x64", seconds=3)
    with av.open(str(tmp_path / "right.mkv")) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                assert packet.pts is not None
                packet.pts = packet.dts = packet.pts // 1000 * 1000
                packet.stream = stream
                out.mux_one(packet)
    (tmp_path / "right.mkv").unlink()
    video = _stored(path)
    assert len(video.time_s) == 75
    assert (np.diff(video.time_s) > 0).all()
    np.testing.assert_allclose(video.time_s, np.arange(75) / 25, atol=0.05)
    assert video.fps == pytest.approx(25, rel=0.02)


def _times(*parts: tuple[float, int]) -> list[float]:
    """25 a second, in pieces that begin at a time and have a number of pictures."""
    return [start_s + k / 25 for start_s, number in parts for k in range(number)]


@pytest.mark.parametrize(
    ("times_s", "expected_s"),
    [
        (_times((7, 30)), _times((7, 30))),
        ([0, 1, 1.5, 9, 9.01], [0, 1, 1.5, 9, 9.01]),
        (_times((5, 25), (5, 25)), _times((5, 50))),
        (_times((5, 4), (5, 4), (2, 4)), _times((5, 12))),
        (_times((5, 4), (50, 4)), _times((5, 4), (50, 4))),
        (_times((0, 4), (0.04, 1), (0.2, 4)), _times((0, 9))),
        (_times((0, 4), (0.12, 1), (0.2, 4)), _times((0, 9))),
        (_times((0, 4), (77, 1), (0.2, 4)), _times((0, 9))),
        (_times((0, 2), (-9, 3), (0.2, 4)), _times((0, 9))),
        ([3, 3, 3], [3, 3.04, 3.08]),
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]),
        (_times((0, 3), (0, 5)), _times((0, 8))),
        ([0], [0]),
    ],
    ids=lambda value: None,
)
def test_rising_times(times_s: Any, expected_s: Any) -> None:
    step_s = 0.25 if times_s[-1] == 1 and times_s[0] == 0 else 0.04
    np.testing.assert_allclose(rising(times_s, step_s), expected_s, atol=1e-9)


def test_rising_times_are_not_touched() -> None:
    """To the last bit, whatever their steps."""
    times_s = np.cumsum(np.random.default_rng(0).exponential(3, 200)).tolist()
    assert rising(times_s, 1) == times_s
    assert shown_at(times_s, [nan] * 200, 25, 30 * 3600) == times_s


def test_any_times_rise() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        pts_s = rng.choice([0.0, 0.04, 1.0, -3.0, 1e6], 30) * rng.integers(0, 9, 30)
        pts_s[rng.random(30) < rng.choice([0, 0.3])] = nan
        dts_s = np.sort(rng.random(30)) if rng.random() < 0.3 else np.full(30, nan)
        times_s = shown_at(pts_s.tolist(), dts_s.tolist(), 25, float(rng.choice([10, inf])))
        assert (np.diff(times_s) > 0).all()
        assert 0 < mean_rate(times_s, 25) < inf


def test_a_long_step_is_a_new_clock_where_the_format_has_such() -> None:
    times_s = _times((0, 5), (3600, 5))
    np.testing.assert_allclose(rising(times_s, 0.04, 10), _times((0, 10)))
    assert rising(times_s, 0.04, 30 * 3600) == times_s
    assert mean_rate(times_s, 25) == pytest.approx(25)
    # Frames that are far apart throughout, as in a film of a growing plant.
    assert mean_rate([0, 600, 1200, 1800], 25) == pytest.approx(1 / 600)


def test_a_picture_that_is_shown_too_early() -> None:
    """Of a stream with a damaged reference: its time lies ahead of the two that follow, and no other is moved."""
    times_s = [0.93, 0.96, 1.0, 1.03, 1.13, 1.06, 1.1, 1.16, 1.2]
    times_s = rising(times_s, 0.0333)
    np.testing.assert_allclose(np.delete(times_s, 4), [0.93, 0.96, 1.0, 1.03, 1.06, 1.1, 1.16, 1.2])
    assert 1.03 < times_s[4] < 1.06

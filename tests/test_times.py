"""Seconds to frame numbers, against plain loops over the times and against the presentation times of PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from synthetic import pan

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.store import Video, open_store
from mgm_shared.times import end_s, frames_between, nearest_frames

# Steps of 20 to 120 ms, as a phone writes them, from 0.5 s on.
VARIABLE = (500 + np.cumsum(np.random.default_rng(1).integers(20, 120, 30))).tolist()


def loop_between(times_s: list[float], start_s: float, end_s: float) -> list[int]:
    return [k for k, time_s in enumerate(times_s) if start_s <= time_s < end_s]


def loop_nearest(times_s: list[float], at_s: float) -> int:
    return min(range(len(times_s)), key=lambda k: (abs(times_s[k] - at_s), k))


def write_timed(path: Path, times: list[int], time_base: Fraction) -> None:
    """Frames at the given times, in units of the time base, with B frames."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        stream.codec_context.time_base = time_base
        for frame_HWC, time in zip(pan((3, 0), len(times), 128, 160), times, strict=True):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame.pts, frame.time_base = time, time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.fixture(scope="module", params=["constant", "variable"])
def timed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Video, list[float]]:
    """A video of a store, and what PyAV says of the presentation times of its file."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "videos").mkdir()
    path = folder / "videos" / "a.mp4"
    if request.param == "constant":
        # 1001/30000 s a frame, as NTSC has it.
        write_timed(path, [k * 1001 for k in range(30)], Fraction(1, 30000))
    else:
        write_timed(path, VARIABLE, Fraction(1, 1000))
    extract(folder / "videos", folder / "a.store", ExtractSettings())
    with av.open(str(path)) as file:
        times_s = [float(frame.time) for frame in file.decode(video=0) if frame.time is not None]
    return open_store(folder / "a.store")["a.mp4"], times_s


def test_store_has_the_times_of_pyav(timed: tuple[Video, list[float]]) -> None:
    video, times_s = timed
    assert len(times_s) == 30
    np.testing.assert_allclose(video.time_s, times_s, atol=1e-9)


def test_frames_between_are_those_of_a_loop_over_pyav_times(timed: tuple[Video, list[float]]) -> None:
    video, times_s = timed
    rng = np.random.default_rng(0)
    starts_s, ends_s = np.sort(rng.uniform(0, times_s[-1] + 0.2, (2, 200)), axis=0)
    first_N, stop_N = frames_between(video.time_s, starts_s, ends_s)
    for start, end, first, stop in zip(starts_s, ends_s, first_N, stop_N, strict=True):
        # A time that is rounded to a frame's own is tested below.
        if min(abs(time - edge) for time in times_s for edge in (start, end)) > 0.001:
            assert list(range(first, stop)) == loop_between(times_s, start, end)


def test_a_frames_own_time_as_a_table_rounds_it(timed: tuple[Video, list[float]]) -> None:
    video, times_s = timed
    for first, stop in ((0, 1), (3, 9), (29, 30)):
        start = round(times_s[first], 3)
        end = round(times_s[stop], 3) if stop < len(times_s) else end_s(video.time_s, video.fps)
        found = frames_between(video.time_s, start, end)
        assert (int(found[0]), int(found[1])) == (first, stop)


def test_nearest_frames_are_those_of_a_loop_over_pyav_times(timed: tuple[Video, list[float]]) -> None:
    video, times_s = timed
    at_s = np.random.default_rng(2).uniform(-0.5, times_s[-1] + 0.5, 300)
    assert nearest_frames(video.time_s, at_s).tolist() == [loop_nearest(video.time_s.tolist(), t) for t in at_s]


def test_of_two_equally_near_frames_the_earlier() -> None:
    assert nearest_frames(np.array([0.0, 1.0, 2.0]), [0.5, 1.5, 9, -9]).tolist() == [0, 1, 2, 0]


def test_a_video_of_one_frame() -> None:
    assert nearest_frames(np.array([0.5]), [0, 0.5, 3]).tolist() == [0, 0, 0]
    assert [int(edge) for edge in frames_between(np.array([0.5]), 0.5, 0.6)] == [0, 1]


def test_a_place_between_two_frames_is_empty() -> None:
    first, stop = frames_between(np.array([0.0, 1.0, 2.0]), 0.2, 0.7)
    assert first == stop == 1
    first, stop = frames_between(np.array([0.0, 1.0, 2.0]), 1.8, 0.2)
    assert first == stop

"""Block matching against textures of known speed, and what extraction makes of it."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from recording import Recording
from synthetic import pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.motion.block_matching import with_estimates
from mgm_prep.runtime.execution import Execution
from mgm_shared.store import open_store


def _estimated(velocity: Any, num_frames: int = 8) -> list[Any]:
    frames = ((number, frame_HWC[..., 0]) for number, frame_HWC in enumerate(pan(velocity, num_frames=num_frames)))
    return list(with_estimates(frames, 240, 320))


@pytest.mark.parametrize("velocity", [(3, -2), (-5, 0), (20, 4)])
def test_a_pan_has_its_speed(velocity: tuple[int, int]) -> None:
    """Also one of 20 px a frame, which FFmpeg's default search does not reach."""
    items = _estimated(velocity)
    assert [number for number, _ in items] == list(range(8))
    assert items[0][1].shape == (30, 40, 2)
    assert np.isnan(items[0][1]).all()
    for _, motion_YX2 in items[1:]:
        assert not np.isnan(motion_YX2).any()
        # Less than all: what has just come into view has no match, and a wide search spreads from where it began.
        assert (motion_YX2 == velocity).all(-1).mean() > 0.6


@pytest.mark.parametrize("num_frames", [0, 1, 2, 3])
def test_no_frame_is_lost(num_frames: int) -> None:
    """mestimate by itself hands out one frame less than it is given."""
    items = _estimated((2, 1), num_frames)
    assert len(items) == num_frames
    assert [np.isnan(motion_YX2).all() for _, motion_YX2 in items] == [True, False, False][:num_frames]


@pytest.mark.parametrize("frame_codec", ["jpeg", "lossless"])
def test_estimate_changes_the_motion_and_nothing_else(tmp_path: Path, frame_codec: Literal["jpeg", "lossless"]) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in/a.webm", pan((3, -2), num_frames=8), "libvpx-vp9", {"cpu-used": "8"})
    videos = {}
    for no_vectors in ("estimate", "skip"):
        store = tmp_path / f"{no_vectors}.store"
        progress = Recording()
        settings = ExtractSettings(no_vectors=no_vectors, frame_codec=frame_codec)
        extract(tmp_path / "in", store, settings, Execution(progress=progress))
        assert any(
            "1 videos have a codec without motion vectors (vp9 1); their motion is" in line for line in progress.lines
        )
        videos[no_vectors] = open_store(store)["a.webm"]
    estimated, skipped = videos["estimate"], videos["skip"]
    assert (estimated.record["motion_source"], skipped.record["motion_source"]) == ("estimate", "none")
    np.testing.assert_array_equal(estimated.frames[:], skipped.frames[:])
    np.testing.assert_array_equal(estimated.time_s, skipped.time_s)
    assert np.isnan(skipped.motion[:]).all()
    np.testing.assert_array_equal(np.median(estimated.motion[1:], axis=(1, 2)), np.tile((3, -2), (7, 1)))

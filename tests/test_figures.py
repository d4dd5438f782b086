"""Figures show what they are given: hidden tubelets dark, arrows where cells move, red where no vector is."""

import numpy as np
import pytest

from mgm_shared.errors import UserError
from mgm_shared.figures import draw_motion, film_strip, motion_strip, panels, save, shade_hidden


def test_hidden_tubelets_are_dark_and_the_rest_is_untouched():
    frames_THWC = np.full((4, 32, 48, 3), 200, np.uint8)
    mask_thw = np.zeros((2, 2, 3), bool)
    mask_thw[1, 0, 2] = True
    shaded = shade_hidden(frames_THWC, mask_thw)
    expected = frames_THWC.copy()
    expected[2:4, 0:16, 32:48] = 40
    np.testing.assert_array_equal(shaded, expected)


def test_arrows_stand_on_moving_cells_and_red_on_missing_ones():
    _, axes = panels(1, 1, (16, 24))
    motion_YX2 = np.zeros((2, 3, 2), np.float32)
    motion_YX2[0, 2] = (3, -1)
    motion_YX2[1, 0] = np.nan
    draw_motion(axes[0][0], np.zeros((16, 24, 3), np.uint8), motion_YX2)
    (arrows,) = axes[0][0].collections
    np.testing.assert_array_equal(arrows.get_offsets(), [(19.5, 3.5)])
    assert (arrows.U.tolist(), arrows.V.tolist()) == ([3], [-1])
    tint = axes[0][0].images[1].get_array()
    assert tint[1, 0, 3] > 0
    assert tint[..., 3].astype(bool).sum() == 1


def test_a_strip_has_a_panel_a_frame(pan_store, tmp_path):
    video = pan_store["train/left/0.mp4"]
    assert len(film_strip([("a", video.frames[:3]), ("b", video.frames[3:6])]).axes) == 6
    figure = motion_strip(video, num_frames=5)
    assert figure.axes[0].get_title().split()[:2] == ["0", "I"]
    save(figure, tmp_path / "new/strip.png")
    assert (tmp_path / "new/strip.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="cannot draw into"):
        save(figure, tmp_path / "strip.txt")

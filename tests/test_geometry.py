"""Stored sizes, token grids, flips and turns against moving points."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_shared.geometry import Orientation, TokenGrid, stored_size


@pytest.mark.parametrize(
    ("display", "short_side", "expected"),
    [
        ((720, 1280), 256, (256, 456)),
        ((1280, 720), 256, (456, 256)),
        ((240, 426), 256, (240, 424)),
        ((480, 640), 480, (480, 640)),
        ((144, 176), 256, (144, 176)),
        ((3, 5), 256, (8, 8)),
    ],
)
def test_stored_size(display: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    assert stored_size(*display, short_side) == expected


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_a_turned_picture_has_turned_motion(
    is_transposed: bool, is_flipped_x: bool, is_flipped_y: bool, seed: int
) -> None:
    """A point that moves in the coded picture moves in the shown one as its motion says."""
    rng = np.random.default_rng(seed)
    height, width = 5, 7
    before, after = rng.integers(0, 5, (2, 2))
    orientation = Orientation(is_transposed=is_transposed, is_flipped_x=is_flipped_x, is_flipped_y=is_flipped_y)

    def shown_at(x: Any, y: Any) -> np.ndarray:
        frame = np.zeros((height, width, 3), np.uint8)
        frame[y, x] = 1
        (shown_y,), (shown_x,) = np.nonzero(orientation.frame(frame)[..., 0])
        return np.array([shown_x, shown_y])

    motion_YX2 = np.zeros((height, width, 2), np.float32)
    motion_YX2[after[1], after[0]] = after - before
    x, y = shown_at(*after)
    moved = orientation.motion(motion_YX2)
    np.testing.assert_array_equal(moved[y, x], shown_at(*after) - shown_at(*before))


def test_the_token_grid_of_the_paper() -> None:
    grid = TokenGrid.of_clip(16, 224, 224)
    assert (grid.t, grid.h, grid.w, grid.patches_per_slice, grid.num_tokens) == (8, 14, 14, 196, 1568)
    with pytest.raises(ValueError, match="does not divide into tubelets"):
        TokenGrid.of_clip(16, 230, 224)

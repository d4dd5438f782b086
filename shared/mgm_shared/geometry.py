"""Pixels, 8×8-pixel motion cells and the patches of tokens, and how a crop, a flip and a rotation change motion.

Axes: T frames · Y,X cells of 8×8 px (Y = H/8, X = W/8) · 2 = (dx, dy) in pixels per frame, right and down positive.
A cell without a vector is NaN: missing, which is not the same as static.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

CELL_PX = 8


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in pixels; fractions are allowed. (x, y) is its top left corner."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What a token covers: a tubelet of `frames` frames of px × px pixels."""

    px: int
    frames: int

    @property
    def num_values(self) -> int:
        """Colour values of a patch."""
        return 3 * self.frames * self.px**2

    @property
    def cells_per_side(self) -> int:
        """Motion cells along a side of a patch."""
        return self.px // CELL_PX


# The paper's, as VideoMAE's: each token is 2 × 16 × 16 pixels.
PAPER_PATCH = Patch(px=16, frames=2)


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """The token grid of a clip: t slices of h × w patches, a token for each."""

    t: int
    h: int
    w: int
    patch: Patch = PAPER_PATCH

    @classmethod
    def of_clip(cls, num_frames: int, height_px: int, width_px: int, patch: Patch = PAPER_PATCH) -> "TokenGrid":
        """The grid of a clip. ValueError unless the clip divides into whole patches."""
        if num_frames % patch.frames or height_px % patch.px or width_px % patch.px:
            raise ValueError(
                f"a clip of {num_frames} frames of {height_px}×{width_px} px does not divide into tubelets of "
                f"{patch.frames}×{patch.px}×{patch.px}"
            )
        return cls(t=num_frames // patch.frames, h=height_px // patch.px, w=width_px // patch.px, patch=patch)

    @property
    def patches_per_slice(self) -> int:
        return self.h * self.w

    @property
    def num_tokens(self) -> int:
        return self.t * self.patches_per_slice

    def patches_at(self, ratio: float) -> int:
        """`int(ratio · h · w)`, in integers: in floating point `int(0.57 * 100)` is 56."""
        return int(Fraction(ratio).limit_denominator(10_000) * self.patches_per_slice)


def stored_size(display_height: float, display_width: float, short_side: int) -> tuple[int, int]:
    """(height, width) in the store: the short side scaled to `short_side`, never enlarged, both multiples of 8."""
    scale = min(1.0, short_side / min(display_height, display_width))
    height, width = (max(CELL_PX, round(side * scale / CELL_PX) * CELL_PX) for side in (display_height, display_width))
    return height, width


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a decoded picture is displayed: one of the eight combinations of a transpose and two flips, transpose first.

    It stands for the display matrix of a container, with the rotation rounded to a right angle.
    """

    is_transposed: bool = False
    is_flipped_x: bool = False
    is_flipped_y: bool = False

    @property
    def degrees(self) -> int:
        """Rotation in degrees, counter-clockwise, applied after a horizontal flip if there is one."""
        if self.is_transposed:
            return 270 if self.is_flipped_x else 90
        return 180 if self.is_flipped_y else 0

    def frame(self, frame_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture as displayed, or one plane of it: (H, W) or (H, W, C), a view."""
        return self._lay(frame_HW)

    def motion(self, motion_YX2: NDArray[np.float32]) -> NDArray[np.float32]:
        """Motion (…, Y, X, 2) of the picture as displayed: cells and vectors are transposed and flipped together."""
        if self == UPRIGHT:
            return motion_YX2
        laid_YX2 = self._lay(motion_YX2)
        if self.is_transposed:
            laid_YX2 = laid_YX2[..., ::-1]
        signs = np.array([-1 if self.is_flipped_x else 1, -1 if self.is_flipped_y else 1], motion_YX2.dtype)
        return laid_YX2 * signs

    def _lay(self, grid_YXC: NDArray[Any]) -> NDArray[Any]:
        if self.is_transposed:
            grid_YXC = grid_YXC.swapaxes(0, 1)
        return grid_YXC[:: -1 if self.is_flipped_y else 1, :: -1 if self.is_flipped_x else 1]


# Of nearly all videos.
UPRIGHT = Orientation()

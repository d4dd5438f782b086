"""Boxes follow the pixels of a view: cut, scaled and mirrored with them; random crops that keep labelled boxes.

Axes: B boxes · 4 = left, top, right, bottom. `_share` boxes are shares of the picture, `_px` ones pixels of the view.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import Box
from mgm_train.config import DetectConfig
from mgm_train.data.views import View, even

# A box is kept in a crop that shows its centre and at least this share of its area.
MIN_SHOWN = 0.2
MAX_DRAWS = 10
MIN_SIDE_PX = 1.0
# Largest growth and shrinkage of a side of a training box, as shares of the box's width and height.
JITTER_X, JITTER_Y = (0.2, 0.1), (0.1, 0.05)
# A tested box grows by this factor before its features are pooled.
EXTENSION_XY = (1.10, 1.05)


def in_view(box_share_B4: NDArray[np.float64], view: View, height: int, width: int) -> NDArray[np.float64]:
    """Boxes of a picture of this size in pixels of a view, not clipped to it."""
    view_height, view_width = view.shape_px
    scale_2 = np.array([view_width / view.box.width, view_height / view.box.height])
    corner_B22 = box_share_B4.reshape(-1, 2, 2) * (width, height)
    corner_B22 = (corner_B22 - (view.box.x, view.box.y)) * scale_2
    if view.is_mirrored:
        # A box's left side becomes its right side.
        corner_B22[..., 0] = view_width - corner_B22[:, ::-1, 0]
    return np.asarray(corner_B22.reshape(-1, 4))


def clipped(box_px_B4: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Boxes clipped to the picture; a side is at least `MIN_SIDE_PX` long."""
    limit_2 = np.array([width, height], np.float64)
    low_B2 = box_px_B4[:, :2].clip(0, limit_2 - MIN_SIDE_PX)
    high_B2 = np.maximum(box_px_B4[:, 2:].clip(0, limit_2), low_B2 + MIN_SIDE_PX)
    return np.concatenate([low_B2, high_B2], axis=1)


def shown(box_px_B4: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Which boxes a view of this size shows: their centre, and at least `MIN_SHOWN` of their area."""
    low_B2, high_B2, limit_2 = box_px_B4[:, :2], box_px_B4[:, 2:], np.array([width, height])
    is_inside_B = ((low_B2 + high_B2 >= 0) & (low_B2 + high_B2 <= 2 * limit_2)).all(1)
    area_B = np.prod(high_B2 - low_B2, axis=1)
    shown_B = np.prod((np.minimum(high_B2, limit_2) - np.maximum(low_B2, 0)).clip(0), axis=1)
    return np.asarray(is_inside_B & (shown_B >= MIN_SHOWN * area_B))


def extended(box_px_B4: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Boxes a tenth wider and a twentieth higher about their centre, clipped, as they are tested."""
    centre_B2 = (box_px_B4[:, :2] + box_px_B4[:, 2:]) / 2
    half_B2 = (box_px_B4[:, 2:] - box_px_B4[:, :2]) / 2 * EXTENSION_XY
    return clipped(np.concatenate([centre_B2 - half_B2, centre_B2 + half_B2], axis=1), height, width)


@dataclass(frozen=True, kw_only=True)
class BoxAugment:
    """Random square crop of `crop_scale` of the short side, mirrored half the time; sides of the boxes are jittered."""

    size_px: int
    crop_scale: float
    flip: bool
    jitter: bool

    @classmethod
    def of(cls, config: DetectConfig) -> "BoxAugment":
        """The augmentation of a configuration."""
        return cls(size_px=config.image_px, crop_scale=config.crop_scale, flip=config.flip, jitter=config.box_jitter)

    def view(
        self, box_share_B4: NDArray[np.float64], height: int, width: int, rng: Generator
    ) -> tuple[View, NDArray[np.bool_]]:
        """Draw a view of a picture of this size that keeps a box at least, and which boxes it keeps.

        After ten draws that keep none, the crop is centred on one of the boxes.
        """
        side = max(2, even(min(height, width) * self.crop_scale))
        is_mirrored = bool(self.flip and rng.random() < 0.5)
        for _ in range(MAX_DRAWS):
            x, y = even(rng.integers(width - side + 1)), even(rng.integers(height - side + 1))
            view = self._view(x, y, side, is_mirrored)
            is_kept_B = self._shown(box_share_B4, view, height, width)
            if is_kept_B.any():
                return view, is_kept_B
        chosen = int(rng.integers(len(box_share_B4)))
        centre_2 = box_share_B4[chosen].reshape(2, 2).mean(0) * (width, height)
        x, y = (
            even(max(0, min(room, c - side / 2)))
            for room, c in zip((width - side, height - side), centre_2, strict=True)
        )
        view = self._view(x, y, side, is_mirrored)
        is_kept_B = self._shown(box_share_B4, view, height, width)
        is_kept_B[chosen] = True
        return view, is_kept_B

    def _view(self, x: int, y: int, side: int, is_mirrored: bool) -> View:
        return View(box=Box(x=x, y=y, width=side, height=side), size_px=self.size_px, is_mirrored=is_mirrored)

    def _shown(self, box_share_B4: NDArray[np.float64], view: View, height: int, width: int) -> NDArray[np.bool_]:
        return shown(in_view(box_share_B4, view, height, width), *view.shape_px)

    def boxes(self, box_px_B4: NDArray[np.float64], rng: Generator) -> NDArray[np.float64]:
        """Boxes of a view as they are trained: clipped, and each side moved by chance."""
        box_px_B4 = clipped(box_px_B4, self.size_px, self.size_px)
        if not self.jitter:
            return box_px_B4
        side_B2 = box_px_B4[:, 2:] - box_px_B4[:, :2]
        (out_x, in_x), (out_y, in_y) = JITTER_X, JITTER_Y
        low_B2 = side_B2 * rng.uniform((-out_x, -out_y), (in_x, in_y), (len(side_B2), 2))
        high_B2 = side_B2 * rng.uniform((-in_x, -in_y), (out_x, out_y), (len(side_B2), 2))
        return clipped(box_px_B4 + np.concatenate([low_B2, high_B2], axis=1), self.size_px, self.size_px)

"""Crop, flip and colour clips: all frames of a clip and their motion get the same crop and flip.

Axes: T frames · H,W pixels · C = RGB. Crops are even whole pixels of the stored frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import Box
from mgm_train.config import FinetuneConfig
from mgm_train.data.augmentation.device_augment import Changes
from mgm_train.data.augmentation.operations import apply_operations, draw_operations
from mgm_train.data.clips import Clip
from mgm_train.data.views import View, even

CROP_SCALES = (1.0, 0.875, 0.75, 0.66)
ASPECT_RATIOS = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def multi_scale_crop(
    height: int, width: int, rng: Generator, *, scales: Sequence[float] = CROP_SCALES, is_offset_fixed: bool = True
) -> Box:
    """Draw a crop whose width and height are scales of the short side, at most one step apart (as in VideoMAE).

    It lies at one of the 13 points of the quarter grid of TSN (centre, corners, edges, quarters), or anywhere with
    `is_offset_fixed=False`.
    """
    sides = [even(min(height, width) * scale) for scale in scales]
    pairs = [(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1]
    crop_width, crop_height = pairs[rng.integers(len(pairs))]
    room_x, room_y = width - crop_width, height - crop_height
    if is_offset_fixed:
        # Both coordinates even, or both odd: all of the 5×5 quarter grid's points but the 12 off the diagonals.
        points = [(x, y) for x in range(5) for y in range(5) if (x - y) % 2 == 0]
        quarter_x, quarter_y = points[rng.integers(len(points))]
        x, y = even(room_x * quarter_x // 4), even(room_y * quarter_y // 4)
    else:
        x, y = even(rng.integers(room_x + 1)), even(rng.integers(room_y + 1))
    return Box(x=x, y=y, width=crop_width, height=crop_height)


def random_resized_crop(
    height: int,
    width: int,
    rng: Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = ASPECT_RATIOS,
) -> Box:
    """Draw a crop with an area in `scale` and a width/height in `aspect`; the centre square after ten misfits."""
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        crop_width, crop_height = even(np.sqrt(area * ratio)), even(np.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            x, y = even(rng.integers(width - crop_width + 1)), even(rng.integers(height - crop_height + 1))
            return Box(x=x, y=y, width=crop_width, height=crop_height)
    return view_boxes(height, width, 1)[0]


def view_boxes(height: int, width: int, num_views: int) -> list[Box]:
    """Square crops of the short side for testing, evenly spread along the long side; one view is the centre."""
    side = min(height, width)
    shares = np.linspace(0, 1, num_views).tolist() if num_views > 1 else [0.5]
    return [
        Box(x=even((width - side) * share), y=even((height - side) * share), width=side, height=side)
        for share in shares
    ]


@lru_cache(maxsize=1)
def noise_levels() -> NDArray[np.uint8]:
    """For each colour and each 16-bit random number a grey level of normal noise, (3, 65536).

    A level is as frequent as the interval of the normal distribution that is cut off to it.
    """
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    tables = []
    for mean, std in zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True):
        below = NormalDist(255 * mean, 255 * std)
        stops = [round(65536 * below.cdf(level + 1)) for level in range(255)]
        tables.append(np.repeat(np.arange(256, dtype=np.uint8), np.diff([0, *stops, 65536])))
    return np.stack(tables)


def fill_box(frames_CTHW: NDArray[np.uint8], box: Box, seed: int) -> NDArray[np.uint8]:
    """Fill a box, the same in all frames, with noise of ImageNet's mean and std (as VideoMAE fine-tunes)."""
    rows = slice(int(box.y), int(box.y + box.height))
    columns = slice(int(box.x), int(box.x + box.width))
    out_CTHW = frames_CTHW.copy()
    noise = np.random.default_rng(seed)
    for out_THW, level_of in zip(out_CTHW, noise_levels(), strict=True):
        shape = out_THW[:, rows, columns].shape
        # Uniform 16-bit numbers and a table take a tenth of the time of normal numbers in float32.
        out_THW[:, rows, columns] = level_of[noise.integers(65536, size=shape, dtype=np.uint16)]
    return out_CTHW


def draw_erasing(height: int, width: int, rng: Generator) -> tuple[Box, int]:
    """Draw a box to erase, and the seed of the noise that fills it."""
    box = random_resized_crop(height, width, rng, scale=ERASED_AREA, aspect=ERASED_ASPECT)
    return box, int(rng.integers(2**32))


@dataclass(frozen=True, kw_only=True)
class PretrainAugment:
    """Multi-scale crop to a square, mirrored half the time if `flip` (paper, implementation details)."""

    size_px: int = 224
    flip: bool = True

    def view(self, height: int, width: int, rng: Generator) -> View:
        """A view of a video of this size."""
        return _maybe_mirrored(multi_scale_crop(height, width, rng), self.size_px, self.flip, rng)

    def finish(self, clip: Clip, rng: Generator) -> Clip:
        """Return the clip unchanged."""
        return clip


@dataclass(frozen=True, kw_only=True)
class FinetuneAugment:
    """Random resized crop, flip, RandAugment and erasing, each drawn once for all frames of a clip.

    The crop comes first, as in timm: RandAugment of the whole frame, VideoMAE's order, costs twice as much.
    """

    size_px: int = 224
    flip: bool = True
    randaug: str = "rand-m7-n4-mstd0.5-inc1"
    random_erasing: float = 0.25
    crop_min_scale: float = 0.08
    is_on_device: bool = False
    """Whether RandAugment and erasing are only drawn here, and done to the batch on its device."""

    @classmethod
    def of(cls, config: FinetuneConfig) -> "FinetuneAugment":
        """The augmentation of a configuration."""
        names = ("flip", "randaug", "random_erasing", "crop_min_scale")
        kept = {name: getattr(config, name) for name in names}
        return cls(size_px=config.image_px, is_on_device=config.is_augmented_on_device, **kept)

    def view(self, height: int, width: int, rng: Generator) -> View:
        """A view of a video of this size."""
        box = random_resized_crop(height, width, rng, scale=(self.crop_min_scale, 1.0))
        return _maybe_mirrored(box, self.size_px, self.flip, rng)

    def finish(self, clip: Clip, rng: Generator) -> Clip:
        """Draw RandAugment and random erasing, and apply them, unless the device does."""
        height, width = clip.frames_CTHW.shape[2:]
        operations = draw_operations(self.randaug, min(height, width), rng) if self.randaug else []
        is_erased = rng.random() < self.random_erasing
        box, seed = draw_erasing(height, width, rng) if is_erased else (None, 0)
        if self.is_on_device:
            return replace(clip, changes=Changes(operations=tuple(operations), erased=box, noise_seed=seed))
        frames_CTHW = apply_operations(clip.frames_CTHW, operations)
        return replace(clip, frames_CTHW=frames_CTHW if box is None else fill_box(frames_CTHW, box, seed))


def _maybe_mirrored(box: Box, size_px: int, flip: bool, rng: Generator) -> View:
    return View(box=box, size_px=size_px, is_mirrored=flip and rng.random() < 0.5)

"""Cropping, flipping and colouring of clips: one crop and one flip for the frames and their motion.

Axes: T frames · H,W pixels · C = RGB · Y,X cells of 8×8 px · 2 = (dx, dy). Crops are whole pixels of the stored frame.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mgm_shared.geometry import Box, flip_motion
from mgm_shared.resample import resample_motion
from mgm_train.clips import Clip
from mgm_train.config import FinetuneConfig

CROP_SCALES = (1.0, 0.875, 0.75, 0.66)
ASPECT_RATIOS = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def multi_scale_crop(
    height: int, width: int, rng: Generator, *, scales: Sequence[float] = CROP_SCALES, is_offset_fixed: bool = True
) -> Box:
    """A crop of two of the scales of the short side, at most one step apart, for width and height (as in VideoMAE).

    It lies on one of the 13 points of a quarter grid that TSN uses (centre, corners, edges, quarters), or
    anywhere with `is_offset_fixed=False`.
    """
    sides = [round(min(height, width) * scale) for scale in scales]
    pairs = [(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1]
    crop_width, crop_height = pairs[rng.integers(len(pairs))]
    room_x, room_y = width - crop_width, height - crop_height
    if is_offset_fixed:
        # Both coordinates even, or both odd: all of the 5×5 quarter grid's points but the 12 off the diagonals.
        points = [(x, y) for x in range(5) for y in range(5) if (x - y) % 2 == 0]
        quarter_x, quarter_y = points[rng.integers(len(points))]
        x, y = room_x * quarter_x // 4, room_y * quarter_y // 4
    else:
        x, y = int(rng.integers(room_x + 1)), int(rng.integers(room_y + 1))
    return Box(x=x, y=y, width=crop_width, height=crop_height)


def random_resized_crop(
    height: int,
    width: int,
    rng: Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = ASPECT_RATIOS,
) -> Box:
    """A crop of a share in `scale` of the area and a width/height in `aspect`; after ten misfits the centre square."""
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        crop_width, crop_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            x, y = int(rng.integers(width - crop_width + 1)), int(rng.integers(height - crop_height + 1))
            return Box(x=x, y=y, width=crop_width, height=crop_height)
    return view_boxes(height, width, 1)[0]


def view_boxes(height: int, width: int, num_views: int) -> list[Box]:
    """Squares of the short side for a test: evenly spread along the long side; one view is the centre."""
    side = min(height, width)
    shares = np.linspace(0, 1, num_views).tolist() if num_views > 1 else [0.5]
    return [
        Box(x=round((width - side) * share), y=round((height - side) * share), width=side, height=side)
        for share in shares
    ]


def crop_frames(frames_THWC: NDArray[np.uint8], box: Box, height_px: int, width_px: int) -> NDArray[np.uint8]:
    """The pixels at `box` (whole pixels), resized: by area when both sides shrink, else bilinear."""
    left, top, width, height = (int(value) for value in (box.x, box.y, box.width, box.height))
    cut_THWC = frames_THWC[:, top : top + height, left : left + width]
    if (height, width) == (height_px, width_px):
        return cut_THWC
    interpolation = cv2.INTER_AREA if height_px <= height and width_px <= width else cv2.INTER_LINEAR
    out_THWC = np.empty((len(cut_THWC), height_px, width_px, 3), np.uint8)
    for frame_HWC, out_HWC in zip(cut_THWC, out_THWC, strict=True):
        cv2.resize(frame_HWC, (width_px, height_px), dst=out_HWC, interpolation=interpolation)
    return out_THWC


def crop_clip(clip: Clip, box: Box, size_px: int) -> Clip:
    """Frames and motion of the clip cut out at `box` and resized to a square; vectors in the new pixels."""
    frames_THWC = crop_frames(clip.frames_THWC, box, size_px, size_px)
    motion_TYX2 = clip.motion_TYX2
    if motion_TYX2.size:
        motion_TYX2 = resample_motion(motion_TYX2, box, size_px, size_px)
    return replace(clip, frames_THWC=frames_THWC, motion_TYX2=motion_TYX2)


def flip_clip(clip: Clip) -> Clip:
    """The mirrored clip: pixels and cells change places, dx its sign."""
    frames_THWC = np.empty_like(clip.frames_THWC, order="C")
    for frame_HWC, out_HWC in zip(clip.frames_THWC, frames_THWC, strict=True):
        # A reversed view costs 7 ms a clip when it is copied later; this costs a tenth.
        cv2.flip(frame_HWC, 1, dst=out_HWC)
    return replace(clip, frames_THWC=frames_THWC, motion_TYX2=flip_motion(clip.motion_TYX2))


@contextmanager
def global_random(seed: int) -> Iterator[None]:
    """Python's and numpy's global generators, which timm draws from, seeded here and put back after."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


@lru_cache(maxsize=4)
def _rand_augment(config: str, size_px: int) -> RandAugment:
    mean = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
    hparams = {"translate_const": int(0.45 * size_px), "img_mean": mean, "interpolation": Image.Resampling.BICUBIC}
    return rand_augment_transform(config, hparams)


def rand_augment(frames_THWC: NDArray[np.uint8], config: str, rng: Generator) -> NDArray[np.uint8]:
    """timm's RandAugment (`config` is its string), with the same operations and strengths for every frame."""
    transform = _rand_augment(config, min(frames_THWC.shape[1:3]))
    seed = int(rng.integers(2**32))
    out_THWC = np.empty_like(frames_THWC, order="C")
    for frame_HWC, out_HWC in zip(frames_THWC, out_THWC, strict=True):
        with global_random(seed):
            out_HWC[:] = transform(Image.fromarray(np.ascontiguousarray(frame_HWC)))
    return out_THWC


def erase_box(frames_THWC: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """Noise of ImageNet's mean and spread in one random box, the same box in all frames (VideoMAE's fine-tuning)."""
    height, width = frames_THWC.shape[1:3]
    box = random_resized_crop(height, width, rng, scale=ERASED_AREA, aspect=ERASED_ASPECT)
    rows = slice(int(box.y), int(box.y + box.height))
    columns = slice(int(box.x), int(box.x + box.width))
    out_THWC = frames_THWC.copy()
    noise_THWC = rng.standard_normal(out_THWC[:, rows, columns].shape, np.float32)
    noise_THWC *= np.float32(255) * np.array(IMAGENET_DEFAULT_STD, np.float32)
    noise_THWC += np.float32(255) * np.array(IMAGENET_DEFAULT_MEAN, np.float32)
    out_THWC[:, rows, columns] = noise_THWC.clip(0, 255)
    return out_THWC


@dataclass(frozen=True, kw_only=True)
class PretrainAugment:
    """Multi-scale crop to a square, mirrored half the time if `flip` (paper, implementation details)."""

    size_px: int = 224
    flip: bool = True

    def __call__(self, clip: Clip, rng: Generator) -> Clip:
        height, width = clip.frames_THWC.shape[1:3]
        clip = crop_clip(clip, multi_scale_crop(height, width, rng), self.size_px)
        return flip_clip(clip) if self.flip and rng.random() < 0.5 else clip


@dataclass(frozen=True, kw_only=True)
class FinetuneAugment:
    """Random resized crop, flip, RandAugment and erasing, each one draw for all frames.

    The crop comes first, as in timm: RandAugment of the whole frame, VideoMAE's order, costs twice as much.
    """

    size_px: int = 224
    flip: bool = True
    randaug: str = "rand-m7-n4-mstd0.5-inc1"
    random_erasing: float = 0.25
    crop_min_scale: float = 0.08

    @classmethod
    def of(cls, config: FinetuneConfig) -> "FinetuneAugment":
        """What the configuration says."""
        names = ("flip", "randaug", "random_erasing", "crop_min_scale")
        return cls(size_px=config.image_px, **{name: getattr(config, name) for name in names})

    def __call__(self, clip: Clip, rng: Generator) -> Clip:
        height, width = clip.frames_THWC.shape[1:3]
        box = random_resized_crop(height, width, rng, scale=(self.crop_min_scale, 1.0))
        clip = crop_clip(clip, box, self.size_px)
        if self.flip and rng.random() < 0.5:
            clip = flip_clip(clip)
        frames_THWC = clip.frames_THWC
        if self.randaug:
            frames_THWC = rand_augment(frames_THWC, self.randaug, rng)
        if rng.random() < self.random_erasing:
            frames_THWC = erase_box(frames_THWC, rng)
        return replace(clip, frames_THWC=frames_THWC)

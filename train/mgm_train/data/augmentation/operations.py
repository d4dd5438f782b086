"""The operations of RandAugment for a clip, drawn by timm and applied to all frames on a CPU.

timm draws the operations and their magnitudes, as it does for one picture. Here they are applied to whole clips, about
twenty times as fast as by PIL frame by frame: neighbouring operations that map one grey level to another share one
table, a picture that is resampled shares its positions and weights with the other frames, and nothing is converted.

Axes: C = RGB · T frames · H,W pixels · K = C·T planes · V = 256 grey levels.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from mgm_train.data.augmentation import pixel_kernels

if TYPE_CHECKING:
    from timm.data.auto_augment import RandAugment

# 255 times the mean of ImageNet, which timm fills with.
FILL_C = (124, 116, 104)
# The operations by what they need to know of a picture.
POINTWISE = ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness")
BY_HISTOGRAM = ("AutoContrast", "Equalize", "Contrast")
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel", "Rotate")
BLENDED = ("Color", "Sharpness", "Desaturate")
LUMA_C = np.array((0.299, 0.587, 0.114))


@dataclass(frozen=True)
class Operation:
    """One operation of RandAugment: its name in timm and its arguments, with random signs already drawn."""

    name: str
    arguments: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """The name without the variants, which differ only in how a magnitude becomes an argument."""
        return self.name.removesuffix("Increasing").removesuffix("Original")


@contextmanager
def global_random(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and numpy, which timm draws from, and restore them afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def timm_rand_augment(config: str, size_px: int) -> "RandAugment":
    """timm's RandAugment of a string such as rand-m7-n4-mstd0.5-inc1, for pictures of `size_px`."""
    # Not at the top: timm loads torchvision and the compiler of torch, 190 MB in each data loading process.
    from timm.data.auto_augment import rand_augment_transform

    hparams = {
        "translate_const": int(0.45 * size_px),
        "img_mean": FILL_C,
        "interpolation": Image.Resampling.BICUBIC,
    }
    transform: RandAugment = rand_augment_transform(config, hparams)
    return transform


@lru_cache(maxsize=4)
def _recorder(config: str, size_px: int) -> "RandAugment":
    """timm's RandAugment, whose operations append themselves to the list that is passed as the picture."""
    transform = timm_rand_augment(config, size_px)
    for operation in transform.ops:
        operation.aug_fn = _recording(operation.name)
    return transform


def _recording(name: str) -> Callable[..., list[Operation]]:
    def record(operations: list[Operation], *arguments: float, **_: object) -> list[Operation]:
        return [*operations, Operation(name, arguments)]

    return record


def draw_operations(config: str, size_px: int, rng: Generator) -> list[Operation]:
    """Draw the operations for one clip of `size_px`; `config` is timm's string."""
    transform: Any = _recorder(config, size_px)
    with global_random(int(rng.integers(2**32))):
        operations: list[Operation] = transform([])
    return operations


def apply_operations(frames_CTHW: NDArray[np.uint8], operations: Sequence[Operation]) -> NDArray[np.uint8]:
    """Apply the operations in their order to every frame; the frames that were given stay as they are.

    Statistics (of AutoContrast, Equalize and Contrast) are those of each frame, as in PIL.
    """
    pixels = _Pixels(frames_CTHW)
    for operation in operations:
        pixels.apply(operation)
    return pixels.frames_CTHW()


class _Pixels:
    """Planes (K, H, W) and the tables (K, 256) that still have to be applied to them."""

    def __init__(self, frames_CTHW: NDArray[np.uint8]) -> None:
        self.shape = frames_CTHW.shape
        height, width = self.shape[2:]
        self.planes_KHW = np.ascontiguousarray(frames_CTHW).reshape(-1, height, width)
        self.fill_K = np.repeat(np.array(FILL_C, np.uint8), self.shape[1])
        # Fresh memory from the system costs as much as a cheap operation: two buffers take turns.
        self.is_own = False
        self.spare: NDArray[np.uint8] | None = None
        self.table_KV: NDArray[np.uint8] | None = None
        self.counts_KV: NDArray[np.float64] | None = None

    def frames_CTHW(self) -> NDArray[np.uint8]:
        self._flush()
        return self.planes_KHW.reshape(self.shape)

    def apply(self, operation: Operation) -> None:
        kind = operation.kind
        if kind in POINTWISE:
            self._map(point_table(operation)[None])
        elif kind in BY_HISTOGRAM:
            self._map(statistic_tables(operation, self._histograms(), self.shape[1]))
        else:
            self._flush()
            self._replace(self._resampled(operation) if kind in GEOMETRIC else self._blended(operation))
            self.counts_KV = None

    def _target(self) -> NDArray[np.uint8]:
        """A buffer for the next planes, (K, H, W), not the planes themselves."""
        if self.spare is None:
            self.spare = np.empty_like(self.planes_KHW)
        return self.spare

    def _replace(self, planes_KHW: NDArray[np.uint8]) -> None:
        """Go on with other planes. The memory of the old ones is used again, unless the caller gave them."""
        if planes_KHW is self.planes_KHW:
            return
        self.spare = self.planes_KHW if self.is_own else None
        self.planes_KHW, self.is_own = planes_KHW, True

    def _map(self, table_KV: NDArray[np.uint8]) -> None:
        """Put a table, for each plane or for all, after those that wait."""
        if self.table_KV is None:
            self.table_KV = table_KV
        elif len(table_KV) == 1:
            self.table_KV = table_KV[0][self.table_KV]
        else:
            self.table_KV = np.take_along_axis(table_KV, np.broadcast_to(self.table_KV, table_KV.shape), axis=1)

    def _flush(self) -> None:
        if self.table_KV is None:
            return
        mapped_KHW = self.planes_KHW if self.is_own else self._target()
        if len(self.table_KV) == 1:
            cv2.LUT(self.planes_KHW.reshape(1, -1), self.table_KV[0], mapped_KHW.reshape(1, -1))
        else:
            for plane_HW, table_V, mapped_HW in zip(self.planes_KHW, self.table_KV, mapped_KHW, strict=True):
                cv2.LUT(plane_HW, table_V, mapped_HW)
        self._replace(mapped_KHW)
        self.table_KV = self.counts_KV = None

    def _histograms(self) -> NDArray[np.float64]:
        """The grey levels of each plane counted, (K, 256), after the tables that wait."""
        if self.counts_KV is None:
            counts = [cv2.calcHist([plane_HW], [0], None, [256], [0, 256]) for plane_HW in self.planes_KHW]
            # OpenCV 4 returns a column, OpenCV 5 one axis.
            self.counts_KV = np.stack(counts).reshape(-1, 256).astype(np.float64)
        if self.table_KV is None:
            return self.counts_KV
        tables_KV = np.broadcast_to(self.table_KV, self.counts_KV.shape)
        pairs = zip(tables_KV, self.counts_KV, strict=True)
        return np.stack([np.bincount(table_V, counts_V, minlength=256) for table_V, counts_V in pairs])

    def _resampled(self, operation: Operation) -> NDArray[np.uint8]:
        kind, (amount,) = operation.kind, operation.arguments
        height, width = self.shape[2:]
        if kind == "Rotate":
            return self._rotated(amount)
        is_along_x, size, num_lines = (True, width, height) if "X" in kind else (False, height, width)
        if "Shear" in kind:
            shifts = (amount * (np.arange(num_lines) + 0.5)).astype(np.float64)
        else:
            shifts = np.full(num_lines, amount * size if kind.endswith("Rel") else amount, np.float64)
        if is_along_x:
            pixel_kernels.shift_rows(self.planes_KHW, shifts, self.fill_K, self._target())
            return self._target()
        columns_KWH = _turned(self.planes_KHW, self._target().reshape(-1, width, height))
        shifted_KWH = np.empty_like(columns_KWH)
        pixel_kernels.shift_rows(columns_KWH, shifts, self.fill_K, shifted_KWH)
        return _turned(shifted_KWH, self._target())

    def _rotated(self, degrees: float) -> NDArray[np.uint8]:
        """Rotated about the middle, counter-clockwise."""
        num_planes, height, width = self.planes_KHW.shape
        # All planes of a pixel lie side by side, so that its sixteen weights are used by vector instructions.
        pixels_NK = self._target().reshape(-1, num_planes)
        cv2.transpose(self.planes_KHW.reshape(num_planes, -1), pixels_NK)
        rotated_HWK = np.empty((height, width, num_planes), np.uint8)
        pixels_HWK = pixels_NK.reshape(rotated_HWK.shape)
        cos, sin = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
        pixel_kernels.rotate(pixels_HWK, cos, -sin, self.fill_K, rotated_HWK)
        cv2.transpose(rotated_HWK.reshape(-1, num_planes), self._target().reshape(num_planes, -1))
        return self._target()

    def _blended(self, operation: Operation) -> NDArray[np.uint8]:
        if operation.kind not in BLENDED:
            return _by_pil(self.planes_KHW, operation)
        (amount,) = operation.arguments
        if operation.kind == "Sharpness":
            pixel_kernels.sharpen(self.planes_KHW, np.float32(amount), self._target())
            return self._target()
        factor = min(1.0, max(0.0, 1.0 - amount)) if operation.kind == "Desaturate" else amount
        mixed_KHW = self.planes_KHW if self.is_own else self._target()
        pixel_kernels.saturate(self.planes_KHW.reshape(3, -1), np.float32(factor), mixed_KHW.reshape(3, -1))
        return mixed_KHW


def _of_timm(operation: Operation) -> Callable[[Image.Image], Image.Image]:
    """The operation as a function of a picture."""
    from timm.data.auto_augment import NAME_TO_OP

    function: Any = NAME_TO_OP[operation.name]
    return partial(_call, function, operation.arguments)


def _call(function: Any, arguments: tuple[float, ...], picture: Image.Image) -> Image.Image:
    changed: Image.Image = function(picture, *arguments)
    return changed


def point_table(operation: Operation) -> NDArray[np.uint8]:
    """What timm's operation makes of each grey level, (256,): its own result for a ramp."""
    if operation.kind == "Posterize" and operation.arguments[0] < 1:
        # Magnitude 10 keeps no bit. Pillow rejects that since version 11; before, the picture became black.
        return np.zeros(256, np.uint8)
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, axis=0).T[None].copy())
    return np.asarray(_of_timm(operation)(ramp))[0, :, 0]


def statistic_tables(operation: Operation, counts_KV: NDArray[np.float64], num_frames: int) -> NDArray[np.uint8]:
    """The table of each plane, (K, 256), for an operation that depends on its histogram."""
    if operation.kind == "AutoContrast":
        return np.stack([_stretched(counts_V) for counts_V in counts_KV])
    if operation.kind == "Equalize":
        return np.stack([_equalized(counts_V) for counts_V in counts_KV])
    levels_V = np.arange(256)
    mean_CT = (counts_KV @ levels_V / counts_KV.sum(1)).reshape(3, num_frames)
    mean_T = np.floor(LUMA_C @ mean_CT + 0.5).astype(np.float32)
    factor = np.float32(operation.arguments[0])
    tables_TV = mean_T[:, None] + factor * (levels_V.astype(np.float32) - mean_T[:, None])
    return np.tile(tables_TV.clip(0, 255).astype(np.uint8), (3, 1))


def _stretched(counts_V: NDArray[np.float64]) -> NDArray[np.uint8]:
    """From the darkest to the brightest level of a plane to 0 … 255, as PIL's autocontrast."""
    present = np.flatnonzero(counts_V)
    low, high = int(present[0]), int(present[-1])
    if high <= low:
        return np.arange(256, dtype=np.uint8)
    scale = 255.0 / (high - low)
    return (np.arange(256) * scale - low * scale).clip(0, 255).astype(np.uint8)


def _equalized(counts_V: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The cumulated histogram of a plane as a table, as PIL's equalize."""
    present = np.flatnonzero(counts_V)
    step = int(counts_V.sum() - counts_V[present[-1]]) // 255
    if len(present) <= 1 or not step:
        return np.arange(256, dtype=np.uint8)
    below_V = np.concatenate([[0], np.cumsum(counts_V)[:-1]]).astype(np.int64)
    return ((step // 2 + below_V) // step).clip(0, 255).astype(np.uint8)


def _turned(planes_KHW: NDArray[np.uint8], turned_KWH: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Transpose each plane into `turned_KWH`, and return that."""
    for plane_HW, turned_WH in zip(planes_KHW, turned_KWH, strict=True):
        cv2.transpose(plane_HW, turned_WH)
    return turned_KWH


def _by_pil(planes_KHW: NDArray[np.uint8], operation: Operation) -> NDArray[np.uint8]:
    """An operation of timm's other sets (GaussianBlur), picture by picture."""
    change = _of_timm(operation)
    frames_CTHW = planes_KHW.reshape(3, -1, *planes_KHW.shape[1:])
    pictures = map(Image.fromarray, np.ascontiguousarray(frames_CTHW.transpose(1, 2, 3, 0)))
    changed = [np.asarray(change(picture)) for picture in pictures]
    return np.ascontiguousarray(np.stack(changed).transpose(3, 0, 1, 2)).reshape(planes_KHW.shape)

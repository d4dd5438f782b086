"""Which tokens of a clip are masked: motion-guided masks (paper §3.3) and what they are compared with (Table 4e).

What draws a mask is the strength of each cell, by default |motion|, which `guidance.py` makes. All of it runs on the
8-px motion grid: the argmax there equals the argmax on the upsampled map of eq. 6, at 1/64 of the work. Every mask of a
strategy hides the same number of tokens, whatever the motion, the jitter and the borders do.

Axes: T frames · Y,X cells of 8×8 px · C = Y·X · K strongest cells · 2 = (x, y) of a place · t,h,w tubelets of
2×16×16 px · N = t·h·w. True = masked. Places and sizes of rectangles are in patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX, PATCH_PX, TUBELET_FRAMES, TokenGrid
from mgm_shared.kernel import kernel
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import Clip
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.rectangles import Mask, bounce, cover, lowest, side_walk, start

CELLS_PER_PATCH = PATCH_PX // CELL_PX

# A simulated motion crosses at most this share of the picture a slice; the paper gives no distribution.
SIMULATED_SPEED = 0.1


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """What a strategy may do beyond its ratio; the sparse and the static ones ignore it.

    `jitter`: how far a side of a moving rectangle may stray from its start, as a share of it (Table 4c; 0 is off).
    `top_k`: the rectangle is centred on the mean place of so many strongest cells (eq. 7; 1 in the paper).
    `is_first_guided`: slice 0 follows its motion too, instead of the paper's random place.
    """

    jitter: float = 0.15
    top_k: int = 1
    is_first_guided: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskGenerator:
    """A strategy with its settings and its guidance, for a dataset: (clip, rng) → mask_N."""

    strategy: str
    ratio: float
    options: MaskOptions
    guidance: Guidance

    @classmethod
    def of(cls, config: PretrainConfig) -> "MaskGenerator":
        """What the configuration says."""
        options = MaskOptions(
            jitter=config.mask_jitter, top_k=config.mask_top_k, is_first_guided=config.mask_first_guided
        )
        return cls(strategy=config.mask, ratio=config.mask_ratio, options=options, guidance=Guidance.of(config))

    def __call__(self, clip: Clip, rng: Generator) -> NDArray[np.bool_]:
        strength_TYX = self.guidance.strength(clip)
        return make_mask(self.strategy, strength_TYX, ratio=self.ratio, rng=rng, options=self.options)


Strength = NDArray[np.float32]
Strategy = Callable[[Strength, TokenGrid, float, Generator, MaskOptions], Mask]


@lru_cache(maxsize=64)
def num_masked_per_slice(grid: TokenGrid, ratio: float) -> int:
    """Masked patches of a slice, `int(ratio·h·w)`. ValueError for a ratio outside (0, 1)."""
    if not 0 < ratio < 1:
        raise ValueError(f"the mask ratio must lie between 0 and 1, not {ratio}")
    return grid.patches_at(ratio)


def num_masked(grid: TokenGrid, ratio: float) -> int:
    """Masked tokens of a clip: `int(ratio·h·w)·t`, for every strategy."""
    return num_masked_per_slice(grid, ratio) * grid.t


def strongest_places(strength_TYX: Strength, rng: Generator, top_k: int = 1) -> NDArray[np.float64]:
    """Mean place (x, y) in patches of the `top_k` strongest cells of each tubelet, (t, 2) (eq. 6–7).

    A tubelet's strength is the sum of its two frames'. Equal cells are drawn from, once a clip, so that a clip without
    motion gets a random place that stays, and never the top left corner.
    """
    num_rows, num_columns = strength_TYX.shape[1:]
    # Which of several equal cells is taken depends on their order: hence a random one.
    order_C = rng.permutation(num_rows * num_columns)
    place_t2 = np.empty((len(strength_TYX) // TUBELET_FRAMES, 2))
    flat_TC = strength_TYX.reshape(-1, num_rows * num_columns)
    _mean_places(flat_TC, order_C, min(top_k, len(order_C)), num_columns, place_t2)
    return (place_t2 + 0.5) / CELLS_PER_PATCH


@kernel
def _mean_places(
    strength_TC: Strength, order_C: NDArray[np.int64], top_k: int, num_columns: int, place_t2: NDArray[np.float64]
) -> None:
    total_C = np.empty(len(order_C), np.float32)
    for t in range(len(place_t2)):
        for k in range(len(order_C)):
            total_C[k] = strength_TC[2 * t, order_C[k]] + strength_TC[2 * t + 1, order_C[k]]
        x = y = 0
        for _ in range(top_k):
            strongest = total_C.argmax()
            total_C[strongest] = -np.inf
            x += order_C[strongest] % num_columns
            y += order_C[strongest] // num_columns
        place_t2[t] = x / top_k, y / top_k


def mgm(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Motion-guided, dense (§3.3, eq. 7): a rectangle on the motion peak of each slice; on slice 0 a random one.

    At ratio 0.75 it is 12.1 of the paper's 14 patches wide, so that the border keeps its centre within two patches of
    the middle. With the default jitter, 64 of the 196 places are masked in all slices of more than 99 % of the clips;
    without jitter, and by `smm` and `block`, 100 places. The encoder meets these positions in fine-tuning only.
    """
    sides_2, first_2 = start(grid, ratio, rng)
    centre_t2 = strongest_places(strength_TYX, rng, options.top_k)
    if not options.is_first_guided:
        centre_t2[0] = first_2
    sides_t2 = side_walk(sides_2, grid.t, 2, rng, options.jitter)
    return cover(centre_t2, sides_t2, grid, num_masked_per_slice(grid, ratio), rng)


def mgm_sparse(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Motion-guided, sparse (Table 4e): the patches of largest motion in each slice.

    Patches of equal motion are ordered by one random draw for the whole clip, so in a clip without motion every slice
    masks the same patches.
    """
    shape = (grid.t, TUBELET_FRAMES, grid.h, CELLS_PER_PATCH, grid.w, CELLS_PER_PATCH)
    strength_tp = strength_TYX.reshape(shape).sum((1, 3, 5)).reshape(grid.t, -1)
    tie_p = rng.random(strength_tp.shape[1])
    order_tp = np.lexsort((np.broadcast_to(tie_p, strength_tp.shape), -strength_tp))
    mask_tp = np.zeros(strength_tp.shape, np.bool_)
    np.put_along_axis(mask_tp, order_tp[:, : num_masked_per_slice(grid, ratio)], True, axis=1)
    return mask_tp.reshape(grid.t, grid.h, grid.w)


def _simulated_path(grid: TokenGrid, rng: Generator) -> NDArray[np.float64]:
    """Displacement since slice 0 in patches, (t, 2): sums of random velocities (eq. 5)."""
    velocity_t2 = rng.uniform(-SIMULATED_SPEED, SIMULATED_SPEED, (grid.t, 2)) * (grid.w, grid.h)
    velocity_t2[0] = 0
    return velocity_t2.cumsum(0)


def smm(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Simulated motion, dense (§3.2, eq. 5): a rectangle that moves and scales at random and bounces off the border."""
    sides_2, first_2 = start(grid, ratio, rng)
    sides_t2 = side_walk(sides_2, grid.t, 1, rng, options.jitter)
    corner_t2 = first_2 - sides_2 / 2 + _simulated_path(grid, rng)
    centre_t2 = bounce(corner_t2, (grid.w, grid.h) - sides_t2) + sides_t2 / 2
    return cover(centre_t2, sides_t2, grid, num_masked_per_slice(grid, ratio), rng)


def smm_sparse(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Simulated motion, sparse (Table 4e): random patches that move at random; what leaves comes in opposite."""
    mask_hw = lowest(rng.random((1, grid.h, grid.w)), num_masked_per_slice(grid, ratio))[0]
    shift_t2 = np.rint(_simulated_path(grid, rng)).astype(np.int64)
    row_th = (np.arange(grid.h) - shift_t2[:, 1:]) % grid.h
    column_tw = (np.arange(grid.w) - shift_t2[:, :1]) % grid.w
    mask_thw: Mask = mask_hw[row_th[:, :, None], column_tw[:, None, :]]
    return mask_thw


def block(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """One rectangle at a random place that stays for the whole clip ("random block" in Table 4e)."""
    sides_2, centre_2 = start(grid, ratio, rng)
    mask_1hw = cover(centre_2[None], sides_2[None], grid, num_masked_per_slice(grid, ratio), rng)
    return mask_1hw.repeat(grid.t, axis=0)


def tube(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """The same random patches in every slice (VideoMAE)."""
    return lowest(rng.random((1, grid.h, grid.w)), num_masked_per_slice(grid, ratio)).repeat(grid.t, axis=0)


def random(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Random tokens of the whole clip (ST-MAE); only the total is fixed."""
    mask_1N = lowest(rng.random((1, 1, grid.num_tokens)), num_masked(grid, ratio))
    return mask_1N.reshape(grid.t, grid.h, grid.w)


STRATEGIES: dict[str, Strategy] = {
    "mgm": mgm,
    "mgm-sparse": mgm_sparse,
    "smm": smm,
    "smm-sparse": smm_sparse,
    "tube": tube,
    "random": random,
    "block": block,
}


def make_mask(
    strategy: str,
    strength_TYX: NDArray[np.float32],
    *,
    ratio: float,
    rng: Generator,
    options: MaskOptions = MaskOptions(),
) -> Mask:
    """A mask_N, True = masked, flattened t, h, w, with exactly `num_masked` True.

    `strength_TYX` is what `Guidance.strength` makes of a clip, none missing; its shape gives the token grid. ValueError
    for an unknown strategy, a ratio outside (0, 1) or a grid that is no whole number of tubelets.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no mask strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    num_frames, num_rows, num_columns = strength_TYX.shape
    grid = TokenGrid.of_clip(num_frames, num_rows * CELL_PX, num_columns * CELL_PX)
    return STRATEGIES[strategy](strength_TYX, grid, ratio, rng, options).reshape(-1)

"""Masking strategies: motion-guided masking (paper §3.3) and the strategies it is compared with (Table 4e).

A strategy gets the strength of each motion cell, by default the length of its vector (see `guidance.py`). It works on
the grid of 8-px cells: the argmax there is the argmax of the upsampled map of eq. 6, at 1/64 of the work. All masks of
one grid and ratio have the same number of masked tokens, whatever the motion, the jitter and the borders.

Axes: T frames · Y,X cells of 8×8 px · C = Y·X · K strongest cells · 2 = (x, y) of a place · t,h,w tubelets,
2×16×16 px in the paper · p = h·w · N = t·h·w. True = masked. Places and sizes of rectangles are in patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import PAPER_PATCH, Patch, TokenGrid
from mgm_shared.kernel import kernel
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import Clip
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.left_out import clip_grid, leave_out
from mgm_train.masking.rectangles import Mask, bounce, cover, lowest, side_walk, start
from mgm_train.token_counts import TokenCounts, kept_ratio

# Largest simulated motion per slice, as a share of the picture's side. The paper gives no distribution.
SIMULATED_SPEED = 0.1


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Options of the moving rectangles, `mgm` and `smm`; the other strategies ignore them.

    `jitter`: maximum relative change of the rectangle's side lengths over time (Table 4c); 0 disables it.
    `top_k`: `mgm` centres the rectangle on the mean place of this many strongest cells (eq. 7; 1 in the paper).
    `is_first_guided`: `mgm` places the rectangle of slice 0 by motion too; in the paper its place is random.
    """

    jitter: float = 0.15
    top_k: int = 1
    is_first_guided: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskGenerator:
    """A strategy with its options and its guidance. Datasets call it: (clip, rng) → mask_N, True = masked.

    With `drop` or `decode_ratio` the mask is int8: −1 left out, 0 visible, 1 masked; see left_out.py.
    """

    strategy: str
    ratio: float
    options: MaskOptions
    guidance: Guidance
    patch: Patch = PAPER_PATCH
    drop: float = 0.0
    decode_ratio: float = 1.0

    @classmethod
    def of(cls, config: PretrainConfig) -> "MaskGenerator":
        """The mask generator that a configuration asks for."""
        options = MaskOptions(
            jitter=config.mask_jitter, top_k=config.mask_top_k, is_first_guided=config.mask_first_guided
        )
        return cls(
            strategy=config.mask,
            ratio=config.mask_ratio,
            options=options,
            guidance=Guidance.of(config),
            patch=config.patch,
            drop=config.drop,
            decode_ratio=config.decode_ratio,
        )

    def __call__(self, clip: Clip, rng: Generator) -> NDArray[np.bool_] | NDArray[np.int8]:
        strength_TYX = self.guidance.strength(clip)
        drawing: dict[str, Any] = {"rng": rng, "options": self.options, "patch": self.patch}
        if not self.drop and self.decode_ratio == 1:
            return make_mask(self.strategy, strength_TYX, ratio=self.ratio, **drawing)
        counts = TokenCounts.of(
            clip_grid(strength_TYX, self.patch), self.ratio, drop=self.drop, decode_ratio=self.decode_ratio
        )
        mask_N = make_mask(self.strategy, strength_TYX, ratio=kept_ratio(self.ratio, self.drop), **drawing)
        return leave_out(mask_N, strength_TYX, counts, self.patch, rng)


Strength = NDArray[np.float32]
Strategy = Callable[[Strength, TokenGrid, float, Generator, MaskOptions], Mask]


@lru_cache(maxsize=64)
def num_masked_per_slice(grid: TokenGrid, ratio: float) -> int:
    """Number of masked patches per slice, `int(ratio·h·w)`. ValueError for a ratio outside (0, 1)."""
    if not 0 < ratio < 1:
        raise ValueError(f"the mask ratio must lie between 0 and 1, not {ratio}")
    return grid.patches_at(ratio)


def num_masked(grid: TokenGrid, ratio: float) -> int:
    """Number of masked tokens of a clip, `int(ratio·h·w)·t`, the same for every strategy."""
    return num_masked_per_slice(grid, ratio) * grid.t


def strongest_places(
    strength_TYX: Strength, rng: Generator, top_k: int = 1, patch: Patch = PAPER_PATCH
) -> NDArray[np.float64]:
    """Mean place (x, y), in patches, of the `top_k` strongest cells of each slice: (t, 2) (eq. 6–7).

    The strength of a slice is the sum over its frames. Cells of equal strength are ordered by one random draw for
    the whole clip, so a clip without motion gets one random place for all slices, and not always the top left corner.
    """
    num_rows, num_columns = strength_TYX.shape[1:]
    # argmax takes the first of several equal cells, so the cells are visited in random order.
    order_C = rng.permutation(num_rows * num_columns)
    place_t2 = np.empty((len(strength_TYX) // patch.frames, 2))
    flat_TC = strength_TYX.reshape(-1, num_rows * num_columns)
    _mean_places(flat_TC, order_C, min(top_k, len(order_C)), num_columns, patch.frames, place_t2)
    return (place_t2 + 0.5) / patch.cells_per_side


@kernel
def _mean_places(
    strength_TC: Strength,
    order_C: NDArray[np.int64],
    top_k: int,
    num_columns: int,
    frames_per_slice: int,
    place_t2: NDArray[np.float64],
) -> None:
    total_C = np.empty(len(order_C), np.float32)
    for t in range(len(place_t2)):
        for k in range(len(order_C)):
            total_C[k] = strength_TC[t * frames_per_slice, order_C[k]]
            for frame in range(1, frames_per_slice):
                total_C[k] += strength_TC[t * frames_per_slice + frame, order_C[k]]
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
    centre_t2 = strongest_places(strength_TYX, rng, options.top_k, grid.patch)
    if not options.is_first_guided:
        centre_t2[0] = first_2
    sides_t2 = side_walk(sides_2, grid.t, 2, rng, options.jitter)
    return cover(centre_t2, sides_t2, grid, num_masked_per_slice(grid, ratio), rng)


def mgm_sparse(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Motion-guided, sparse (Table 4e): the patches of largest motion in each slice.

    Patches of equal motion are ordered by one random draw for the whole clip, so in a clip without motion every slice
    masks the same patches.
    """
    cells = grid.patch.cells_per_side
    shape = (grid.t, grid.patch.frames, grid.h, cells, grid.w, cells)
    strength_tp = strength_TYX.reshape(shape).sum((1, 3, 5)).reshape(grid.t, -1)
    tie_p = rng.random(strength_tp.shape[1])
    order_tp = np.lexsort((np.broadcast_to(tie_p, strength_tp.shape), -strength_tp))
    mask_tp = np.zeros(strength_tp.shape, np.bool_)
    np.put_along_axis(mask_tp, order_tp[:, : num_masked_per_slice(grid, ratio)], True, axis=1)
    return mask_tp.reshape(grid.t, grid.h, grid.w)


def _simulated_path(grid: TokenGrid, rng: Generator) -> NDArray[np.float64]:
    """Displacement since slice 0 in patches, (t, 2): cumulative sums of random velocities (eq. 5)."""
    velocity_t2 = rng.uniform(-SIMULATED_SPEED, SIMULATED_SPEED, (grid.t, 2)) * (grid.w, grid.h)
    velocity_t2[0] = 0
    return velocity_t2.cumsum(0)


def smm(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Simulated motion, dense (§3.2, eq. 5): a rectangle that moves and scales at random, reflected at the borders."""
    sides_2, first_2 = start(grid, ratio, rng)
    sides_t2 = side_walk(sides_2, grid.t, 1, rng, options.jitter)
    corner_t2 = first_2 - sides_2 / 2 + _simulated_path(grid, rng)
    centre_t2 = bounce(corner_t2, (grid.w, grid.h) - sides_t2) + sides_t2 / 2
    return cover(centre_t2, sides_t2, grid, num_masked_per_slice(grid, ratio), rng)


def smm_sparse(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Simulated motion, sparse (Table 4e): random patches that move together; they re-enter at the opposite border."""
    mask_hw = lowest(rng.random((1, grid.h, grid.w)), num_masked_per_slice(grid, ratio))[0]
    shift_t2 = np.rint(_simulated_path(grid, rng)).astype(np.int64)
    row_th = (np.arange(grid.h) - shift_t2[:, 1:]) % grid.h
    column_tw = (np.arange(grid.w) - shift_t2[:, :1]) % grid.w
    mask_thw: Mask = mask_hw[row_th[:, :, None], column_tw[:, None, :]]
    return mask_thw


def block(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """One rectangle at a random place, the same in every slice ("random block" in Table 4e)."""
    sides_2, centre_2 = start(grid, ratio, rng)
    mask_1hw = cover(centre_2[None], sides_2[None], grid, num_masked_per_slice(grid, ratio), rng)
    return mask_1hw.repeat(grid.t, axis=0)


def tube(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """The same random patches in every slice (VideoMAE)."""
    return lowest(rng.random((1, grid.h, grid.w)), num_masked_per_slice(grid, ratio)).repeat(grid.t, axis=0)


def motion_bins(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """The same patches in every slice, half of the visible ones from the half that moves most (TrackMAE).

    The patches are ranked by their mean strength over the clip and halved: the moving half and the still half, which
    has one patch more where their number is odd. Of the visible patches of a slice, half, rounded down, are drawn from
    the moving half and the others from the still half. TrackMAE ranks by the displacement of tracked points. Patches of
    equal strength are ranked at random, so in a clip without motion this is `tube`.
    """
    num_patches = grid.patches_per_slice
    num_visible = num_patches - num_masked_per_slice(grid, ratio)
    cells = grid.patch.cells_per_side
    strength_YX = strength_TYX.sum(0, dtype=np.float64)
    strength_p = strength_YX.reshape(grid.h, cells, grid.w, cells).sum((1, 3)).ravel()
    # A random order, ranked by a stable sort: the order is what decides between equal patches.
    order_p = rng.permutation(num_patches)
    order_p = order_p[np.argsort(-strength_p[order_p], kind="stable")]
    moving_p, still_p = np.split(order_p, [num_patches // 2])
    num_moving = num_visible // 2
    mask_p = np.ones(num_patches, np.bool_)
    mask_p[rng.permutation(moving_p)[:num_moving]] = False
    mask_p[rng.permutation(still_p)[: num_visible - num_moving]] = False
    return mask_p.reshape(1, grid.h, grid.w).repeat(grid.t, axis=0)


def random(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Random tokens of the whole clip (ST-MAE). Only their total number is fixed, not the number per slice."""
    mask_1N = lowest(rng.random((1, 1, grid.num_tokens)), num_masked(grid, ratio))
    return mask_1N.reshape(grid.t, grid.h, grid.w)


STRATEGIES: dict[str, Strategy] = {
    "mgm": mgm,
    "mgm-sparse": mgm_sparse,
    "smm": smm,
    "smm-sparse": smm_sparse,
    "tube": tube,
    "motion-bins": motion_bins,
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
    patch: Patch = PAPER_PATCH,
) -> Mask:
    """Make the mask of a clip.

    Args:
        strategy: A name in `STRATEGIES`.
        strength_TYX: Strength of each motion cell, without missing values, from `Guidance.strength`. Its shape and
            `patch` give the token grid.
        ratio: Share of masked tokens, between 0 and 1.
        rng: Source of randomness; the mask is a function of it and of the other arguments.
        options: Options of the moving rectangles.
        patch: What a token covers.

    Returns:
        mask_N, flattened in the order t, h, w. Exactly `num_masked` tokens are True, which means masked.

    Raises:
        ValueError: The strategy is unknown, the ratio is not between 0 and 1, or the clip is no whole number of
            tubelets.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no mask strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    return STRATEGIES[strategy](strength_TYX, clip_grid(strength_TYX, patch), ratio, rng, options).reshape(-1)

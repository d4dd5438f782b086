"""Which tokens of a clip are hidden: motion-guided masks (paper §3.3) and what they are compared with (Table 4e).

What draws a mask is the strength of each cell, by default |motion|, which `guidance.py` makes. All of it runs on the
8-px motion grid: the argmax there equals the argmax on the upsampled map of eq. 6, at 1/64 of the work. Every mask of a
strategy hides the same number of tokens, whatever the motion, the jitter and the borders do.

Axes: T frames · Y,X cells of 8×8 px · C = Y·X · K strongest cells · 2 = (x, y) of a place · t,h,w tubelets of
2×16×16 px · N = t·h·w. True = hidden. Places and sizes of rectangles are in patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX, PATCH_PX, TUBELET_FRAMES, TokenGrid
from mgm_shared.kernel import kernel
from mgm_train.clips import Clip
from mgm_train.config import PretrainConfig
from mgm_train.guidance import Guidance

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
class MaskMaker:
    """A strategy with its settings and its guidance, for a dataset: (clip, rng) → mask_N."""

    strategy: str
    ratio: float
    options: MaskOptions
    guidance: Guidance

    @classmethod
    def of(cls, config: PretrainConfig) -> "MaskMaker":
        """What the configuration says."""
        options = MaskOptions(
            jitter=config.mask_jitter, top_k=config.mask_top_k, is_first_guided=config.mask_first_guided
        )
        return cls(strategy=config.mask, ratio=config.mask_ratio, options=options, guidance=Guidance.of(config))

    def __call__(self, clip: Clip, rng: Generator) -> NDArray[np.bool_]:
        strength_TYX = self.guidance.strength(clip)
        return make_mask(self.strategy, strength_TYX, ratio=self.ratio, rng=rng, options=self.options)


Strength = NDArray[np.float32]
Mask = NDArray[np.bool_]
Strategy = Callable[[Strength, TokenGrid, float, Generator, MaskOptions], Mask]


@lru_cache(maxsize=64)
def num_hidden_per_slice(grid: TokenGrid, ratio: float) -> int:
    """`int(ratio·h·w)` in integers, since `int(0.57 * 100)` is 56. ValueError for a ratio outside (0, 1)."""
    if not 0 < ratio < 1:
        raise ValueError(f"the mask ratio must lie between 0 and 1, not {ratio}")
    return int(Fraction(ratio).limit_denominator(10_000) * grid.patches_per_slice)


def num_hidden(grid: TokenGrid, ratio: float) -> int:
    """Hidden tokens of a clip: `int(ratio·h·w)·t`, for every strategy."""
    return num_hidden_per_slice(grid, ratio) * grid.t


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


def _cover(
    centre_t2: NDArray[np.float64], sides_t2: NDArray[np.float64], grid: TokenGrid, num: int, rng: Generator
) -> Mask:
    """The `num` patches of each slice that a growing rectangle covers first, (t, h, w).

    A rectangle of the sides' proportion grows about `centre` and is moved inside where it meets the border. The scale
    at which it reaches a row or a column has a closed form, and it reaches a patch with the later of the two. So the
    count is exact without trimming, the region is connected (each patch comes after its neighbour towards the centre),
    and the patch under the centre is always in it.
    """
    order_thw = rng.random((len(centre_t2), grid.h, grid.w))
    _order(centre_t2, np.ascontiguousarray(sides_t2), order_thw)
    return _lowest(order_thw, num)


@kernel
def _order(centre_t2: NDArray[np.float64], sides_t2: NDArray[np.float64], order_thw: NDArray[np.float64]) -> None:
    """When the rectangle reaches each patch, into `order_thw`, which holds the random part of it."""
    for t in range(order_thw.shape[0]):
        for y in range(order_thw.shape[1]):
            reach_y = _reach(y + 0.5, centre_t2[t, 1], sides_t2[t, 1], order_thw.shape[1])
            for x in range(order_thw.shape[2]):
                reach_x = _reach(x + 0.5, centre_t2[t, 0], sides_t2[t, 0], order_thw.shape[2])
                # Inside the last ring from its middle outwards, which keeps it connected; then at random, never in
                # raster order.
                reach = max(reach_x, reach_y) + 1e-3 * min(reach_x, reach_y)
                order_thw[t, y, x] = reach + 1e-7 * order_thw[t, y, x]


@kernel
def _reach(middle: float, centre: float, side: float, num_patches: int) -> float:
    """Scale at which the growing interval c ± s/2, kept inside [0, num_patches], covers the middle of a patch."""
    offset = middle - centre
    # Grown from the far border instead, once the interval leans on it.
    leaning = middle if offset > 0 else num_patches - middle
    return min(2 * abs(offset), leaning) / side


def _lowest(order_thw: NDArray[np.float64], num: int) -> Mask:
    """True at the `num` lowest values of each slice."""
    mask_thw = np.zeros(order_thw.shape, np.bool_)
    if num:
        _mark_lowest(order_thw.reshape(len(order_thw), -1), num, mask_thw.reshape(len(order_thw), -1))
    return mask_thw


@kernel
def _mark_lowest(order_tp: NDArray[np.float64], num: int, mask_tp: Mask) -> None:
    for t in range(len(order_tp)):
        last = np.partition(order_tp[t], num - 1)[num - 1]
        num_left = num
        for p in range(order_tp.shape[1]):
            if order_tp[t, p] < last:
                mask_tp[t, p] = True
                num_left -= 1
        for p in range(order_tp.shape[1]):
            if order_tp[t, p] == last and num_left:
                mask_tp[t, p] = True
                num_left -= 1


def _start(grid: TokenGrid, ratio: float, rng: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sides (w₀, h₀) and the centre of a rectangle placed at random (§3.2): √ratio of each side of the picture.

    On the paper's square grid this is its w₀ = h₀ = √(ratio·h·w); on others it always fits.
    """
    root = sqrt(ratio)
    width, height = grid.w * root, grid.h * root
    # Plain numbers, since numpy takes a microsecond for each of these, and ten when the caches are cold.
    right, down = rng.random(2).tolist()
    centre_2 = np.array((width / 2 + right * (grid.w - width), height / 2 + down * (grid.h - height)))
    return np.array((width, height)), centre_2


def _side_walk(
    sides_2: NDArray[np.float64], num_slices: int, num_walks: int, rng: Generator, jitter: float
) -> NDArray[np.float64]:
    """Sides (w, h) of each slice, (t, 2): running sums of random changes that add up to zero (eq. 5, 7).

    The paper gives no distribution: the changes are uniform, and the walk is scaled to stray by U(0, jitter) at most.
    One walk scales both sides alike, two scale each on its own.
    """
    if not jitter or num_slices < 3:
        return np.broadcast_to(sides_2, (num_slices, 2))
    return _walk(rng.random((num_slices, num_walks)), sides_2, jitter)


@kernel
def _walk(draw_tk: NDArray[np.float64], sides_2: NDArray[np.float64], jitter: float) -> NDArray[np.float64]:
    """The last row of draws says how far each walk k strays, the others how it changes from slice to slice."""
    num_slices, num_walks = draw_tk.shape
    walk_tk = np.zeros((num_slices, num_walks))
    for k in range(num_walks):
        change_t = 2 * draw_tk[:-1, k] - 1
        walk_tk[1:, k] = np.cumsum(change_t - change_t.sum() / len(change_t))
        walk_tk[:, k] *= jitter * draw_tk[-1, k] / np.abs(walk_tk[:, k]).max()
    return sides_2 * (1 + walk_tk)


def mgm(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Motion-guided, dense (§3.3, eq. 7): a rectangle on the motion peak of each slice; on slice 0 a random one."""
    sides_2, first_2 = _start(grid, ratio, rng)
    centre_t2 = strongest_places(strength_TYX, rng, options.top_k)
    if not options.is_first_guided:
        centre_t2[0] = first_2
    sides_t2 = _side_walk(sides_2, grid.t, 2, rng, options.jitter)
    return _cover(centre_t2, sides_t2, grid, num_hidden_per_slice(grid, ratio), rng)


def mgm_sparse(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Motion-guided, sparse (Table 4e): the patches of largest motion in each slice, equal ones drawn at random."""
    shape = (grid.t, TUBELET_FRAMES, grid.h, CELLS_PER_PATCH, grid.w, CELLS_PER_PATCH)
    strength_tp = strength_TYX.reshape(shape).sum((1, 3, 5)).reshape(grid.t, -1)
    order_tp = np.lexsort((rng.random(strength_tp.shape), -strength_tp))
    mask_tp = np.zeros(strength_tp.shape, np.bool_)
    np.put_along_axis(mask_tp, order_tp[:, : num_hidden_per_slice(grid, ratio)], True, axis=1)
    return mask_tp.reshape(grid.t, grid.h, grid.w)


def _bounce(place_t2: NDArray[np.float64], room_t2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places folded into [0, room], as if reflected by the borders."""
    room_t2 = np.maximum(room_t2, 1e-9)
    return room_t2 - np.abs(place_t2 % (2 * room_t2) - room_t2)


def _simulated_path(grid: TokenGrid, rng: Generator) -> NDArray[np.float64]:
    """Displacement since slice 0 in patches, (t, 2): sums of random velocities (eq. 5)."""
    velocity_t2 = rng.uniform(-SIMULATED_SPEED, SIMULATED_SPEED, (grid.t, 2)) * (grid.w, grid.h)
    velocity_t2[0] = 0
    return velocity_t2.cumsum(0)


def smm(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Simulated motion, dense (§3.2, eq. 5): a rectangle that moves and scales at random and bounces off the border."""
    sides_2, first_2 = _start(grid, ratio, rng)
    sides_t2 = _side_walk(sides_2, grid.t, 1, rng, options.jitter)
    corner_t2 = first_2 - sides_2 / 2 + _simulated_path(grid, rng)
    centre_t2 = _bounce(corner_t2, (grid.w, grid.h) - sides_t2) + sides_t2 / 2
    return _cover(centre_t2, sides_t2, grid, num_hidden_per_slice(grid, ratio), rng)


def smm_sparse(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Simulated motion, sparse (Table 4e): random patches that move at random; what leaves comes in opposite."""
    mask_hw = _lowest(rng.random((1, grid.h, grid.w)), num_hidden_per_slice(grid, ratio))[0]
    shift_t2 = np.rint(_simulated_path(grid, rng)).astype(np.int64)
    row_th = (np.arange(grid.h) - shift_t2[:, 1:]) % grid.h
    column_tw = (np.arange(grid.w) - shift_t2[:, :1]) % grid.w
    return mask_hw[row_th[:, :, None], column_tw[:, None, :]]


def block(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """One rectangle at a random place that stays for the whole clip ("random block" in Table 4e)."""
    sides_2, centre_2 = _start(grid, ratio, rng)
    mask_1hw = _cover(centre_2[None], sides_2[None], grid, num_hidden_per_slice(grid, ratio), rng)
    return mask_1hw.repeat(grid.t, axis=0)


def tube(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """The same random patches in every slice (VideoMAE)."""
    return _lowest(rng.random((1, grid.h, grid.w)), num_hidden_per_slice(grid, ratio)).repeat(grid.t, axis=0)


def random(strength_TYX: Strength, grid: TokenGrid, ratio: float, rng: Generator, options: MaskOptions) -> Mask:
    """Random tokens of the whole clip (ST-MAE); only the total is fixed."""
    mask_1N = _lowest(rng.random((1, 1, grid.num_tokens)), num_hidden(grid, ratio))
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
    """A mask_N, True = hidden, flattened t, h, w, with exactly `num_hidden` True.

    `strength_TYX` is what `Guidance.strength` makes of a clip, none missing; its shape gives the token grid. ValueError
    for an unknown strategy, a ratio outside (0, 1) or a grid that is no whole number of tubelets.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no mask strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    num_frames, num_rows, num_columns = strength_TYX.shape
    grid = TokenGrid.of_clip(num_frames, num_rows * CELL_PX, num_columns * CELL_PX)
    return STRATEGIES[strategy](strength_TYX, grid, ratio, rng, options).reshape(-1)

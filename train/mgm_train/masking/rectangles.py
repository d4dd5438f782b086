"""The geometry of moving rectangles on the token grid: placement, motion and coverage (paper §3.2)."""

from math import sqrt

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import TokenGrid
from mgm_shared.kernel import kernel

Mask = NDArray[np.bool_]


def cover(
    centre_t2: NDArray[np.float64], sides_t2: NDArray[np.float64], grid: TokenGrid, num: int, rng: Generator
) -> Mask:
    """Mask exactly `num` patches of each slice with a rectangle: (t, h, w), True = masked.

    A rectangle with the aspect ratio of `sides_t2` grows around `centre_t2`; where it meets the border it is shifted
    inside. The `num` patches that it reaches first are masked. The scale at which it reaches a row or a column has a
    closed form, and a patch is reached at the larger of the two scales. Therefore the count is exact without trimming,
    the masked region is connected (a patch is reached after its neighbour towards the centre), and it contains the
    patch at the centre. Patches that are reached at the same scale are ordered by one random draw for the whole clip,
    so a rectangle that does not move masks the same patches in every slice.
    """
    order_thw = rng.random((1, grid.h, grid.w)).repeat(len(centre_t2), axis=0)
    _order(centre_t2, np.ascontiguousarray(sides_t2), order_thw)
    return lowest(order_thw, num)


@kernel
def _order(centre_t2: NDArray[np.float64], sides_t2: NDArray[np.float64], order_thw: NDArray[np.float64]) -> None:
    """Write into `order_thw` the scale at which the rectangle reaches each patch.

    On entry, `order_thw` holds the random numbers that order equal scales.
    """
    for t in range(order_thw.shape[0]):
        for y in range(order_thw.shape[1]):
            reach_y = _reach(y + 0.5, centre_t2[t, 1], sides_t2[t, 1], order_thw.shape[1])
            for x in range(order_thw.shape[2]):
                reach_x = _reach(x + 0.5, centre_t2[t, 0], sides_t2[t, 0], order_thw.shape[2])
                # The first term orders the rings. The second orders a ring from the middle of its sides to its corners,
                # which keeps the region connected. The random term decides between the rest, never in raster order.
                reach = max(reach_x, reach_y) + 1e-3 * min(reach_x, reach_y)
                order_thw[t, y, x] = reach + 1e-7 * order_thw[t, y, x]


@kernel
def _reach(middle: float, centre: float, side: float, num_patches: int) -> float:
    """Scale at which the growing interval c ± s/2, kept inside [0, num_patches], covers the middle of a patch."""
    offset = middle - centre
    # Once the interval touches a border, it grows away from that border only.
    leaning = middle if offset > 0 else num_patches - middle
    return min(2 * abs(offset), leaning) / side


def lowest(order_thw: NDArray[np.float64], num: int) -> Mask:
    """True at the `num` lowest values of each slice, (t, h, w). Of equal values, the first in raster order count."""
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


def start(grid: TokenGrid, ratio: float, rng: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sides (w₀, h₀) and centre (x, y) of the first rectangle, at a random place inside the picture (§3.2).

    Each side is √ratio of the picture's. On the paper's square grid this equals its w₀ = h₀ = √(ratio·h·w); on other
    grids, where the paper's square may not fit, this rectangle always does.
    """
    root = sqrt(ratio)
    width, height = grid.w * root, grid.h * root
    # Python floats: the same operations on numpy scalars take a microsecond each, ten with cold caches.
    right, down = rng.random(2).tolist()
    centre_2 = np.array((width / 2 + right * (grid.w - width), height / 2 + down * (grid.h - height)))
    return np.array((width, height)), centre_2


def side_walk(
    sides_2: NDArray[np.float64], num_slices: int, num_walks: int, rng: Generator, jitter: float
) -> NDArray[np.float64]:
    """Sides (w, h) of each slice, (t, 2): cumulative sums of random changes that add up to zero (eq. 5, 7).

    The paper gives no distribution. Here the changes are uniform, and the walk is scaled so that its largest deviation
    is drawn from U(0, jitter). With `num_walks` 1 both sides change by the same factor, with 2 independently.
    """
    if not jitter or num_slices < 3:
        return np.broadcast_to(sides_2, (num_slices, 2))
    return _walk(rng.random((num_slices, num_walks)), sides_2, jitter)


@kernel
def _walk(draw_tk: NDArray[np.float64], sides_2: NDArray[np.float64], jitter: float) -> NDArray[np.float64]:
    """The last row of `draw_tk` is the largest deviation of each walk k; the other rows are its changes per slice."""
    num_slices, num_walks = draw_tk.shape
    walk_tk = np.zeros((num_slices, num_walks))
    for k in range(num_walks):
        change_t = 2 * draw_tk[:-1, k] - 1
        walk_tk[1:, k] = np.cumsum(change_t - change_t.sum() / len(change_t))
        walk_tk[:, k] *= jitter * draw_tk[-1, k] / np.abs(walk_tk[:, k]).max()
    return sides_2 * (1 + walk_tk)


def bounce(place_t2: NDArray[np.float64], room_t2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fold places into [0, room], as if they were reflected at the borders."""
    room_t2 = np.maximum(room_t2, 1e-9)
    return room_t2 - np.abs(place_t2 % (2 * room_t2) - room_t2)

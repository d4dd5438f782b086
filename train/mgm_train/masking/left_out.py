"""Leave tokens out of a mask: tokens without motion are dropped, and some masked tokens are not predicted.

A mask with tokens left out is int8: −1 left out, 0 visible, 1 masked. All masks of one size and one configuration have
the same number of each, so that every clip of a batch has the same shape.

`drop` is what EVEREST does (Hwang et al. 2024): tokens that hardly move are neither seen nor predicted. EVEREST finds
them by the distance between the patch embeddings of neighbouring slices; here the guidance of the clip decides, which
needs no network. `decode_ratio` is the decoder mask of VideoMAE V2 (Wang et al. 2023, section 3.2).

Axes: T frames · Y,X cells of 8×8 px · t,h,w tokens · N of them, flattened.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX, Patch, TokenGrid
from mgm_train.token_counts import LEFT_OUT, MASKED, VISIBLE, TokenCounts

Roles = NDArray[np.int8]
# The running cell is a square of this many patches.
CELL_SIDE = 2


def clip_grid(strength_TYX: NDArray[np.float32], patch: Patch) -> TokenGrid:
    """The token grid of a clip with these motion cells. ValueError if it is no whole number of tubelets."""
    num_frames, num_rows, num_columns = strength_TYX.shape
    return TokenGrid.of_clip(num_frames, num_rows * CELL_PX, num_columns * CELL_PX, patch)


def leave_out(
    mask_N: NDArray[np.bool_], strength_TYX: NDArray[np.float32], counts: TokenCounts, patch: Patch, rng: Generator
) -> Roles:
    """Give each token of a mask its role: −1 left out, 0 visible, 1 masked, in exactly the numbers of `counts`.

    `mask_N` is a mask of the strategy for the tokens that remain; `strength_TYX` has no missing values.
    """
    grid = clip_grid(strength_TYX, patch)
    roles_N = np.where(mask_N, MASKED, VISIBLE).astype(np.int8)
    if counts.num_dropped:
        drop_still(roles_N, token_strength(strength_TYX, grid), counts, rng)
    if counts.num_undecoded:
        thin_out(roles_N, grid, counts, rng)
    return roles_N


def token_strength(strength_TYX: NDArray[np.float32], grid: TokenGrid) -> NDArray[np.float32]:
    """Sum of the strength of the cells and frames of each token, (N)."""
    cells = grid.patch.cells_per_side
    shape = (grid.t, grid.patch.frames, grid.h, cells, grid.w, cells)
    strength_N: NDArray[np.float32] = strength_TYX.reshape(shape).sum((1, 3, 5)).reshape(-1)
    return strength_N


def drop_still(roles_N: Roles, strength_N: NDArray[np.float32], counts: TokenCounts, rng: Generator) -> None:
    """Drop the `num_dropped` tokens of least strength of the clip, in place; tokens of equal strength at random.

    Of the tokens that remain, too many may be visible, or too many masked. As many of them change their role, drawn at
    random, as make the numbers exact.
    """
    order_N = np.lexsort((rng.random(len(roles_N)), strength_N))
    roles_N[order_N[: counts.num_dropped]] = LEFT_OUT
    num_surplus = int((roles_N == VISIBLE).sum()) - counts.num_visible
    old, new = (VISIBLE, MASKED) if num_surplus > 0 else (MASKED, VISIBLE)
    changed = rng.choice(np.flatnonzero(roles_N == old), abs(num_surplus), replace=False)
    roles_N[changed] = new


def running_cell(grid: TokenGrid, num_kept: int, phase: int) -> NDArray[np.bool_]:
    """Places that the decoder predicts, (t, h, w): `num_kept` of the four patches of each 2×2 cell.

    The four patches of a cell, row by row, take `num_kept` times True from a ring of four; the ring moves on by one
    patch in each slice. `phase` is where it starts.
    """
    row_h1, column_w = np.arange(grid.h)[:, None] % CELL_SIDE, np.arange(grid.w) % CELL_SIDE
    place_hw = CELL_SIDE * row_h1 + column_w
    num_places = CELL_SIDE**2
    ring_thw = (place_hw + phase + np.arange(grid.t)[:, None, None]) % num_places
    kept_thw: NDArray[np.bool_] = ring_thw >= num_places - num_kept
    return kept_thw


def thin_out(roles_N: Roles, grid: TokenGrid, counts: TokenCounts, rng: Generator) -> None:
    """Leave out all but `num_masked` masked tokens, in place: those outside the running cell first.

    The cell keeps at least as large a share as is predicted. The masks of slices differ, so the cell covers more or
    fewer masked tokens than that; a random choice among them, or among the others, makes the number exact. Under a tube
    mask at half, where t is a multiple of four, the cell fits by itself.
    """
    num_to_choose_from = counts.num_masked + counts.num_undecoded
    num_kept = -(-(CELL_SIDE**2) * counts.num_masked // num_to_choose_from)
    is_kept_N = running_cell(grid, num_kept, int(rng.integers(CELL_SIDE**2))).reshape(-1)
    masked_M = np.flatnonzero(roles_N == MASKED)
    order_M = np.lexsort((rng.random(len(masked_M)), ~is_kept_N[masked_M]))
    roles_N[masked_M[order_M[counts.num_masked :]]] = LEFT_OUT

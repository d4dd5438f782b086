"""Resample motion after a crop and a resize: average the vectors under each new cell by area, and rescale them.

Axes: T frames · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame, NaN = none · O output cells, K input cells under one.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX, Box
from mgm_shared.kernel import kernel

# A resampled cell has a vector if at least this share of its area had one.
MIN_COVERAGE = 0.5


def resample_motion(
    motion_TYX2: NDArray[np.float32], box: Box, height_px: int, width_px: int, *, is_mirrored: bool = False
) -> NDArray[np.float32]:
    """The motion of a picture that is cropped to `box`, resized to height_px × width_px, and mirrored.

    Each new cell is the area-weighted mean of the vectors under it, rescaled to the new pixels; NaN where less than
    half of it had a vector. `box` is in pixels of the grid's picture, whose top left pixel is the grid's. A single
    picture's (Y, X, 2) is taken too.
    """
    *leading, num_rows, num_columns, _ = motion_TYX2.shape
    rows = _shares(box.y, box.height, num_rows, height_px // CELL_PX)
    columns = _shares(box.x, box.width, num_columns, width_px // CELL_PX)
    scale_x, scale_y = width_px / box.width, height_px / box.height
    if is_mirrored:
        scale_x, columns = -scale_x, (columns[0][::-1].copy(), columns[1][::-1].copy())
    out_TYX2 = np.empty((math.prod(leading), height_px // CELL_PX, width_px // CELL_PX, 2), np.float32)
    whole_TYX2 = np.ascontiguousarray(motion_TYX2, np.float32).reshape(-1, num_rows, num_columns, 2)
    _pool(whole_TYX2, *rows, *columns, np.float32(scale_x), np.float32(scale_y), out_TYX2)
    return out_TYX2.reshape(*leading, *out_TYX2.shape[1:])


@lru_cache(maxsize=4096)
def _shares(start: float, length: float, num_in: int, num_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first input cell under each output cell, (O,), and the shares of its length under that and the next, (O, K).

    The outputs divide [start, start + length) px.
    """
    edges = (start + np.linspace(0, length, num_out + 1)) / CELL_PX
    first_O = np.clip(np.floor(edges[:-1]), 0, num_in - 1).astype(np.int64)
    num_under = int(min(num_in, (np.ceil(edges[1:]) - first_O).max()))
    first_O = np.minimum(first_O, num_in - num_under)
    cell_OK = first_O[:, None] + np.arange(num_under)
    under_OK = np.minimum(cell_OK + 1, edges[1:, None]) - np.maximum(cell_OK, edges[:-1, None])
    share_OK = np.maximum(under_OK, 0) / (length / num_out / CELL_PX)
    return first_O, share_OK.astype(np.float32)


@kernel
def _pool(
    motion_TYX2: NDArray[np.float32],
    first_row_O: NDArray[np.int64],
    row_share_OK: NDArray[np.float32],
    first_column_O: NDArray[np.int64],
    column_share_OK: NDArray[np.float32],
    scale_x: np.float32,
    scale_y: np.float32,
    out_TYX2: NDArray[np.float32],
) -> None:
    for t in range(out_TYX2.shape[0]):
        for y in range(out_TYX2.shape[1]):
            for x in range(out_TYX2.shape[2]):
                dx = dy = coverage = np.float32(0)
                for k in range(row_share_OK.shape[1]):
                    for j in range(column_share_OK.shape[1]):
                        share = row_share_OK[y, k] * column_share_OK[x, j]
                        cell_dx = motion_TYX2[t, first_row_O[y] + k, first_column_O[x] + j, 0]
                        # NaN is the one number that differs from itself.
                        if share > 0 and cell_dx == cell_dx:
                            dx += share * cell_dx
                            dy += share * motion_TYX2[t, first_row_O[y] + k, first_column_O[x] + j, 1]
                            coverage += share
                is_known = coverage > MIN_COVERAGE - 1e-5
                out_TYX2[t, y, x, 0] = dx / coverage * scale_x if is_known else np.nan
                out_TYX2[t, y, x, 1] = dy / coverage * scale_y if is_known else np.nan

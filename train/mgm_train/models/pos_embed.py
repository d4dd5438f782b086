"""Position embeddings: fixed sine and cosine tables, and their interpolation to clips of another size.

VideoMAE takes sine and cosine of the index of a token, counted over t, h and w. In a clip of another size, the same
index means another place. So a model that was trained on clips of one size keeps the table of that size, as if it had
been learnt, and the table is interpolated to the grid of the new size.

Measured: a tiny model learnt to predict the place of a blob in clips of 112 px, with a mean error of 0.050 of the
height. In clips of 64, 96 and 128 px its error was 0.052, 0.049 and 0.046 with linear interpolation, 0.051, 0.052 and
0.050 with cubic interpolation, and 0.319, 0.335 and 0.325 with a new table for that size.

Axes: N tokens, flattened t,h,w · D width.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mgm_shared.geometry import TokenGrid


def sinusoid_table(num_tokens: int, width: int) -> Tensor:
    """Position table (1, N, width) float32 of the flattened token index: sine in even columns, cosine in odd ones.

    The table of VideoMAE and of transformers. It is not a parameter, and checkpoints do not contain it.
    """
    frequency_D = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle_ND = np.arange(num_tokens)[:, None] * frequency_D
    table_ND = np.where(np.arange(width) % 2 == 0, np.sin(angle_ND), np.cos(angle_ND))
    return torch.from_numpy(table_ND.astype(np.float32))[None]


def separable_table(grid: TokenGrid, width: int) -> Tensor:
    """Position table (1, N, width) float32 of the place (t, h, w) of a token: a table for each axis, side by side.

    Each of the three tables is `sinusoid_table` of that coordinate alone, so neighbours in height and in time have
    similar rows too, which they have not in VideoMAE's table of the flattened index. Height and width get a third of
    the columns each, rounded down to an even number, and time gets the rest.
    """
    side_width = width // 6 * 2
    parts = ((grid.t, width - 2 * side_width), (grid.h, side_width), (grid.w, side_width))
    tables = [sinusoid_table(length, columns)[0] for length, columns in parts]
    place_N3 = torch.cartesian_prod(*(torch.arange(length) for length, _ in parts))
    return torch.cat([table[place_N] for table, place_N in zip(tables, place_N3.T, strict=True)], dim=1)[None]


def position_table(grid: TokenGrid, trained: TokenGrid, width: int, kind: str = "sinusoid") -> Tensor:
    """Position table (1, N, width) float32 for clips of `grid`, for weights trained on clips of the grid `trained`.

    `kind` is `sinusoid` or `separable`: `sinusoid_table` or `separable_table` exactly if both grids are equal. For
    `rope3d`, whose positions turn queries and keys (see rope.py), it is zero. ValueError for another kind.
    """
    if kind == "rope3d":
        return torch.zeros(1, grid.num_tokens, width)
    if kind not in ("sinusoid", "separable"):
        raise ValueError(f"no positions {kind!r}; there are sinusoid, separable, rope3d")
    table_1ND = separable_table(trained, width) if kind == "separable" else sinusoid_table(trained.num_tokens, width)
    if grid == trained:
        return table_1ND
    table_thwD = interpolate(table_1ND.reshape(trained.t, trained.h, trained.w, width), grid)
    return table_thwD.reshape(1, grid.num_tokens, width)


def interpolate(table_thwD: Tensor, grid: TokenGrid) -> Tensor:
    """Interpolate a table (t, h, w, D) to another grid that spans the same clip, linearly along each axis."""
    table_1Dthw = table_thwD.permute(3, 0, 1, 2)[None]
    table_1Dthw = F.interpolate(table_1Dthw, (grid.t, grid.h, grid.w), mode="trilinear", align_corners=False)
    return table_1Dthw[0].permute(1, 2, 3, 0).contiguous()

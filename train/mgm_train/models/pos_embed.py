"""Where a token stands: the fixed sine and cosine of VideoMAE, and how they are carried to clips of another size.

VideoMAE numbers the tokens of a clip through, t then h then w, and takes the sine of that number. So the same number
means another place as soon as the clip is larger: a model that was trained on one size keeps the table of that size, as
if its positions had been learnt, and the table is interpolated to the new grid.

A tiny model that had learnt to say where in a clip of 112 px a blob lies was off by 0.050 of the height. In clips of
64, 96 and 128 px it was off by 0.052, 0.049 and 0.046 with the table interpolated linearly, by 0.051, 0.052 and 0.050
cubically, and by 0.319, 0.335 and 0.325 with a fresh table.

Axes: N tokens, flattened t,h,w · D width.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mgm_shared.geometry import TokenGrid


def sinusoid_table(num_tokens: int, width: int) -> Tensor:
    """Fixed positions (1, N, width) float32 of the *flattened* token index: even columns sine, odd cosine.

    VideoMAE's table, and transformers'. It is no parameter and stands in no checkpoint.
    """
    frequency_D = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle_ND = np.arange(num_tokens)[:, None] * frequency_D
    table_ND = np.where(np.arange(width) % 2 == 0, np.sin(angle_ND), np.cos(angle_ND))
    return torch.from_numpy(table_ND.astype(np.float32))[None]


def position_table(grid: TokenGrid, trained: TokenGrid, width: int) -> Tensor:
    """Positions (1, N, width) float32 of a clip's tokens, for weights trained on clips of the grid `trained`.

    The same grid gives `sinusoid_table`, exactly.
    """
    table_1ND = sinusoid_table(trained.num_tokens, width)
    if grid == trained:
        return table_1ND
    table_thwD = interpolate(table_1ND.reshape(trained.t, trained.h, trained.w, width), grid)
    return table_thwD.reshape(1, grid.num_tokens, width)


def interpolate(table_thwD: Tensor, grid: TokenGrid) -> Tensor:
    """A table (t, h, w, D) on another grid that spans the same clip, linear along each axis."""
    table_1Dthw = table_thwD.permute(3, 0, 1, 2)[None]
    table_1Dthw = F.interpolate(table_1Dthw, (grid.t, grid.h, grid.w), mode="trilinear", align_corners=False)
    return table_1Dthw[0].permute(1, 2, 3, 0).contiguous()

"""Where a token stands: the fixed sine and cosine of VideoMAE, and how they are carried to clips of another size.

VideoMAE numbers the tokens of a clip through, t then h then w, and takes the sine of that number. So the same number
means another place as soon as the clip is larger: a model that was trained on one size keeps the table of that size, as
if its positions had been learnt, and the table is interpolated to the new grid.

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
    """A table (t, h, w, D) on another grid that spans the same clip: cubic in the picture, linear over time."""
    table_tDhw = table_thwD.permute(0, 3, 1, 2)
    if table_tDhw.shape[2:] != (grid.h, grid.w):
        table_tDhw = F.interpolate(table_tDhw, (grid.h, grid.w), mode="bicubic", align_corners=False)
    if len(table_tDhw) != grid.t:
        table_1Xt = table_tDhw.flatten(1).T[None]
        table_1Xt = F.interpolate(table_1Xt, grid.t, mode="linear", align_corners=False)
        table_tDhw = table_1Xt[0].T.unflatten(1, table_tDhw.shape[1:])
    return table_tDhw.permute(0, 2, 3, 1).contiguous()

"""Rotary positions over time, height and width: attention sees how far apart two tokens are, along each axis.

RoPE (Su et al. 2021, section 3.4) rotates pairs of values of a query and of a key by an angle that grows with the
place of the token, so their product depends on the difference of the two places only. As in V-JEPA 2 (Assran et al.
2025), each of the three axes has a third of the pairs of a head, and pairs that are left over are not rotated.

Axes: B clips · N tokens, flattened t,h,w, or those that are picked · G heads · d width of a head · r pairs of an axis ·
R pairs that are rotated, 3·r · 2 = (cosine, sine).
"""

import numpy as np
import torch
from torch import Tensor

from mgm_shared.geometry import TokenGrid

# Smallest width of a head that has a pair for each axis.
MIN_HEAD_WIDTH = 6


def rotation_table(grid: TokenGrid, trained: TokenGrid, head_width: int) -> Tensor:
    """Cosine and sine of the angle of each pair of each token: (1, N, R, 2) float32.

    The pairs of an axis turn by place · 10000^(−i/r) radians. In clips of `grid`, for weights that were trained on
    clips of the grid `trained`, places are scaled, so that the whole clip spans the same angles. ValueError where a
    head is narrower than six values.
    """
    if head_width < MIN_HEAD_WIDTH:
        raise ValueError(f"rope3d needs heads at least {MIN_HEAD_WIDTH} wide, not {head_width}")
    num_pairs = head_width // 6
    frequency_r = 10000.0 ** (-np.arange(num_pairs) / num_pairs)
    sides = ((grid.t, trained.t), (grid.h, trained.h), (grid.w, trained.w))
    places = np.meshgrid(*(np.arange(own) * (before / own) for own, before in sides), indexing="ij")
    angle_N3r = np.stack(places, axis=-1).reshape(-1, 3, 1) * frequency_r
    turn_NR2 = np.stack([np.cos(angle_N3r), np.sin(angle_N3r)], axis=-1).reshape(grid.num_tokens, -1, 2)
    return torch.from_numpy(turn_NR2.astype(np.float32))[None]


def rotate(heads_BGNd: Tensor, rotation_BNR2: Tensor) -> Tensor:
    """Queries or keys with their first R pairs of values rotated; one row of rotations serves all clips and heads."""
    cos_B1NR, sin_B1NR = rotation_BNR2[:, None].unbind(-1)
    num_values = 2 * cos_B1NR.shape[-1]
    first_BGNR, second_BGNR = heads_BGNd[..., :num_values].unflatten(-1, (-1, 2)).unbind(-1)
    turned = (first_BGNR * cos_B1NR - second_BGNR * sin_B1NR, first_BGNR * sin_B1NR + second_BGNR * cos_B1NR)
    # The products of bfloat16 values with the float32 table are float32.
    turned_BGNd = torch.stack(turned, dim=-1).flatten(-2).to(heads_BGNd.dtype)
    return torch.cat([turned_BGNd, heads_BGNd[..., num_values:]], dim=-1)

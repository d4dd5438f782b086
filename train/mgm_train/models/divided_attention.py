"""Divided space-time attention (TimeSformer, Bertasius et al. 2021): over time, then over space, then the MLP.

A token attends to the tokens at its own place in all slices, then to the tokens of its own slice. Without a mask, the
tokens form a full grid, and each attention runs along one of its axes. With a mask, the visible tokens form no grid:
slices can show different places. Attention then runs among all visible tokens with an attention mask that leaves out
the pairs of different place or different slice. At ratio 0.75 those V² pairs are half of the t·(h·w)² pairs of space
attention over the full grid. No shape depends on the mask.

TimeSformer has another linear layer behind the projection of time attention, with zero weights at the start, which
keeps the function of a pretrained image model. It is left out, because here everything is trained from scratch.

Axes: B clips · N tokens, flattened t,h,w, or those that are visible · V visible tokens · D width. `rotation_BNR2` are
rotary positions of the tokens (see rope.py); None where tokens have others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgm_shared.geometry import TokenGrid
from mgm_train.models.attention import Attention, LayerNorm


@dataclass(frozen=True)
class Peers:
    """Attention masks of the visible tokens, (B, 1, V, V), True = may attend; the axis of 1 is for the heads."""

    in_place_B1VV: Tensor
    in_slice_B1VV: Tensor

    @classmethod
    def of(cls, visible_BV: Tensor, grid: TokenGrid) -> "Peers":
        """The masks for visible tokens with these indices, (B, V)."""
        slice_BV = visible_BV.div(grid.patches_per_slice, rounding_mode="floor")
        place_BV = visible_BV - slice_BV * grid.patches_per_slice
        return cls(_is_equal(place_BV), _is_equal(slice_BV))


def _is_equal(key_BV: Tensor) -> Tensor:
    return (key_BV[:, :, None] == key_BV[:, None, :])[:, None]


class DividedBlock(nn.Module):
    """Norm and attention over time, norm and attention over space, norm and MLP, each with a residual connection."""

    def __init__(self, width: int, num_heads: int, grid: TokenGrid, drop_path: float = 0.0) -> None:
        super().__init__()
        self.grid = grid
        self.temporal_norm = LayerNorm(width)
        self.temporal_attn = Attention(width, num_heads)
        # The names from here on are those of `attention.Block`.
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens_BND: Tensor, peers: Peers | None, rotation_BNR2: Tensor | None = None) -> Tensor:
        """Output (B, N, D) of the full grid; with `peers`, of the visible tokens."""
        normed_BND = self.temporal_norm(tokens_BND)
        if peers:
            mixed_BND = self.temporal_attn(normed_BND, None, peers.in_place_B1VV, rotation_BNR2)
        else:
            mixed_BND = self._over_time(normed_BND, rotation_BNR2)
        tokens_BND = tokens_BND + self.drop_path(mixed_BND)
        normed_BND = self.norm1(tokens_BND)
        if peers:
            mixed_BND = self.attn(normed_BND, None, peers.in_slice_B1VV, rotation_BNR2)
        else:
            mixed_BND = self._over_space(normed_BND, rotation_BNR2)
        tokens_BND = tokens_BND + self.drop_path(mixed_BND)
        output_BND: Tensor = tokens_BND + self.drop_path(self.mlp(self.norm2(tokens_BND)))
        return output_BND

    def _over_time(self, tokens_BND: Tensor, rotation_BNR2: Tensor | None) -> Tensor:
        swapped = tokens_BND.unflatten(1, (self.grid.t, -1)).transpose(1, 2)
        if rotation_BNR2 is not None:
            # Only the difference of two positions counts: those of the first place of a slice serve all places.
            rotation_BNR2 = rotation_BNR2[:, :: swapped.shape[1]]
        mixed = self.temporal_attn(swapped.flatten(0, 1), None, None, rotation_BNR2).view(swapped.shape)
        mixed_BND: Tensor = mixed.transpose(1, 2).flatten(1, 2)
        return mixed_BND

    def _over_space(self, tokens_BND: Tensor, rotation_BNR2: Tensor | None) -> Tensor:
        slices = tokens_BND.unflatten(1, (self.grid.t, -1))
        if rotation_BNR2 is not None:
            rotation_BNR2 = rotation_BNR2[:, : slices.shape[2]]
        mixed_BND: Tensor = self.attn(slices.flatten(0, 1), None, None, rotation_BNR2).view(tokens_BND.shape)
        return mixed_BND


class DividedBlocks(nn.ModuleList):
    """`depth` blocks. The stochastic depth rate grows linearly from 0 in the first block to `drop_path` in the last."""

    def __init__(self, width: int, depth: int, num_heads: int, grid: TokenGrid, drop_path: float = 0.0) -> None:
        rates = np.linspace(0, drop_path, depth).tolist()
        super().__init__(DividedBlock(width, num_heads, grid, rate) for rate in rates)
        self.grid = grid
        self.is_recomputing = False

    def set_grid(self, grid: TokenGrid) -> None:
        """Take clips of another token grid from now on."""
        self.grid = grid
        for block in self:
            assert isinstance(block, DividedBlock)
            block.grid = grid

    def forward(
        self, tokens_BND: Tensor, visible_BV: Tensor | None = None, rotation_BNR2: Tensor | None = None
    ) -> Tensor:
        """Output (B, N, D) of the last block. `visible_BV` holds the tokens' indices; None means the full grid."""
        peers = None if visible_BV is None else Peers.of(visible_BV, self.grid)
        for block in self:
            tokens_BND = self._run(block, tokens_BND, peers, rotation_BNR2)
        return tokens_BND

    def _run(
        self,
        block: Callable[[Tensor, Peers | None, Tensor | None], Tensor],
        tokens_BND: Tensor,
        peers: Peers | None,
        rotation_BNR2: Tensor | None,
    ) -> Tensor:
        if self.is_recomputing and torch.is_grad_enabled():
            return checkpoint(block, tokens_BND, peers, rotation_BNR2, use_reentrant=False)
        return block(tokens_BND, peers, rotation_BNR2)

"""Cross-attention blocks for the decoder (CrossMAE, Fu et al. 2024): masked tokens attend to visible tokens only.

A masked token does not see other masked tokens, so its prediction does not depend on which others are predicted. The
visible tokens are keys and values of every block, and are not changed. CrossMAE also mixes the outputs of several
encoder blocks for each decoder block; here all blocks get the output of the encoder's last block.

Axes: B clips · V visible tokens · M masked tokens · N = V + M, visible ones first · D width · `rotation_BNR2` are
rotary positions of the tokens (see rope.py); None where tokens have others.
"""

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgm_train.models.attention import LayerNorm, attend
from mgm_train.models.rope import rotate


class CrossAttention(nn.Module):
    """Multi-head attention of the masked tokens to the visible ones."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, masked_BMD: Tensor, visible_BVD: Tensor, rotation_BNR2: Tensor | None = None) -> Tensor:
        """Output (B, M, D)."""
        query_BGMd = self.q(masked_BMD).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        joint = self.kv(visible_BVD).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        key_BGVd, value_BGVd = joint.unbind(0)
        if rotation_BNR2 is not None:
            num_visible = visible_BVD.shape[1]
            query_BGMd = rotate(query_BGMd, rotation_BNR2[:, num_visible:])
            key_BGVd = rotate(key_BGVd, rotation_BNR2[:, :num_visible])
        tokens_BMD: Tensor = self.proj(attend(query_BGMd, key_BGVd, value_BGVd).transpose(1, 2).flatten(2))
        return tokens_BMD


class CrossBlock(nn.Module):
    """Norm and cross-attention, norm and MLP, each with a residual connection. Visible tokens come in as they are."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = CrossAttention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, masked_BMD: Tensor, visible_BVD: Tensor, rotation_BNR2: Tensor | None = None) -> Tensor:
        """Output (B, M, D)."""
        masked_BMD = masked_BMD + self.attn(self.norm1(masked_BMD), visible_BVD, rotation_BNR2)
        output_BMD: Tensor = masked_BMD + self.mlp(self.norm2(masked_BMD))
        return output_BMD


class CrossBlocks(nn.ModuleList):
    """`depth` blocks, called like `attention.Blocks`: all tokens in, the last `num_outputs` ones, the masked, out."""

    def __init__(self, width: int, depth: int, num_heads: int) -> None:
        super().__init__(CrossBlock(width, num_heads) for _ in range(depth))
        self.is_recomputing = False

    def forward(self, tokens_BND: Tensor, num_outputs: int, rotation_BNR2: Tensor | None = None) -> Tensor:
        """Output (B, M, D) of the last block."""
        num_visible = tokens_BND.shape[1] - num_outputs
        visible_BVD, masked_BMD = tokens_BND[:, :num_visible], tokens_BND[:, num_visible:]
        for block in self:
            if self.is_recomputing and torch.is_grad_enabled():
                masked_BMD = checkpoint(block, masked_BMD, visible_BVD, rotation_BNR2, use_reentrant=False)
            else:
                masked_BMD = block(masked_BMD, visible_BVD, rotation_BNR2)
        return masked_BMD

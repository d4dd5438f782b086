"""Transformer block: attention among all tokens, then an MLP on each token (pre-norm, as in VideoMAE and timm).

Modules and parameter names are those of timm's `Block`. Unlike timm's, a block can compute only its last tokens: after
the decoder's last block only the masked tokens are needed, so the visible ones serve there as keys and values only.

Axes: B clips · N tokens · O output tokens, the last ones · D width · G heads · d width of a head · K heads, of the B·G
heads of all clips. `rotation_BNR2` are rotary positions of the tokens (see rope.py); None where tokens have others.
"""

import numpy as np
import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mgm_train.models.rope import rotate


class LayerNorm(nn.LayerNorm):
    """torch's, with VideoMAE's epsilon (torch's default is 1e-5). Float32 inputs are normalised in float32.

    FSDP may gather its weights in bfloat16. On a GPU autocast makes all float32; on a CPU torch rejects the mixture.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype is not torch.float32:
            return super().forward(input)
        return F.layer_norm(input, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


# Plain attention keeps its scores for the backward pass. Above this size fused attention is used, which keeps none.
MAX_SCORES_BYTES = 2**28
# Size of a chunk of scores. A chunk that stays in the CPU's cache and reuses memory is 1.4 to 1.8 times as fast as
# computing all scores at once.
CHUNK_BYTES = 2**23


def attend(query_BGOd: Tensor, key_BGNd: Tensor, value_BGNd: Tensor, attn_mask_B1ON: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ / √d)·v, (B, G, O, d). Where `attn_mask_B1ON` is given, a query attends to the keys that are True.

    On a CPU, torch's fused attention computes bfloat16 at the speed of float32. Two plain matrix products are 1.9 times
    as fast with 1568 tokens, 2.8 times with 157 (forward and backward, one core of a Zen 4). In float32 the fused
    attention is faster.
    """
    bytes_a_head = 2 * query_BGOd.shape[2] * key_BGNd.shape[2]
    num_heads = query_BGOd.shape[0] * query_BGOd.shape[1]
    is_plain = query_BGOd.device.type == "cpu" and query_BGOd.dtype == torch.bfloat16
    if not is_plain or num_heads * bytes_a_head > MAX_SCORES_BYTES:
        return F.scaled_dot_product_attention(query_BGOd, key_BGNd, value_BGNd, attn_mask=attn_mask_B1ON)
    heads_a_chunk = max(1, CHUNK_BYTES // bytes_a_head)
    # Autocast would compute the softmax, and return it, in float32.
    with torch.autocast("cpu", enabled=False):
        return _attend_in_chunks(heads_a_chunk, query_BGOd, key_BGNd, value_BGNd, attn_mask_B1ON)


def _attend_in_chunks(
    heads_a_chunk: int, query_BGOd: Tensor, key_BGNd: Tensor, value_BGNd: Tensor, attn_mask_B1ON: Tensor | None
) -> Tensor:
    num_clips, num_heads, _, width = query_BGOd.shape
    heads = [tensor.flatten(0, 1) for tensor in (query_BGOd * width**-0.5, key_BGNd, value_BGNd)]
    if attn_mask_B1ON is not None:
        heads.append(attn_mask_B1ON.expand(-1, num_heads, -1, -1).flatten(0, 1))
    chunks = zip(*(tensor.split(heads_a_chunk) for tensor in heads), strict=True)
    mixed_BGOd: Tensor = torch.cat([_attend_plainly(*chunk) for chunk in chunks]).unflatten(0, (num_clips, num_heads))
    return mixed_BGOd


def _attend_plainly(
    scaled_KOd: Tensor, key_KNd: Tensor, value_KNd: Tensor, attn_mask_KON: Tensor | None = None
) -> Tensor:
    """Attention of K heads, (K, O, d). The queries are already divided by √d."""
    scores_KON = scaled_KOd @ key_KNd.transpose(1, 2)
    if attn_mask_KON is not None:
        scores_KON = scores_KON.masked_fill(~attn_mask_KON, -torch.inf)
    return scores_KON.softmax(dim=2) @ value_KNd


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # The bias of the keys adds a constant to each row of scores, so it has no effect. timm has it too.
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        tokens_BND: Tensor,
        num_outputs: int | None = None,
        attn_mask_B1ON: Tensor | None = None,
        rotation_BNR2: Tensor | None = None,
    ) -> Tensor:
        """Output (B, O, D) of the last `num_outputs` tokens, or of all. The mask is True where O may attend to N."""
        if num_outputs is None:
            query, key, value = self._heads(self.qkv(tokens_BND), 3)
        else:
            width = tokens_BND.shape[2]
            weight, bias = self.qkv.weight, self.qkv.bias
            (query,) = self._heads(F.linear(tokens_BND[:, -num_outputs:], weight[:width], bias[:width]), 1)
            key, value = self._heads(F.linear(tokens_BND, weight[width:], bias[width:]), 2)
        if rotation_BNR2 is not None:
            query, key = rotate(query, rotation_BNR2[:, -query.shape[2] :]), rotate(key, rotation_BNR2)
        tokens_BOD: Tensor = self.proj(attend(query, key, value, attn_mask_B1ON).transpose(1, 2).flatten(2))
        return tokens_BOD

    def _heads(self, joint: Tensor, num_parts: int) -> tuple[Tensor, ...]:
        """Split (B, N, parts·D) into `num_parts` tensors (B, G, N, d)."""
        heads: tuple[Tensor, ...] = joint.unflatten(2, (num_parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return heads


class Block(nn.Module):
    """Norm and attention, norm and MLP, each with a residual connection and stochastic depth per clip."""

    def __init__(self, width: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, tokens_BND: Tensor, num_outputs: int | None = None, rotation_BNR2: Tensor | None = None
    ) -> Tensor:
        """Output (B, O, D): the last `num_outputs` tokens, or all."""
        tokens_BOD = tokens_BND if num_outputs is None else tokens_BND[:, -num_outputs:]
        tokens_BOD = tokens_BOD + self.drop_path1(self.attn(self.norm1(tokens_BND), num_outputs, None, rotation_BNR2))
        output_BOD: Tensor = tokens_BOD + self.drop_path2(self.mlp(self.norm2(tokens_BOD)))
        return output_BOD


class Blocks(nn.ModuleList):
    """`depth` blocks. The stochastic depth rate grows linearly from 0 in the first block to `drop_path` in the last."""

    def __init__(self, width: int, depth: int, num_heads: int, drop_path: float = 0.0) -> None:
        rates = np.linspace(0, drop_path, depth).tolist()
        super().__init__(Block(width, num_heads, rate) for rate in rates)
        self.is_recomputing = False

    def forward(
        self, tokens_BND: Tensor, num_outputs: int | None = None, rotation_BNR2: Tensor | None = None
    ) -> Tensor:
        """Output (B, O, D) of the last block: the last `num_outputs` tokens, or all."""
        *all_but_one, last = self
        for block in all_but_one:
            tokens_BND = self._run(block, tokens_BND, None, rotation_BNR2)
        return self._run(last, tokens_BND, num_outputs, rotation_BNR2)

    def _run(
        self, block: nn.Module, tokens_BND: Tensor, num_outputs: int | None, rotation_BNR2: Tensor | None
    ) -> Tensor:
        if self.is_recomputing and torch.is_grad_enabled():
            tokens_BOD: Tensor = checkpoint(block, tokens_BND, num_outputs, rotation_BNR2, use_reentrant=False)
        else:
            tokens_BOD = block(tokens_BND, num_outputs, rotation_BNR2)
        return tokens_BOD

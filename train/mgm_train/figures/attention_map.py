"""Attention maps: the attention of one token to every token of the clip (paper §4.6, figures 6 and 7).

Axes: B clips · C colours · T frames · H,W pixels · N tokens, flattened t,h,w · p = h·w places of a slice · D width ·
G heads · d width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mgm_shared.geometry import TokenGrid
from mgm_train.models.attention import Attention
from mgm_train.models.divided_attention import DividedBlock
from mgm_train.models.rope import rotate
from mgm_train.models.videomae import VideoClassifier, VideoMAE

Token = tuple[int, int, int]


def centre_token(grid: TokenGrid) -> Token:
    """Slice, row and column of the centre patch of the centre frame, which is the paper's query."""
    return grid.t // 2, grid.h // 2, grid.w // 2


@torch.inference_mode()
def attention_map(
    model: VideoMAE | VideoClassifier, frames_BCTHW: Tensor, query: Token, block: int = -1
) -> NDArray[np.float32]:
    """Attention of one token in one block, averaged over the heads: (B, t, h, w). It sums to 1 for each clip.

    The encoder gets the whole clip, as in fine-tuning. A divided block (TimeSformer) attends over time, then over
    space. For it, the map is the product of both: the query's attention over space to a place, times the attention over
    time of the token at that place to each slice.
    """
    model.eval()
    grid, chosen = model.config.grid, model.encoder.blocks[block]
    t, p = query[0], query[1] * grid.w + query[2]
    with _inputs(chosen) as seen:
        model.encoder(frames_BCTHW)
    if isinstance(chosen, DividedBlock):
        in_place_Btp = _row(chosen.temporal_attn, seen["temporal_attn"], t).unflatten(0, (-1, grid.h * grid.w)).mT
        in_slice_Btp = _row(chosen.attn, seen["attn"], p).unflatten(0, (-1, grid.t))
        share_BN = (in_place_Btp * in_slice_Btp[:, t, None]).flatten(1)
    else:
        assert isinstance(chosen.attn, Attention)
        share_BN = _row(chosen.attn, seen["attn"], t * grid.h * grid.w + p)
    share: NDArray[np.float32] = share_BN.unflatten(1, (grid.t, grid.h, grid.w)).float().cpu().numpy()
    return share


@contextmanager
def _inputs(block: nn.Module) -> Iterator[dict[str, Any]]:
    """Record the inputs of the attention modules of a block, by their names."""
    seen: dict[str, Any] = {}
    hooks = []
    for name, module in block.named_children():
        if isinstance(module, Attention):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs})))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _row(attention: Attention, inputs: tuple[Any, ...], token: int) -> Tensor:
    """softmax(q·kᵀ / √d) of one token, averaged over the heads, (B, N). Fused attention does not return it.

    `inputs` are the arguments of the attention module, in its order.
    """
    tokens_BND, _, _, rotation_BNR2 = inputs
    joint_3BGNd = attention.qkv(tokens_BND).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query_BGNd, key_BGNd = joint_3BGNd[0], joint_3BGNd[1]
    if rotation_BNR2 is not None:
        query_BGNd, key_BGNd = rotate(query_BGNd, rotation_BNR2), rotate(key_BGNd, rotation_BNR2)
    query_BGd = query_BGNd[:, :, token]
    scores_BGN = torch.einsum("bgd,bgnd->bgn", query_BGd, key_BGNd) * query_BGd.shape[-1] ** -0.5
    attention_BN: Tensor = scores_BGN.softmax(dim=2).mean(dim=1)
    return attention_BN

"""The attention of one token against torch's own attention with its weights given out.

Axes: N tokens · D width.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy import TOY

from mgm_train.figures.attention_map import attention_map, centre_token
from mgm_train.model_config import ModelConfig
from mgm_train.models.attention import Attention
from mgm_train.models.rope import rotate
from mgm_train.models.videomae import VideoMAE, build

CLIP = replace(TOY, num_frames=6, image_px=48)
QUERY = (1, 2, 0)


def _model(config: ModelConfig) -> VideoMAE:
    model = build(lambda: VideoMAE(config), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        # Not the initial ones, which attend to all tokens alike.
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    return model.eval()


def _frames() -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 255, (2, 3, 6, 48, 48), dtype=np.uint8))


def _weights(attention: Attention, tokens_ND: Tensor, is_apart_NN: Tensor | None = None) -> Tensor:
    """Who attends to whom, (N, N), the mean of the heads, by torch."""
    width = tokens_ND.shape[1]
    projections = (attention.qkv.weight, attention.qkv.bias, None, None, False, 0.0)
    out = (attention.proj.weight, attention.proj.bias)
    inputs = [tokens_ND[:, None]] * 3
    arguments: list[Any] = [*inputs, width, attention.num_heads, *projections, *out]
    settings: dict[str, Any] = {"training": False, "attn_mask": is_apart_NN}
    _, weights_1NN = F.multi_head_attention_forward(*arguments, **settings)
    assert weights_1NN is not None
    return weights_1NN[0]


@torch.inference_mode()
def test_joint_attention_is_torchs() -> None:
    model, frames_BCTHW = _model(CLIP), _frames()
    block: Any
    for number in (0, 1):
        seen = attention_map(model, frames_BCTHW, QUERY, block=number)
        assert seen.shape == (2, 3, 3, 3)
        np.testing.assert_allclose(seen.sum((1, 2, 3)), 1, rtol=1e-5)
        tokens_BND = model.encoder.patch_embed(frames_BCTHW) + model.encoder.position_1ND
        for block in list(model.encoder.blocks)[:number]:
            tokens_BND = block(tokens_BND)
        block = model.encoder.blocks[number]
        for clip, tokens_ND in enumerate(block.norm1(tokens_BND)):
            expected_N = _weights(block.attn, tokens_ND)[1 * 9 + 2 * 3 + 0]
            np.testing.assert_allclose(seen[clip].ravel(), expected_N, rtol=1e-4, atol=1e-7)


@torch.inference_mode()
def test_divided_attention_is_the_product_of_both_steps() -> None:
    model, frames_BCTHW = _model(replace(CLIP, attention="divided")), _frames()
    seen = attention_map(model, frames_BCTHW, QUERY, block=0)
    np.testing.assert_allclose(seen.sum((1, 2, 3)), 1, rtol=1e-5)
    place_N, slice_N = torch.arange(27) % 9, torch.arange(27) // 9
    block: Any = model.encoder.blocks[0]
    for clip, tokens_ND in enumerate(model.encoder.patch_embed(frames_BCTHW) + model.encoder.position_1ND):
        normed_ND = block.temporal_norm(tokens_ND)
        over_time_NN = _weights(block.temporal_attn, normed_ND, place_N[:, None] != place_N)
        mixed_1ND = block.temporal_attn(normed_ND[None], None, (place_N[:, None] == place_N)[None, None])
        over_space_NN = _weights(block.attn, block.norm1(tokens_ND + mixed_1ND[0]), slice_N[:, None] != slice_N)
        expected_N = over_space_NN[1 * 9 + 2 * 3 + 0] @ over_time_NN
        np.testing.assert_allclose(seen[clip].ravel(), expected_N, rtol=1e-4, atol=1e-7)


def _rotated_weights(attention: Attention, tokens_ND: Tensor, rotation_1NR2: Tensor, is_peer_NN: Tensor) -> Tensor:
    """Who attends to whom with rotary positions, (N, N), the mean of the heads."""
    heads = attention.qkv(tokens_ND).unflatten(1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)
    query_GNd, key_GNd = (rotate(one[None], rotation_1NR2)[0] for one in heads[:2])
    scores_GNN = query_GNd @ key_GNd.mT / key_GNd.shape[2] ** 0.5
    weights_NN: Tensor = scores_GNN.masked_fill(~is_peer_NN, -torch.inf).softmax(2).mean(0)
    return weights_NN


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_rotary_positions_are_in_the_map(attention: str) -> None:
    model, frames_BCTHW = _model(replace(CLIP, attention=attention, positions="rope3d")), _frames()
    rotation_1NR2 = model.encoder.rotation_1NR2
    assert rotation_1NR2 is not None
    place_N, slice_N, query = torch.arange(27) % 9, torch.arange(27) // 9, 1 * 9 + 2 * 3 + 0
    is_in_place_NN, is_in_slice_NN = place_N[:, None] == place_N, slice_N[:, None] == slice_N
    block: Any = model.encoder.blocks[0]
    seen = attention_map(model, frames_BCTHW, QUERY, block=0)
    for clip, tokens_ND in enumerate(model.encoder.patch_embed(frames_BCTHW)):
        if attention == "divided":
            normed_ND = block.temporal_norm(tokens_ND)
            over_time_NN = _rotated_weights(block.temporal_attn, normed_ND, rotation_1NR2, is_in_place_NN)
            mixed_1ND = block.temporal_attn(normed_ND[None], None, is_in_place_NN[None, None], rotation_1NR2)
            normed_ND = block.norm1(tokens_ND + mixed_1ND[0])
            expected_N = _rotated_weights(block.attn, normed_ND, rotation_1NR2, is_in_slice_NN)[query] @ over_time_NN
        else:
            everyone_NN = torch.ones(27, 27, dtype=torch.bool)
            expected_N = _rotated_weights(block.attn, block.norm1(tokens_ND), rotation_1NR2, everyone_NN)[query]
        np.testing.assert_allclose(seen[clip].ravel(), expected_N, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("num_frames", "image_px", "centre"), [(16, 224, (4, 7, 7)), (2, 16, (0, 0, 0))])
def test_the_query_is_the_centre(num_frames: int, image_px: int, centre: tuple[int, int, int]) -> None:
    assert centre_token(replace(TOY, num_frames=num_frames, image_px=image_px).grid) == centre

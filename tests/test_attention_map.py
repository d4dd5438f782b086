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


@pytest.mark.parametrize(("num_frames", "image_px", "centre"), [(16, 224, (4, 7, 7)), (2, 16, (0, 0, 0))])
def test_the_query_is_the_centre(num_frames: int, image_px: int, centre: tuple[int, int, int]) -> None:
    assert centre_token(replace(TOY, num_frames=num_frames, image_px=image_px).grid) == centre

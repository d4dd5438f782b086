"""Divided attention against loops over tokens, for every mask; the shortcut of a whole grid against the general way.

Axes as in divided.py.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgm_shared.geometry import TokenGrid
from mgm_train.masking.strategies import STRATEGIES, MaskOptions, num_masked
from mgm_train.model_config import ModelConfig
from mgm_train.models.divided_attention import DividedBlocks
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build, split_mask

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = TokenGrid(t=3, h=4, w=4)
TOY = ModelConfig(
    name="toy",
    width=24,
    depth=3,
    num_heads=2,
    decoder_width=16,
    decoder_depth=1,
    decoder_num_heads=2,
    num_frames=6,
    image_px=64,
    attention="divided",
)


def _blocks(depth: int = 2) -> DividedBlocks:
    blocks = build(lambda: DividedBlocks(12, depth, 3, GRID), seed=1).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in blocks.parameters():
        # Not the initial ones, whose biases are zero and norms one.
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return blocks


def _tokens(num_clips: int = 2, num_tokens: int = GRID.num_tokens) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_clips, num_tokens, 12, generator=generator, dtype=torch.float64)


def _attended(attention: Any, tokens_ND: Tensor, groups: list[list[int]]) -> Tensor:
    """Attention of one clip, token by token and head by head; `groups[i]` are those that token i attends to."""
    query_ND, key_ND, value_ND = attention.qkv(tokens_ND).split(12, dim=1)
    rows = []
    for own, group in enumerate(groups):
        heads = []
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            share = torch.stack([query_ND[own, part] @ key_ND[other, part] / 2 for other in group]).softmax(0)
            heads.append(sum(weight * value_ND[other, part] for weight, other in zip(share, group, strict=True)))
        rows.append(torch.cat(heads))
    projected: Tensor = attention.proj(torch.stack(rows))
    return projected


def _by_loops(block: Any, tokens_ND: Tensor, visible: list[int]) -> Tensor:
    places = [(token // 16, token % 16) for token in visible]
    in_place = [[other for other, (_, place) in enumerate(places) if place == own] for _, own in places]
    in_slice = [[other for other, (slice_, _) in enumerate(places) if slice_ == own] for own, _ in places]
    tokens_ND = tokens_ND + _attended(block.temporal_attn, block.temporal_norm(tokens_ND), in_place)
    tokens_ND = tokens_ND + _attended(block.attn, block.norm1(tokens_ND), in_slice)
    tokens_ND = tokens_ND + block.mlp(block.norm2(tokens_ND))
    return tokens_ND


def _mask(strategy: str, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    strength_TYX = rng.random((6, 8, 8)).astype(np.float32)
    return torch.from_numpy(STRATEGIES[strategy](strength_TYX, GRID, 0.75, rng, MaskOptions()).reshape(-1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_visible_tokens_attend_as_loops_over_them_do(strategy: str) -> None:
    mask_BN = torch.stack([_mask(strategy, seed) for seed in range(2)])
    visible_BV, _ = split_mask(mask_BN, num_masked(GRID, 0.75))
    blocks, tokens_BVD = _blocks(), _tokens(num_tokens=visible_BV.shape[1])
    with torch.no_grad():
        after_BVD = blocks(tokens_BVD, visible_BV)
        for tokens_VD, visible_V, after_VD in zip(tokens_BVD, visible_BV, after_BVD, strict=True):
            for block in blocks:
                tokens_VD = _by_loops(block, tokens_VD, visible_V.tolist())
            torch.testing.assert_close(after_VD, tokens_VD)


def test_the_whole_grid_attends_as_loops_over_it_do() -> None:
    blocks, tokens_BND = _blocks(depth=1), _tokens()
    with torch.no_grad():
        expected_ND = _by_loops(blocks[0], tokens_BND[1], list(range(GRID.num_tokens)))
        torch.testing.assert_close(blocks(tokens_BND)[1], expected_ND)


def test_a_mask_that_hides_nothing_gives_what_the_grid_gives_gradients_included() -> None:
    visible_BV = torch.arange(GRID.num_tokens).expand(2, -1)
    gradients = []
    for arguments in ((_tokens(),), (_tokens(), visible_BV)):
        blocks = _blocks()
        blocks(*arguments).square().sum().backward()
        gradients.append([parameter.grad for parameter in blocks.parameters()])
    for grid, masked in zip(*gradients, strict=True):
        torch.testing.assert_close(grid, masked)


def _clips() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames_BCTHW = torch.randint(0, 256, (2, 3, 6, 64, 64), generator=generator, dtype=torch.uint8)
    return frames_BCTHW, torch.stack([_mask("mgm", seed) for seed in range(2)])


def test_the_model_sees_visible_pixels_only_and_is_one_graph() -> None:
    model = build(lambda: VideoMAE(TOY), seed=0).eval()
    frames_BCTHW, mask_BN = _clips()
    is_masked = mask_BN.view(2, 1, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        pixels_BMP = model(frames_BCTHW, mask_BN, 36)
        torch.testing.assert_close(model(frames_BCTHW.masked_fill(is_masked, 0), mask_BN, 36), pixels_BMP)
        torch.testing.assert_close(compiled(frames_BCTHW, mask_BN, 36), pixels_BMP)


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for is_recomputing in (False, True):
        model = build(lambda: VideoMAE(TOY), seed=0)
        model.set_grad_checkpointing(is_recomputing)
        model(*_clips()).square().mean().backward()
        block: Any = model.encoder.blocks[0]
        gradients.append(block.temporal_attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_classifier_drops_paths_and_has_timesformers_number_of_weights() -> None:
    model = VideoClassifier(TOY, 5, drop_path=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.encoder.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    with torch.device("meta"):
        base = dataclasses.replace(TOY, width=768, depth=12, num_heads=12, num_frames=16, image_px=224)
        num_weights = sum(parameter.numel() for parameter in VideoClassifier(base, 400).parameters())
    # 121 M in its paper, of which 7 are the linear layers that are left out here.
    assert num_weights == pytest.approx(121e6 - 12 * 768 * 769, rel=0.01)

"""The block against timm's with the same weights, its shortcuts against doing everything."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn
from torch.nn import functional as F

from mgm_train.models import attention
from mgm_train.models.attention import Block, Blocks, attend
from mgm_train.models.videomae import build


def _tokens(num_tokens: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, num_tokens, 24, generator=torch.Generator().manual_seed(seed))


def _heads(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 40, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def _with_gradients(tokens: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, tokens.numel()).view_as(tokens)
    return [tokens, *torch.autograd.grad((tokens.float() * weights).sum(), inputs)]


def test_block_equals_timms() -> None:
    ours = build(lambda: Block(24, 3), seed=2)
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    theirs = TimmBlock(24, 3, qkv_bias=True, norm_layer=norm)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(_tokens()), theirs(_tokens()))


@pytest.mark.parametrize("num_outputs", [1, 4, 10])
def test_outputs_that_nobody_reads_change_nothing(num_outputs: int) -> None:
    blocks = build(lambda: Blocks(24, 2, 3), seed=3)
    parameters: list[torch.Tensor] = list(blocks.parameters())
    whole = _with_gradients(blocks(_tokens())[:, -num_outputs:], parameters)
    part = _with_gradients(blocks(_tokens(), num_outputs), parameters)
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_plain_bfloat16_attention_is_as_close_to_the_truth_as_bfloat16_allows(is_autocast: bool) -> None:
    truth = _heads(torch.bfloat16)
    truth = [tensor.detach().float().requires_grad_() for tensor in truth]
    expected = _with_gradients(F.scaled_dot_product_attention(truth[0], truth[1], truth[2]), truth)
    inputs = _heads(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        mixed = attend(*inputs)
    assert mixed.dtype == torch.bfloat16
    for value, true_value in zip(_with_gradients(mixed, inputs), expected, strict=True):
        error = (value.float() - true_value).norm() / true_value.norm()
        assert error < 0.01


def test_plain_attention_is_for_small_bfloat16_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: fused.append(query.dtype))
    attend(*_heads(torch.bfloat16))
    assert fused == []
    attend(*_heads(torch.float32))
    monkeypatch.setattr(attention, "MAX_SCORES_BYTES", 2 * 2 * 3 * 40 * 40 - 1)
    attend(*_heads(torch.bfloat16))
    assert fused == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("is_masked", [False, True])
def test_heads_a_few_at_a_time_are_heads_all_at_once(is_masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = queries, keys, values = _heads(torch.bfloat16)
    attn_mask_B1ON = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(2)) < 0.5 if is_masked else None
    expected = _with_gradients(attend(queries, keys, values, attn_mask_B1ON), inputs)
    # 40 × 40 scores of two bytes a head: one head, then four and two.
    for chunk_bytes in (1, 4 * 3200):
        monkeypatch.setattr(attention, "CHUNK_BYTES", chunk_bytes)
        for value, at_once in zip(
            _with_gradients(attend(queries, keys, values, attn_mask_B1ON), inputs), expected, strict=True
        ):
            torch.testing.assert_close(value, at_once)

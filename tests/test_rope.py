"""Rotary positions against complex numbers, token by token; models with them on picked tokens and on the whole grid.

Axes as in models/rope.py.
"""

import cmath
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from mgm_shared.geometry import TokenGrid
from mgm_train.model_config import ModelConfig
from mgm_train.models.attention import Attention
from mgm_train.models.rope import rotate, rotation_table
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build, pick

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = TokenGrid(t=2, h=3, w=4)
PLACES = list(itertools.product(range(2), range(3), range(4)))
TOY = ModelConfig(
    name="toy",
    width=32,
    depth=2,
    num_heads=2,
    decoder_width=28,
    decoder_depth=2,
    decoder_num_heads=2,
    num_frames=4,
    image_px=48,
    positions="rope3d",
)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _turned(values: list[float], place: tuple[int, int, int]) -> list[float]:
    """The definition: each pair is a complex number that turns by place · 10000^(−i/r)."""
    num_pairs = len(values) // 6
    turned = []
    for axis, i in itertools.product(range(3), range(num_pairs)):
        at = 2 * (axis * num_pairs + i)
        number = complex(values[at], values[at + 1]) * cmath.exp(1j * place[axis] * 10000 ** (-i / num_pairs))
        turned += [number.real, number.imag]
    return turned + values[6 * num_pairs :]


@pytest.mark.parametrize("width", [6, 14, 32])
def test_each_token_turns_by_its_place(width: int) -> None:
    heads_BGNd = _random(2, 3, 24, width)
    after_BGNd = rotate(heads_BGNd, rotation_table(GRID, GRID, width))
    for clip, head, token in itertools.product(range(2), range(3), range(24)):
        expected = _turned(heads_BGNd[clip, head, token].tolist(), PLACES[token])
        assert after_BGNd[clip, head, token].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_product_depends_on_the_difference_of_the_places_only() -> None:
    query, key = _random(20, seed=1), _random(20, seed=2)
    table_1NR2 = rotation_table(GRID, GRID, 20)
    turned = [rotate(one.expand(1, 1, 24, -1), table_1NR2)[0, 0] for one in (query, key)]
    product_NN = turned[0] @ turned[1].T
    by_difference: dict[tuple[int, ...], list[float]] = {}
    for (i, one), (j, other) in itertools.product(enumerate(PLACES), repeat=2):
        difference = tuple(a - b for a, b in zip(one, other, strict=True))
        by_difference.setdefault(difference, []).append(float(product_NN[i, j]))
    assert len(by_difference) == 3 * 5 * 7
    for products in by_difference.values():
        assert products == pytest.approx([products[0]] * len(products), abs=1e-5)
    assert by_difference[(0, 0, 0)][0] == pytest.approx(float(query @ key), abs=1e-6)
    firsts = sorted(products[0] for products in by_difference.values())
    # Every axis, and its direction, makes a difference.
    assert np.diff(firsts).min() > 1e-6


@pytest.mark.parametrize("num_outputs", [None, 3])
def test_attention_among_picked_tokens_as_loops_over_them(num_outputs: int | None) -> None:
    attention = build(lambda: Attention(24, 2), seed=0).double()
    picked_BK = torch.tensor([[3, 0, 17, 9, 23], [1, 2, 20, 7, 11]])
    tokens_BKD = _random(2, 5, 24)
    rotation_BKR2 = pick(rotation_table(GRID, GRID, 12), picked_BK)
    with torch.no_grad():
        after_BOD = attention(tokens_BKD, num_outputs, None, rotation_BKR2)
        query_BKD, key_BKD, value_BKD = attention.qkv(tokens_BKD).split(24, dim=2)
        for clip, output in itertools.product(range(2), range(-(num_outputs or 5), 0)):
            heads = []
            for part in (slice(0, 12), slice(12, 24)):
                turned_K = [
                    [torch.tensor(_turned(row[part].tolist(), PLACES[token]), dtype=torch.float64)
                     for row, token in zip(rows_BKD[clip], picked_BK[clip].tolist(), strict=True)]
                    for rows_BKD in (query_BKD, key_BKD)
                ]  # fmt: skip
                share_K = torch.stack([turned_K[0][output] @ key / 12**0.5 for key in turned_K[1]]).softmax(0)
                heads.append(share_K @ value_BKD[clip, :, part])
            torch.testing.assert_close(after_BOD[clip, output], attention.proj(torch.cat(heads)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_an_encoder_that_sees_all_tokens_by_index_is_the_one_of_the_whole_grid(attention: str) -> None:
    config = dataclasses.replace(TOY, attention=attention)
    encoder = build(lambda: VideoClassifier(config, 3), seed=0).encoder.double().eval()
    for parameter in encoder.parameters():
        parameter.data += 0.2 * _random(*parameter.shape)
    frames_BCTHW = _random(2, 3, 4, 48, 48)
    with torch.no_grad():
        whole_BND = encoder(frames_BCTHW)
        torch.testing.assert_close(encoder(frames_BCTHW, torch.arange(18).expand(2, -1)), whole_BND, atol=1e-6, rtol=0)
        # The last 17 tokens alone give something else, and without rotations all is something else again.
        encoder.rotation_1NR2 = None
        assert (encoder(frames_BCTHW) - whole_BND).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_the_decoder_knows_where_a_masked_token_lies(attention: str) -> None:
    """Mask tokens are all alike: only rotations tell one place from another. Masked pixels do not reach the model."""
    model = build(lambda: VideoMAE(dataclasses.replace(TOY, attention=attention)), seed=0).eval()
    frames_BCTHW = torch.randint(0, 256, (1, 3, 4, 48, 48), generator=torch.Generator().manual_seed(0)).byte()
    mask_BN = torch.zeros(1, 18, dtype=torch.bool)
    mask_BN[0, [0, 4, 7, 8, 12, 17]] = True
    with torch.no_grad():
        pixels_MP = model(frames_BCTHW, mask_BN)[0]
        is_masked = mask_BN.view(1, 1, 2, 3, 3).repeat_interleave(2, 2)
        is_masked = is_masked.repeat_interleave(16, 3).repeat_interleave(16, 4)
        torch.testing.assert_close(model(frames_BCTHW.masked_fill(is_masked, 9), mask_BN)[0], pixels_MP)
    assert torch.pdist(pixels_MP).min() > 1e-3


def test_a_clip_of_another_size_spans_the_same_angles() -> None:
    larger = rotation_table(TokenGrid(t=4, h=3, w=8), GRID, 20).reshape(4, 3, 8, 3, 3, 2)
    trained = rotation_table(GRID, GRID, 20).reshape(2, 3, 4, 3, 3, 2)
    torch.testing.assert_close(larger[::2, :, ::2], trained)
    half_turn = torch.atan2(larger[1, 0, 0, 0, 0, 1], larger[1, 0, 0, 0, 0, 0])
    assert float(half_turn) == pytest.approx(0.5)


def test_heads_without_a_pair_for_each_axis_are_rejected() -> None:
    with pytest.raises(ValueError, match="heads at least 6 wide, not 5"):
        rotation_table(GRID, GRID, 5)


def _pixels_and_gradient(model: VideoMAE) -> list[Tensor]:
    frames_BCTHW = torch.randint(0, 256, (1, 3, 4, 48, 48), generator=torch.Generator().manual_seed(0)).byte()
    pixels_BMP = model(frames_BCTHW, (torch.arange(18) % 3 > 0)[None], 12)
    pixels_BMP.float().square().mean().backward()
    gradient = model.encoder.patch_embed.proj.weight.grad
    assert gradient is not None
    return [pixels_BMP.detach().float(), gradient]


def test_compiled_recomputed_and_in_bfloat16_they_are_the_same() -> None:
    expected = _pixels_and_gradient(build(lambda: VideoMAE(TOY), seed=0))
    recomputing = build(lambda: VideoMAE(TOY), seed=0)
    recomputing.set_grad_checkpointing()
    torch.testing.assert_close(_pixels_and_gradient(recomputing), expected)
    model = build(lambda: VideoMAE(TOY), seed=0)
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)  # type: ignore[method-assign]
    torch.testing.assert_close(_pixels_and_gradient(model), expected)
    with torch.autocast("cpu", torch.bfloat16):
        halved = _pixels_and_gradient(build(lambda: VideoMAE(TOY), seed=0))
    torch.testing.assert_close(halved, expected, atol=0.05, rtol=0.05)

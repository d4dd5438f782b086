"""Tokens that are left out of a mask: exact numbers, the stillest dropped, VideoMAE V2's running cell, the model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pixel_error import pixel_error
from test_masking import PAPER_GRID, noise
from toy import WIDE_TOY

from mgm_shared.errors import UserError
from mgm_shared.geometry import TokenGrid
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import Clip
from mgm_train.data.loader import collate_counted
from mgm_train.figures.reconstruct import NEUTRAL_MEAN, reconstruct
from mgm_train.masking.left_out import drop_still, leave_out, running_cell, token_strength
from mgm_train.masking.strategies import STRATEGIES, MaskGenerator, make_mask
from mgm_train.models.videomae import VideoMAE, build, split_mask
from mgm_train.token_counts import TokenCounts, share_of
from mgm_train.training.losses import PretrainObjective

SMALL_GRID = TokenGrid(t=4, h=7, w=5)


def _clip(grid: TokenGrid, rng: Any) -> Clip:
    shape = (2 * grid.t, 2 * grid.h, 2 * grid.w, 2)
    frames_CTHW = np.zeros((3, 2 * grid.t, 16 * grid.h, 16 * grid.w), np.uint8)
    return Clip(frames_CTHW=frames_CTHW, motion_TYX2=rng.normal(size=shape).astype(np.float32), label=-1, sample_id="a")


def _counted(roles_N: Any) -> tuple[int, int, int]:
    return tuple(int((roles_N == role).sum()) for role in (0, 1, -1))  # type: ignore[return-value]


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("grid", [PAPER_GRID, SMALL_GRID], ids=["paper", "small"])
@pytest.mark.parametrize(
    ("ratio", "drop", "decode_ratio"), [(0.75, 0, 0.5), (0.9, 0, 0.3), (0.9, 0.7, 1), (0.75, 0.5, 1), (0.8, 0.3, 0.25)]
)
def test_numbers_are_exact(strategy: Any, grid: TokenGrid, ratio: float, drop: float, decode_ratio: float) -> None:
    config = PretrainConfig(mask=strategy, mask_ratio=ratio, drop=drop, decode_ratio=decode_ratio)
    hidden = int(round(ratio * 10_000) * grid.h * grid.w // 10_000) * grid.t
    dropped = int(round(drop * 10_000) * grid.num_tokens // 10_000)
    predicted = int(round(decode_ratio * 10_000) * (hidden - dropped) // 10_000)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        roles_N = MaskGenerator.of(config)(_clip(grid, rng), rng)
        assert roles_N.dtype == np.int8
        expected = (grid.num_tokens - hidden, predicted, hidden - predicted)
        assert _counted(roles_N) == expected


def test_off_draws_nothing_more() -> None:
    clip = _clip(PAPER_GRID, np.random.default_rng(0))
    maker = MaskGenerator.of(PretrainConfig())
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    mask_N = maker(clip, first)
    strength_TYX = maker.guidance.strength(clip)
    expected_N = make_mask("mgm", strength_TYX, ratio=0.75, rng=second, options=maker.options)
    assert mask_N.dtype == np.bool_
    np.testing.assert_array_equal(mask_N, expected_N)
    assert first.integers(1000) == second.integers(1000)


class _Queue:
    """The ring of VideoMAE V2's running cell, moved on by one in each slice, in plain Python."""

    def __init__(self, num_hidden: int, start: int) -> None:
        self.ring, self.start = [True] * num_hidden + [False] * (4 - num_hidden), start

    def hidden(self) -> list[bool]:
        found = [self.ring[(place + self.start) % 4] for place in range(4)]
        self.start += 1
        return found


@pytest.mark.parametrize("num_kept", [1, 2, 3])
@pytest.mark.parametrize("phase", range(4))
def test_the_running_cell_is_a_ring_that_moves_on(num_kept: int, phase: int) -> None:
    kept_thw, queue = running_cell(SMALL_GRID, num_kept, phase), _Queue(4 - num_kept, phase)
    for t in range(SMALL_GRID.t):
        hidden = queue.hidden()
        for row in range(SMALL_GRID.h):
            for column in range(SMALL_GRID.w):
                assert kept_thw[t, row, column] != hidden[2 * (row % 2) + column % 2]
    assert (running_cell(PAPER_GRID, num_kept, phase).sum(0) == num_kept * 2).all(), "each place equally often"


def test_under_a_tube_mask_half_of_the_tokens_are_a_running_cell() -> None:
    """VideoMAE V2's own case: 704 of 1408 masked tokens, and no token that the cell does not keep."""
    config = PretrainConfig(mask="tube", mask_ratio=0.9, decode_ratio=0.5)
    assert TokenCounts.of(PAPER_GRID, 0.9, decode_ratio=0.5).num_masked == 704
    phases = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        roles_thw = MaskGenerator.of(config)(_clip(PAPER_GRID, rng), rng).reshape(8, 14, 14)
        found = [k for k in range(4) if ((roles_thw != 0) & running_cell(PAPER_GRID, 2, k) == (roles_thw == 1)).all()]
        assert len(found) == 1
        phases.add(found[0])
    assert len(phases) > 1


@pytest.mark.parametrize("strategy", ["mgm", "random"])
def test_the_cell_is_kept_as_far_as_the_number_allows(strategy: Any) -> None:
    config, kept = PretrainConfig(mask=strategy, decode_ratio=0.5), []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        roles_thw = MaskGenerator.of(config)(_clip(PAPER_GRID, rng), rng).reshape(8, 14, 14)
        kept.append(max(running_cell(PAPER_GRID, 2, k)[roles_thw == 1].mean() for k in range(4)))
    assert min(kept) > 0.9


def test_the_stillest_tokens_are_dropped() -> None:
    rng = np.random.default_rng(0)
    strength_TYX = noise(PAPER_GRID, rng)
    counts = TokenCounts.of(PAPER_GRID, 0.9, drop=0.7)
    assert (counts.num_visible, counts.num_masked, counts.num_dropped) == (160, 311, 1097)
    mask_N = make_mask("tube", strength_TYX, ratio=2 / 3, rng=rng)
    roles_N = leave_out(mask_N, strength_TYX, counts, PAPER_GRID.patch, rng)
    total_N = [
        sum(strength_TYX[2 * t + i, 2 * y + j, 2 * x + k] for i in (0, 1) for j in (0, 1) for k in (0, 1))
        for t in range(8)
        for y in range(14)
        for x in range(14)
    ]
    limit = sorted(total_N)[1097]
    np.testing.assert_array_equal(roles_N == -1, np.asarray(total_N) < limit)
    changed = ((roles_N != -1) & (roles_N != mask_N)).sum()
    assert changed < 50, "the mask of the strategy holds among the tokens that remain"


def test_equally_still_tokens_are_dropped_at_random() -> None:
    """The shares of the first and of the last half of a clip without motion that are dropped."""
    counts, halves = TokenCounts.of(PAPER_GRID, 0.9, drop=0.5), np.zeros(2)
    for seed in range(20):
        roles_N = np.ones(PAPER_GRID.num_tokens, np.int8)
        drop_still(roles_N, np.zeros(len(roles_N), np.float32), counts, np.random.default_rng(seed))
        halves += [(half == -1).mean() / 20 for half in np.split(roles_N, 2)]
    assert halves == pytest.approx([0.5, 0.5], abs=0.02)


def test_strength_of_small_patches() -> None:
    grid = TokenGrid(t=4, h=3, w=5, patch=replace(PAPER_GRID.patch, px=8, frames=1))
    strength_TYX = np.random.default_rng(0).random((4, 3, 5), np.float32)
    np.testing.assert_array_equal(token_strength(strength_TYX, grid), strength_TYX.reshape(-1))


def test_a_share_is_exact() -> None:
    assert share_of(0.57, 100) == 57


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": 0.75}, "drop is 0.75 but must be a share that leaves some of the masked tokens; mask-ratio 0.75"),
        ({"drop": 0.749}, "drop is 0.749"),
        ({"decode_ratio": 0.0001}, "decode-ratio is 0.0001 but must be a share of at least a token"),
        ({"decode_ratio": 0}, "decode-ratio is 0"),
        ({"drop": -0.1}, "drop is -0.1"),
    ],
)
def test_shares_without_a_token_are_rejected(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainConfig(**settings)


def _roles() -> torch.Tensor:
    """Two clips of WIDE_TOY's 32 tokens: 8 visible, 14 masked, 10 left out."""
    generator = torch.Generator().manual_seed(0)
    places = [torch.randperm(32, generator=generator) for _ in range(2)]
    return torch.stack(
        [(place >= 10).to(torch.int8) * 2 - 1 - ((place >= 10) & (place < 18)).to(torch.int8) for place in places]
    )


def _frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 4, 64, 64), generator=generator, dtype=torch.uint8)


def _as_pixels(is_chosen_BN: torch.Tensor) -> torch.Tensor:
    chosen = is_chosen_BN.view(2, 1, 2, 4, 4).repeat_interleave(2, 2)
    return chosen.repeat_interleave(16, 3).repeat_interleave(16, 4).expand(2, 3, 4, 64, 64)


@pytest.mark.parametrize("positions", ["sinusoid", "rope3d"])
@pytest.mark.parametrize("attention", ["joint", "divided"])
@pytest.mark.parametrize("decoder", ["joint", "cross"])
def test_the_model_never_reads_what_is_left_out(decoder: str, attention: str, positions: str) -> None:
    config = replace(WIDE_TOY, decoder=decoder, attention=attention, positions=positions)
    model = build(lambda: VideoMAE(config), seed=0).eval()
    frames_BCTHW, roles_BN = _frames(), _roles()
    visible_BV, masked_BM = split_mask(roles_BN, 14, 10)
    assert torch.equal(visible_BV, torch.stack([torch.nonzero(row == 0).flatten() for row in roles_BN]))
    assert torch.equal(masked_BM, torch.stack([torch.nonzero(row == 1).flatten() for row in roles_BN]))
    with torch.no_grad():
        pixels_BMP = model(frames_BCTHW, roles_BN, 14, 10)
        assert torch.equal(pixels_BMP, model(frames_BCTHW, roles_BN)), "counted"
        assert torch.equal(pixels_BMP, model(frames_BCTHW, roles_BN, 14)), "counted"
        blackened = torch.where(_as_pixels(roles_BN == -1), 0, frames_BCTHW).to(torch.uint8)
        assert torch.equal(pixels_BMP, model(blackened, roles_BN, 14, 10))
        hidden = torch.where(_as_pixels(roles_BN == 0), 0, frames_BCTHW).to(torch.uint8)
        assert not torch.allclose(pixels_BMP, model(hidden, roles_BN, 14, 10), atol=1e-3)


def test_the_decoder_gets_the_visible_and_the_chosen_tokens_alone() -> None:
    """Against the same parts put together one clip at a time, by boolean masks."""
    model = build(lambda: VideoMAE(WIDE_TOY), seed=0).eval()
    frames_BCTHW, roles_BN = _frames(), _roles()
    with torch.no_grad():
        pixels_BMP = model(frames_BCTHW, roles_BN, 14, 10)
        for frames_CTHW, roles_N, pixels_MP in zip(frames_BCTHW, roles_BN, pixels_BMP, strict=True):
            tokens_1ND = model.encoder.patch_embed(frames_CTHW[None]) + model.encoder.position_1ND
            seen_1VD = model.encoder.norm(model.encoder.blocks(tokens_1ND[:, roles_N == 0]))
            seen_1VE = model.encoder_to_decoder(seen_1VD) + model.position_1NE[:, roles_N == 0]
            asked_1ME = model.mask_token + model.position_1NE[:, roles_N == 1]
            expected_1MP = model.decoder(torch.cat([seen_1VE, asked_1ME], 1), 14)
            torch.testing.assert_close(pixels_MP, expected_1MP[0], atol=1e-5, rtol=1e-5)


def test_the_loss_is_over_the_chosen_tokens() -> None:
    frames_BCTHW, roles_BN = _frames(), _roles()
    predicted_BMP = torch.randn(2, 14, 1536, generator=torch.Generator().manual_seed(2))
    patches_BN3Q = frames_BCTHW.view(2, 3, 2, 2, 4, 16, 4, 16).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(2, 32, 3, 512)
    chosen_BM3Q = patches_BN3Q[roles_BN == 1].view(2, 14, 3, 512).double()
    target = (chosen_BM3Q - chosen_BM3Q.mean(3, keepdim=True)) / chosen_BM3Q.std(3, keepdim=True)
    expected = ((predicted_BMP.view(2, 14, 512, 3).transpose(2, 3).double() - target) ** 2).mean()
    assert float(pixel_error(predicted_BMP, frames_BCTHW, roles_BN)) == pytest.approx(float(expected), rel=1e-4)


def test_a_batch_counts_its_roles() -> None:
    frames_BCTHW, roles_BN = _frames(), _roles()

    def sample(clip: int) -> dict[str, Any]:
        return {"frames_CTHW": frames_BCTHW[clip], "mask_N": roles_BN[clip], "label": -1, "index": clip}

    batch = collate_counted([[sample(0)], [sample(1)]])
    assert (batch["num_masked"], batch["num_left_out"]) == (14, 10)
    model = build(lambda: VideoMAE(WIDE_TOY), seed=0)
    with torch.no_grad():
        loss = PretrainObjective()(model, batch, 0)
        expected = pixel_error(model(frames_BCTHW, roles_BN), frames_BCTHW, roles_BN)
    assert float(loss) == pytest.approx(float(expected))
    roles_BN[1, torch.nonzero(roles_BN[1] == -1)[0]] = 1
    with pytest.raises(ValueError, match="different numbers"):
        collate_counted([[sample(0)], [sample(1)]])


def test_a_reconstruction_shows_no_truth_where_nothing_is_predicted() -> None:
    model = build(lambda: VideoMAE(WIDE_TOY), seed=0)
    frames_CTHW, roles_N = _frames()[0].numpy(), _roles()[0].numpy()
    shown_THWC = reconstruct(model, frames_CTHW, roles_N).shown_frames()
    is_left_out_THW = _as_pixels(_roles() == -1)[0, 0].numpy()
    is_seen_THW = _as_pixels(_roles() == 0)[0, 0].numpy()
    assert set(np.unique(shown_THWC[is_left_out_THW])) == {round(NEUTRAL_MEAN)}
    np.testing.assert_array_equal(shown_THWC[is_seen_THW], frames_CTHW.transpose(1, 2, 3, 0)[is_seen_THW])

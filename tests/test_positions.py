"""Positions against their formula; interpolation against where the tokens of a larger or smaller clip really lie."""

import math

import pytest
import torch

from mgm_shared.geometry import Patch, TokenGrid
from mgm_train.models.pos_embed import interpolate, position_table, separable_table, sinusoid_table

PAPER = TokenGrid.of_clip(16, 224, 224)


@pytest.mark.parametrize("column", [0, 1, 6, 7])
def test_sinusoid_table_against_its_formula(column: int) -> None:
    table_1ND = sinusoid_table(50, 8)
    for token in (0, 1, 49):
        angle = token / 10000 ** (2 * (column // 2) / 8)
        expected = math.sin(angle) if column % 2 == 0 else math.cos(angle)
        assert float(table_1ND[0, token, column]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("width", "widths"), [(12, (4, 4, 4)), (16, (8, 4, 4)), (96, (32, 32, 32))])
def test_separable_table_against_loops(width: int, widths: tuple[int, int, int]) -> None:
    """Columns of time, then height, then width; each pair is sine and cosine of the coordinate at one frequency."""
    grid = TokenGrid.of_clip(3, 24, 32, Patch(px=8, frames=1))
    table_ND = separable_table(grid, width)[0]
    assert table_ND.shape == (3 * 3 * 4, width)
    token = 0
    for t in range(3):
        for y in range(3):
            for x in range(4):
                row: list[float] = []
                for place, columns in zip((t, y, x), widths, strict=True):
                    for pair in range(columns // 2):
                        angle = place / 10000 ** (2 * pair / columns)
                        row += [math.sin(angle), math.cos(angle)]
                assert table_ND[token].tolist() == pytest.approx(row, abs=1e-6)
                token += 1


def test_separable_positions_follow_the_trained_grid_too() -> None:
    longer = TokenGrid.of_clip(32, 224, 224)
    assert torch.equal(position_table(PAPER, PAPER, 24, "separable"), separable_table(PAPER, 24))
    table_thwD = separable_table(PAPER, 24).reshape(8, 14, 14, 24)
    twice_thwD = position_table(longer, PAPER, 24, "separable").reshape(16, 14, 14, 24)
    torch.testing.assert_close(twice_thwD[3], 0.75 * table_thwD[1] + 0.25 * table_thwD[2])


def test_unknown_positions_are_rejected() -> None:
    with pytest.raises(ValueError, match="no positions 'learnt'"):
        position_table(PAPER, PAPER, 24, "learnt")


def test_more_frames_extend_the_fresh_table() -> None:
    assert torch.equal(sinusoid_table(1568, 32), sinusoid_table(3136, 32)[:, :1568])


def test_the_same_size_changes_nothing() -> None:
    assert torch.equal(position_table(PAPER, PAPER, 24), sinusoid_table(1568, 24))


@pytest.mark.parametrize("num_frames", [8, 16, 32])
@pytest.mark.parametrize("side_px", [160, 224, 288])
def test_a_token_gets_the_position_of_where_it_lies(num_frames: int, side_px: int) -> None:
    """A table that holds each token's own middle, in shares of the clip, comes out as the new tokens' middles."""

    def middles(grid: TokenGrid) -> torch.Tensor:
        axes = [(torch.arange(size) + 0.5) / size for size in (grid.t, grid.h, grid.w)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    grid = TokenGrid.of_clip(num_frames, side_px, side_px)
    table_thwD = interpolate(middles(PAPER), grid)
    # Beyond the outermost middles of the old grid there is nothing to interpolate between.
    inner = (slice(1, -1), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(table_thwD[inner], middles(grid)[inner], atol=1e-5, rtol=0)


def test_one_axis_is_interpolated_without_the_others() -> None:
    longer, larger = TokenGrid.of_clip(32, 224, 224), TokenGrid.of_clip(16, 288, 288)
    table_thwD = sinusoid_table(1568, 24).reshape(8, 14, 14, 24)
    twice_thwD = position_table(longer, PAPER, 24).reshape(16, 14, 14, 24)
    # A quarter of the way from one slice to the next, and three quarters.
    torch.testing.assert_close(twice_thwD[3], 0.75 * table_thwD[1] + 0.25 * table_thwD[2])
    large_thwD = position_table(larger, PAPER, 24).reshape(8, 18, 18, 24)
    torch.testing.assert_close(large_thwD[5], interpolate(table_thwD[5:6], TokenGrid(t=1, h=18, w=18))[0])

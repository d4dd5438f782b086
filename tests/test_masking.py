"""Masks: exact counts, the motion peak under the mask, one region, no bias towards the first rows."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_shared.geometry import TokenGrid
from mgm_train.masking import (
    CELLS_PER_PATCH,
    STRATEGIES,
    MaskOptions,
    filled_magnitude,
    make_mask,
    motion_peaks,
    num_hidden,
    num_hidden_per_slice,
)

PAPER_GRID = TokenGrid(t=8, h=14, w=14)
DENSE = ("mgm", "smm", "block")
SLICE_WISE = tuple(name for name in STRATEGIES if name != "random")


def noise(grid, rng, share_missing=0.0):
    motion_TYX2 = rng.normal(size=(2 * grid.t, 2 * grid.h, 2 * grid.w, 2)).astype(np.float32)
    motion_TYX2[rng.random(motion_TYX2.shape[:3]) < share_missing] = np.nan
    return motion_TYX2


def mask_thw(strategy, grid, motion_TYX2, rng, ratio=0.75, **options):
    mask_N = make_mask(strategy, motion_TYX2, ratio=ratio, rng=rng, options=MaskOptions(**options))
    assert mask_N.dtype == np.bool_
    assert mask_N.shape == (grid.num_tokens,)
    return mask_N.reshape(grid.t, grid.h, grid.w)


def is_one_region(mask_hw):
    """Flood fill, the slow and obvious way."""
    todo = {tuple(place) for place in np.argwhere(mask_hw).tolist()}
    queue = [todo.pop()]
    while queue:
        y, x = queue.pop()
        for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if place in todo:
                todo.remove(place)
                queue.append(place)
    return not todo


grids = st.builds(TokenGrid, t=st.integers(1, 8), h=st.integers(2, 14), w=st.integers(2, 14))
ratios = st.integers(10, 95).map(lambda percent: percent / 100)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize(
    ("ratio", "patches", "expected"),
    [(0.9, 196, 176), (0.75, 196, 147), (0.57, 100, 57), (0.29, 100, 29), (1 - 0.9, 100, 10), (1 / 3, 195, 65)],
)
def test_the_count_is_free_of_float_error(ratio, patches, expected):
    assert num_hidden_per_slice(TokenGrid(t=8, h=1, w=patches), ratio) == expected


@given(st.integers(1, 999), st.integers(1, 400))
def test_the_count_equals_exact_decimal_arithmetic(thousandths, patches):
    expected = Fraction(f"0.{thousandths:03d}") * patches // 1
    assert num_hidden_per_slice(TokenGrid(t=1, h=1, w=patches), thousandths / 1000) == expected


@settings(deadline=None, max_examples=60)
@given(grids, ratios, seeds, st.sampled_from(sorted(STRATEGIES)), st.sampled_from([0.0, 0.2, 1.0]))
def test_every_strategy_hides_exactly_the_same_number(grid, ratio, seed, strategy, share_missing):
    rng = np.random.default_rng(seed)
    hidden_thw = mask_thw(strategy, grid, noise(grid, rng, share_missing), rng, ratio)
    assert hidden_thw.sum() == num_hidden(grid, ratio)
    if strategy in SLICE_WISE:
        assert set(hidden_thw.sum((1, 2)).tolist()) == {num_hidden_per_slice(grid, ratio)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mask_is_decided_by_its_seed(strategy):
    motion_TYX2 = noise(PAPER_GRID, np.random.default_rng(0), 0.1)
    masks = [mask_thw(strategy, PAPER_GRID, motion_TYX2, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(masks[0], masks[1])
    # On motion without ties, mgm-sparse has nothing to draw.
    assert np.array_equal(masks[0], masks[2]) == (strategy == "mgm-sparse")


@settings(deadline=None, max_examples=60)
@given(grids, ratios, seeds, st.sampled_from(DENSE), st.sampled_from([0.0, 0.15, 0.5]))
def test_a_dense_mask_is_one_region_in_each_slice(grid, ratio, seed, strategy, jitter):
    rng = np.random.default_rng(seed)
    hidden_thw = mask_thw(strategy, grid, noise(grid, rng), rng, ratio, jitter=jitter)
    assert all(is_one_region(hidden_hw) for hidden_hw in hidden_thw if hidden_hw.any())


def test_ten_thousand_draws_hide_the_same_count_and_cover_every_motion_peak():
    rng = np.random.default_rng(0)
    slices = np.arange(1, PAPER_GRID.t)
    names = list(STRATEGIES)
    for draw in range(10_000):
        # Every strategy in turn, mgm in every second draw; one clip of noise is enough for fourteen.
        strategy = "mgm" if draw % 2 else names[draw // 2 % len(names)]
        if draw % 14 == 0:
            motion_TYX2 = noise(PAPER_GRID, rng, 0.05)
            magnitude_TYX = filled_magnitude(motion_TYX2)
            peak_t = (magnitude_TYX[0::2] + magnitude_TYX[1::2]).reshape(PAPER_GRID.t, -1).argmax(1)
            row_t, column_t = (place // CELLS_PER_PATCH for place in np.unravel_index(peak_t, (28, 28)))
        hidden_thw = mask_thw(strategy, PAPER_GRID, motion_TYX2, rng)
        assert hidden_thw.sum() == int(0.75 * 196) * 8
        if strategy == "mgm":
            assert hidden_thw[slices, row_t[1:], column_t[1:]].all()


@pytest.mark.parametrize("jitter", [0.0, 0.15])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_peak_in_a_corner_pulls_the_rectangle_into_it(corner, jitter):
    rng = np.random.default_rng(0)
    motion_TYX2 = np.zeros((16, 28, 28, 2), np.float32)
    motion_TYX2[:, corner[0], corner[1]] = (3, -4)
    hidden_thw = mask_thw("mgm", PAPER_GRID, motion_TYX2, rng, jitter=jitter)
    opposite = tuple(-1 - place for place in corner)
    assert hidden_thw[1:, corner[0], corner[1]].all()
    assert not hidden_thw[1:, opposite[0], opposite[1]].any()
    if not jitter:
        # 147 = 12 · 12 + 3: a square of 12 in the corner, and a bit of the next ring.
        from_corner_hw = hidden_thw[4][:: 1 if corner[0] == 0 else -1, :: 1 if corner[1] == 0 else -1]
        assert from_corner_hw[:12, :12].all()


def test_the_center_follows_the_peak_when_there_is_room():
    rng = np.random.default_rng(0)
    motion_TYX2 = np.zeros((16, 28, 28, 2), np.float32)
    rows, columns = np.linspace(10, 18, 16).astype(int), np.linspace(18, 10, 16).astype(int)
    motion_TYX2[np.arange(16), rows, columns, 0] = 5
    hidden_thw = mask_thw("mgm", PAPER_GRID, motion_TYX2, rng, ratio=0.2, jitter=0.0)
    for k in range(1, 8):
        centre_2 = np.argwhere(hidden_thw[k]).mean(0) + 0.5
        expected_2 = (np.array([rows[2 * k], columns[2 * k]]) + 0.5) / 2
        assert np.abs(centre_2 - expected_2).max() < 0.8, k


def test_without_jitter_the_region_is_the_square_of_the_paper():
    rng = np.random.default_rng(0)
    hidden_thw = mask_thw("mgm", PAPER_GRID, noise(PAPER_GRID, rng), rng, ratio=0.5, jitter=0.0)
    for hidden_hw in hidden_thw:
        height, width = np.ptp(np.argwhere(hidden_hw), axis=0) + 1
        # √(0.5 · 196) = 9.9
        assert sorted({height, width}) in ([10], [9, 11], [10, 11], [9, 10])


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_jitter_changes_the_proportion_of_the_sides(jitter):
    motion_TYX2 = np.zeros((16, 28, 28, 2), np.float32)
    motion_TYX2[:, 14, 14] = 7
    extents = set()
    for seed in range(20):
        hidden_thw = mask_thw("mgm", PAPER_GRID, motion_TYX2, np.random.default_rng(seed), 0.4, jitter=jitter)
        extents |= {tuple((np.ptp(np.argwhere(hidden_hw), axis=0) + 1).tolist()) for hidden_hw in hidden_thw[1:]}
    differences = {height - width for height, width in extents}
    # √(0.4 · 196) = 8.9: a square up to one row, or sides up to 30 % longer and shorter.
    assert (max(differences) > 2 and min(differences) < -2) == bool(jitter)
    assert max(differences) < 7


def test_the_first_slice_is_random_unless_it_is_guided():
    motion_TYX2 = np.zeros((16, 28, 28, 2), np.float32)
    motion_TYX2[:, 1, 1] = 9
    for is_first_guided in (False, True):
        hits = [
            mask_thw("mgm", PAPER_GRID, motion_TYX2, np.random.default_rng(seed), is_first_guided=is_first_guided)[
                0, 0, 0
            ]
            for seed in range(60)
        ]
        assert all(hits) == is_first_guided
        assert any(hits)


def test_a_clip_without_motion_gets_a_random_place_that_stays():
    corner_hits = []
    for motion in (np.nan, 0.0):
        motion_TYX2 = np.full((16, 28, 28, 2), motion, np.float32)
        for seed in range(100):
            peaks_t2 = motion_peaks(motion_TYX2, np.random.default_rng(seed))
            assert (peaks_t2 == peaks_t2[0]).all()
            corner_hits.append(tuple(peaks_t2[0]) == (0.25, 0.25))
    assert sum(corner_hits) < 5


def test_missing_cells_are_filled_from_the_nearest_frame():
    rng = np.random.default_rng(0)
    grid = TokenGrid(t=4, h=2, w=3)
    motion_TYX2 = noise(grid, rng, 0.6)
    filled_TYX = filled_magnitude(motion_TYX2)
    for y in range(4):
        for x in range(6):
            known = [t for t in range(8) if not np.isnan(motion_TYX2[t, y, x, 0])]
            for t in range(8):
                nearest = min(known, key=lambda other, t=t: (abs(other - t), other), default=None)
                expected = 0 if nearest is None else np.hypot(*motion_TYX2[nearest, y, x])
                assert filled_TYX[t, y, x] == pytest.approx(expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_on_noise_no_side_of_the_picture_is_preferred(strategy):
    rng = np.random.default_rng(5)
    grid = TokenGrid(t=2, h=6, w=6)
    num_draws = 3000
    share_hw = np.zeros((6, 6))
    for _ in range(num_draws):
        share_hw += mask_thw(strategy, grid, noise(grid, rng), rng, 0.5)[1] / num_draws
    # The eight turns and mirrors of a patch form its class; pure noise must treat all of them alike.
    turned = [np.rot90(flipped_hw, k) for flipped_hw in (share_hw, share_hw[:, ::-1]) for k in range(4)]
    mean_hw = np.mean(turned, axis=0)
    assert np.abs(share_hw - mean_hw).max() < 5 * 0.5 / np.sqrt(num_draws)


def test_the_sparse_mask_hides_the_patches_of_largest_motion():
    motion_TYX2 = noise(PAPER_GRID, np.random.default_rng(0))
    hidden_thw = mask_thw("mgm-sparse", PAPER_GRID, motion_TYX2, np.random.default_rng(1))
    magnitude_thw = np.hypot(*np.moveaxis(motion_TYX2, -1, 0)).reshape(8, 2, 14, 2, 14, 2).sum((1, 3, 5))
    for hidden_hw, magnitude_hw in zip(hidden_thw, magnitude_thw, strict=True):
        assert magnitude_hw[hidden_hw].min() > magnitude_hw[~hidden_hw].max()


def test_the_simulated_rectangle_moves_and_the_static_ones_do_not():
    motion_TYX2 = noise(PAPER_GRID, np.random.default_rng(0))
    for strategy in ("smm", "smm-sparse", "block", "tube"):
        hidden_thw = mask_thw(strategy, PAPER_GRID, motion_TYX2, np.random.default_rng(2), 0.3)
        num_different = len({hidden_hw.tobytes() for hidden_hw in hidden_thw})
        assert num_different == 1 if strategy in ("block", "tube") else num_different > 2, strategy


def test_the_sparse_simulation_moves_one_pattern_about():
    motion_TYX2 = noise(PAPER_GRID, np.random.default_rng(0))
    hidden_thw = mask_thw("smm-sparse", PAPER_GRID, motion_TYX2, np.random.default_rng(2))
    for hidden_hw in hidden_thw:
        shifts = (np.roll(hidden_thw[0], (y, x), (0, 1)) for y in range(14) for x in range(14))
        assert any(np.array_equal(hidden_hw, shifted_hw) for shifted_hw in shifts)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        make_mask("tube", np.zeros((2, 4, 4, 2), np.float32), ratio=ratio, rng=np.random.default_rng(0))


def test_an_unknown_strategy_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'mgn'.*mgm"):
        make_mask("mgn", np.zeros((2, 4, 4, 2), np.float32), ratio=0.5, rng=np.random.default_rng(0))

"""Masks: exact counts, the motion peak under the mask, one region, no bias towards the first rows."""

import itertools
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_shared.geometry import TokenGrid
from mgm_train.masking import strategies as masking
from mgm_train.masking.strategies import (
    STRATEGIES,
    MaskOptions,
    make_mask,
    num_masked,
    num_masked_per_slice,
    strongest_places,
)

PAPER_GRID = TokenGrid(t=8, h=14, w=14)
DENSE = ("mgm", "smm", "block")
SLICE_WISE = tuple(name for name in STRATEGIES if name != "random")


def noise(grid: Any, rng: Any, share_equal: float = 0.0) -> Any:
    """Lengths of random vectors, a share of them 0 and so equal."""
    shape = (2 * grid.t, 2 * grid.h, 2 * grid.w)
    strength_TYX = np.hypot(rng.normal(size=shape), rng.normal(size=shape)).astype(np.float32)
    strength_TYX[rng.random(shape) < share_equal] = 0
    return strength_TYX


def mask_thw(strategy: Any, grid: Any, strength_TYX: Any, rng: Any, ratio: float = 0.75, **options: Any) -> Any:
    mask_N = make_mask(strategy, strength_TYX, ratio=ratio, rng=rng, options=MaskOptions(**options))
    assert mask_N.dtype == np.bool_
    assert mask_N.shape == (grid.num_tokens,)
    return mask_N.reshape(grid.t, grid.h, grid.w)


def is_one_region(mask_hw: Any) -> Any:
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
def test_the_count_is_free_of_float_error(ratio: float, patches: int, expected: int) -> None:
    assert num_masked_per_slice(TokenGrid(t=8, h=1, w=patches), ratio) == expected


@given(st.integers(1, 999), st.integers(1, 400))
def test_the_count_equals_exact_decimal_arithmetic(thousandths: int, patches: int) -> None:
    expected = Fraction(f"0.{thousandths:03d}") * patches // 1
    assert num_masked_per_slice(TokenGrid(t=1, h=1, w=patches), thousandths / 1000) == expected


@settings(deadline=None, max_examples=60)
@given(grids, ratios, seeds, st.sampled_from(sorted(STRATEGIES)), st.sampled_from([0.0, 0.2, 1.0]))
def test_every_strategy_hides_exactly_the_same_number(
    grid: Any, ratio: Any, seed: Any, strategy: Any, share_equal: float
) -> None:
    rng = np.random.default_rng(seed)
    masked_thw = mask_thw(strategy, grid, noise(grid, rng, share_equal), rng, ratio)
    assert masked_thw.sum() == num_masked(grid, ratio)
    if strategy in SLICE_WISE:
        assert set(masked_thw.sum((1, 2)).tolist()) == {num_masked_per_slice(grid, ratio)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mask_is_decided_by_its_seed(strategy: Any) -> None:
    strength_TYX = noise(PAPER_GRID, np.random.default_rng(0), 0.1)
    masks = [mask_thw(strategy, PAPER_GRID, strength_TYX, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(masks[0], masks[1])
    # On motion without ties, mgm-sparse has nothing to draw.
    assert np.array_equal(masks[0], masks[2]) == (strategy == "mgm-sparse")


@settings(deadline=None, max_examples=60)
@given(grids, ratios, seeds, st.sampled_from(DENSE), st.sampled_from([0.0, 0.15, 0.5]))
def test_a_dense_mask_is_one_region_in_each_slice(
    grid: Any, ratio: Any, seed: Any, strategy: str, jitter: float
) -> None:
    rng = np.random.default_rng(seed)
    masked_thw = mask_thw(strategy, grid, noise(grid, rng), rng, ratio, jitter=jitter)
    assert all(is_one_region(masked_hw) for masked_hw in masked_thw if masked_hw.any())


@settings(deadline=None, max_examples=60)
@given(grids, ratios, seeds, st.sampled_from(DENSE), st.sampled_from([0.0, 0.15, 0.5]))
def test_a_dense_mask_is_a_whole_rectangle_that_lies_inside_the_picture(
    grid: Any, ratio: Any, seed: Any, strategy: str, jitter: float
) -> None:
    # A rectangle that hung over the border and was topped up elsewhere would have holes behind its outermost ring.
    rng = np.random.default_rng(seed)
    for masked_hw in mask_thw(strategy, grid, noise(grid, rng), rng, ratio, jitter=jitter):
        rows, columns = (np.flatnonzero(masked_hw.any(axis)) for axis in (1, 0))
        if len(rows) and len(columns):
            assert masked_hw[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]].all()


@settings(deadline=None, max_examples=60)
@given(grids, ratios, seeds, st.data())
def test_the_strongest_cell_is_masked_wherever_it_is(grid: Any, ratio: Any, seed: Any, data: st.DataObject) -> None:
    if not num_masked_per_slice(grid, ratio):
        return
    rng = np.random.default_rng(seed)
    strength_TYX = noise(grid, rng)
    for k in range(grid.t):
        y, x = data.draw(st.integers(0, 2 * grid.h - 1)), data.draw(st.integers(0, 2 * grid.w - 1))
        strength_TYX[2 * k, y, x] = 50
        masked_thw = mask_thw("mgm", grid, strength_TYX, np.random.default_rng(seed), ratio, is_first_guided=True)
        assert masked_thw[k, y // PAPER_GRID.patch.cells_per_side, x // PAPER_GRID.patch.cells_per_side]


def test_ten_thousand_draws_hide_the_same_count_and_cover_every_motion_peak() -> None:
    rng = np.random.default_rng(0)
    slices = np.arange(1, PAPER_GRID.t)
    names = list(STRATEGIES)
    for draw in range(10_000):
        # Every strategy in turn, mgm in every second draw; one clip of noise is enough for fourteen.
        strategy = "mgm" if draw % 2 else names[draw // 2 % len(names)]
        if draw % 14 == 0:
            strength_TYX = noise(PAPER_GRID, rng, 0.05)
            peak_t = (strength_TYX[0::2] + strength_TYX[1::2]).reshape(PAPER_GRID.t, -1).argmax(1)
            row_t, column_t = (place // PAPER_GRID.patch.cells_per_side for place in np.unravel_index(peak_t, (28, 28)))
        masked_thw = mask_thw(strategy, PAPER_GRID, strength_TYX, rng)
        assert masked_thw.sum() == int(0.75 * 196) * 8
        if strategy == "mgm":
            assert masked_thw[slices, row_t[1:], column_t[1:]].all()


@pytest.mark.parametrize("jitter", [0.0, 0.15])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_peak_in_a_corner_pulls_the_rectangle_into_it(corner: tuple[int, int], jitter: float) -> None:
    rng = np.random.default_rng(0)
    strength_TYX = np.zeros((16, 28, 28), np.float32)
    strength_TYX[:, corner[0], corner[1]] = 5
    masked_thw = mask_thw("mgm", PAPER_GRID, strength_TYX, rng, jitter=jitter)
    opposite = tuple(-1 - place for place in corner)
    assert masked_thw[1:, corner[0], corner[1]].all()
    assert not masked_thw[1:, opposite[0], opposite[1]].any()
    if not jitter:
        # 147 = 12 · 12 + 3: a square of 12 in the corner, and a bit of the next ring.
        from_corner_hw = masked_thw[4][:: 1 if corner[0] == 0 else -1, :: 1 if corner[1] == 0 else -1]
        assert from_corner_hw[:12, :12].all()


def test_the_center_follows_the_peak_when_there_is_room() -> None:
    rng = np.random.default_rng(0)
    strength_TYX = np.zeros((16, 28, 28), np.float32)
    rows, columns = np.linspace(10, 18, 16).astype(int), np.linspace(18, 10, 16).astype(int)
    strength_TYX[np.arange(16), rows, columns] = 5
    masked_thw = mask_thw("mgm", PAPER_GRID, strength_TYX, rng, ratio=0.2, jitter=0.0)
    for k in range(1, 8):
        centre_2 = np.argwhere(masked_thw[k]).mean(0) + 0.5
        expected_2 = (np.array([rows[2 * k], columns[2 * k]]) + 0.5) / 2
        assert np.abs(centre_2 - expected_2).max() < 0.8, k


@settings(deadline=None)
@given(grids, seeds, st.integers(1, 9), st.sampled_from([0.0, 0.9]))
def test_top_k_pools_the_places_of_the_strongest_cells(grid: Any, seed: Any, top_k: int, share_equal: float) -> None:
    rng = np.random.default_rng(seed)
    strength_TYX = noise(grid, rng, share_equal)
    places_t2 = strongest_places(strength_TYX, rng, top_k)
    for place_2, strength_YX in zip(places_t2, strength_TYX[0::2] + strength_TYX[1::2], strict=True):
        ranked = sorted(strength_YX.ravel().tolist(), reverse=True)
        if len(set(ranked[: top_k + 1])) < min(top_k + 1, len(ranked)):
            continue
        rows, columns = np.nonzero(strength_YX >= ranked[min(top_k, len(ranked)) - 1])
        np.testing.assert_allclose(place_2, [(columns.mean() + 0.5) / 2, (rows.mean() + 0.5) / 2])


def test_equal_cells_are_equally_likely_to_be_the_strongest() -> None:
    rng = np.random.default_rng(0)
    strength_TYX = np.zeros((2, 4, 6), np.float32)
    strength_TYX[:, [0, 1, 3], [5, 2, 0]] = 1
    for top_k, expected in ((1, 1 / 3), (2, 1 / 3)):
        places = [tuple(strongest_places(strength_TYX, rng, top_k)[0]) for _ in range(3000)]
        counts = [places.count(place) for place in set(places)]
        assert len(counts) == 3
        assert np.abs(np.array(counts) / 3000 - expected).max() < 0.04


def test_without_jitter_the_region_is_the_square_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    masked_thw = mask_thw("mgm", PAPER_GRID, noise(PAPER_GRID, rng), rng, ratio=0.5, jitter=0.0)
    for masked_hw in masked_thw:
        height, width = np.ptp(np.argwhere(masked_hw), axis=0) + 1
        # √(0.5 · 196) = 9.9
        assert sorted({height, width}) in ([10], [9, 11], [10, 11], [9, 10])


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_jitter_changes_the_proportion_of_the_sides(jitter: float) -> None:
    strength_TYX = np.zeros((16, 28, 28), np.float32)
    strength_TYX[:, 14, 14] = 7
    extents = set()
    for seed in range(20):
        masked_thw = mask_thw("mgm", PAPER_GRID, strength_TYX, np.random.default_rng(seed), 0.4, jitter=jitter)
        extents |= {tuple((np.ptp(np.argwhere(masked_hw), axis=0) + 1).tolist()) for masked_hw in masked_thw[1:]}
    differences = {height - width for height, width in extents}
    # √(0.4 · 196) = 8.9: a square up to one row, or sides up to 30 % longer and shorter.
    assert (max(differences) > 2 and min(differences) < -2) == bool(jitter)
    assert max(differences) < 7


def test_the_first_slice_is_random_unless_it_is_guided() -> None:
    strength_TYX = np.zeros((16, 28, 28), np.float32)
    strength_TYX[:, 1, 1] = 9
    for is_first_guided in (False, True):
        hits = [
            mask_thw("mgm", PAPER_GRID, strength_TYX, np.random.default_rng(seed), is_first_guided=is_first_guided)[
                0, 0, 0
            ]
            for seed in range(60)
        ]
        assert all(hits) == is_first_guided
        assert any(hits)


def test_a_clip_without_motion_gets_a_random_place_that_stays() -> None:
    corner_hits = []
    strength_TYX = np.zeros((16, 28, 28), np.float32)
    for top_k in (1, 3):
        for seed in range(100):
            peaks_t2 = strongest_places(strength_TYX, np.random.default_rng(seed), top_k)
            assert (peaks_t2 == peaks_t2[0]).all()
            corner_hits.append(tuple(peaks_t2[0]) == (0.25, 0.25))
    assert sum(corner_hits) < 5


@pytest.mark.parametrize("sides", [(6, 6), (5, 7)], ids=["square", "oblong"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_on_noise_no_side_of_the_picture_is_preferred(strategy: Any, sides: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    grid = TokenGrid(t=2, h=sides[0], w=sides[1])
    num_draws = 3000
    share_hw = np.zeros(sides)
    for _ in range(num_draws):
        share_hw += mask_thw(strategy, grid, noise(grid, rng), rng, 0.5)[1] / num_draws
    # The turns and mirrors of a patch form its class, four or in a square eight; noise must treat all of them alike.
    quarters = range(4) if sides[0] == sides[1] else (0, 2)
    turned = [np.rot90(flipped_hw, k) for flipped_hw in (share_hw, share_hw[:, ::-1]) for k in quarters]
    mean_hw = np.mean(turned, axis=0)
    assert np.abs(share_hw - mean_hw).max() < 5 * 0.5 / np.sqrt(num_draws)


@pytest.mark.parametrize(
    ("strategy", "jitter", "num_places"), [("mgm", 0.15, 64), ("mgm", 0.0, 100), ("smm", 0.15, 100), ("tube", 0.15, 0)]
)
def test_places_that_the_encoder_hardly_ever_sees(strategy: str, jitter: float, num_places: int) -> None:
    """At ratio 0.75, places that are masked in all slices of more than 99 % of the clips, as `mgm`'s docstring says."""
    rng, num_clips = np.random.default_rng(0), 1000
    share_hw = np.zeros((14, 14))
    for _ in range(num_clips):
        strength_TYX = rng.random((16, 28, 28), np.float32)
        share_hw += mask_thw(strategy, PAPER_GRID, strength_TYX, rng, jitter=jitter).all(0) / num_clips
    places_2 = np.argwhere(share_hw > 0.99)
    assert len(places_2) == num_places
    if num_places:
        side = int(num_places**0.5)
        assert places_2.min() == (14 - side) // 2
        assert places_2.max() == (14 + side) // 2 - 1


def test_the_sparse_mask_hides_the_patches_of_largest_motion() -> None:
    strength_TYX = noise(PAPER_GRID, np.random.default_rng(0))
    masked_thw = mask_thw("mgm-sparse", PAPER_GRID, strength_TYX, np.random.default_rng(1))
    strength_thw = strength_TYX.reshape(8, 2, 14, 2, 14, 2).sum((1, 3, 5))
    for masked_hw, strength_hw in zip(masked_thw, strength_thw, strict=True):
        assert strength_hw[masked_hw].min() > strength_hw[~masked_hw].max()


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("mgm-sparse", {}),
        ("mgm", {"jitter": 0.0, "is_first_guided": True}),
        ("block", {}),
        ("tube", {}),
        ("motion-bins", {}),
    ],
)
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_a_clip_without_motion_has_the_same_mask_in_every_slice(strategy: str, options: Any, ratio: float) -> None:
    """What is equal, cells, patches or rings of a rectangle, is drawn from once a clip: 49 of 196 places are seen."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        masked_thw = mask_thw(strategy, PAPER_GRID, np.zeros((16, 28, 28), np.float32), rng, ratio, **options)
        assert (masked_thw == masked_thw[0]).all()


def test_equal_patches_of_a_sparse_mask_come_in_one_order_for_the_clip() -> None:
    """A block moves through a still picture: what two slices mask of the patches that are still in both is nested."""
    strength_TYX = np.zeros((16, 28, 28), np.float32)
    for k in range(8):
        strength_TYX[2 * k : 2 * k + 2, 12:16, 3 * k : 3 * k + 1 + k] = 5
    is_moving_thw = strength_TYX.reshape(8, 2, 14, 2, 14, 2).sum((1, 3, 5)) > 0
    for seed in range(50):
        masked_thw = mask_thw("mgm-sparse", PAPER_GRID, strength_TYX, np.random.default_rng(seed))
        assert masked_thw[is_moving_thw].all()
        for a, b in itertools.combinations(range(8), 2):
            is_still_hw = ~is_moving_thw[a] & ~is_moving_thw[b]
            of_a, of_b = masked_thw[a][is_still_hw], masked_thw[b][is_still_hw]
            assert not (of_a & ~of_b).any() or not (of_b & ~of_a).any()


def test_the_simulated_rectangle_moves_and_the_static_ones_do_not() -> None:
    strength_TYX = noise(PAPER_GRID, np.random.default_rng(0))
    for strategy in ("smm", "smm-sparse", "block", "tube", "motion-bins"):
        masked_thw = mask_thw(strategy, PAPER_GRID, strength_TYX, np.random.default_rng(2), 0.3)
        num_different = len({masked_hw.tobytes() for masked_hw in masked_thw})
        assert num_different == 1 if strategy in ("block", "tube", "motion-bins") else num_different > 2, strategy


def test_the_sparse_simulation_moves_one_pattern_about() -> None:
    strength_TYX = noise(PAPER_GRID, np.random.default_rng(0))
    masked_thw = mask_thw("smm-sparse", PAPER_GRID, strength_TYX, np.random.default_rng(2))
    for masked_hw in masked_thw:
        shifts = (np.roll(masked_thw[0], (y, x), (0, 1)) for y in range(14) for x in range(14))
        assert any(np.array_equal(masked_hw, shifted_hw) for shifted_hw in shifts)


def moving_half(strength_TYX: Any, grid: Any) -> set[tuple[int, int]]:
    """The half of the patches whose cells move most over the whole clip, the slow and obvious way."""
    cells = grid.patch.cells_per_side
    total_of = {(y, x): 0.0 for y in range(grid.h) for x in range(grid.w)}
    for strength_YX in strength_TYX:
        for y in range(grid.h * cells):
            for x in range(grid.w * cells):
                total_of[y // cells, x // cells] += float(strength_YX[y, x])
    ranked = sorted(total_of, key=lambda patch: total_of[patch], reverse=True)
    return set(ranked[: len(ranked) // 2])


@settings(deadline=None, max_examples=40)
@given(grids, ratios, seeds)
def test_motion_bins_show_as_many_moving_patches_as_still_ones(grid: Any, ratio: Any, seed: Any) -> None:
    rng = np.random.default_rng(seed)
    strength_TYX = noise(grid, rng)
    masked_thw = mask_thw("motion-bins", grid, strength_TYX, rng, ratio)
    assert (masked_thw == masked_thw[0]).all()
    visible = {tuple(patch) for patch in np.argwhere(~masked_thw[0]).tolist()}
    assert len(visible) == grid.h * grid.w - num_masked_per_slice(grid, ratio)
    assert len(visible & moving_half(strength_TYX, grid)) == len(visible) // 2


def test_motion_bins_draw_evenly_within_a_half() -> None:
    grid, num_draws, rng = TokenGrid(t=2, h=5, w=6), 4000, np.random.default_rng(1)
    strength_TYX = noise(grid, rng)
    share_hw = sum(~mask_thw("motion-bins", grid, strength_TYX, rng, 0.7)[0] for _ in range(num_draws)) / num_draws
    for y in range(grid.h):
        for x in range(grid.w):
            # 9 of 30 patches are visible: 4 of the 15 that move most, and 5 of the others.
            expected = (4 if (y, x) in moving_half(strength_TYX, grid) else 5) / 15
            assert abs(share_hw[y, x] - expected) < 5 * 0.5 / np.sqrt(num_draws)


def test_motion_bins_of_a_clip_without_motion_are_a_random_tube() -> None:
    grid, num_draws, rng = TokenGrid(t=1, h=3, w=4), 4000, np.random.default_rng(2)
    still_TYX = np.zeros((2, 6, 8), np.float32)
    share_hw = sum(~mask_thw("motion-bins", grid, still_TYX, rng, 0.5)[0] for _ in range(num_draws)) / num_draws
    assert np.abs(share_hw - 0.5).max() < 5 * 0.5 / np.sqrt(num_draws)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask ratio"):
        make_mask("tube", np.zeros((2, 4, 4), np.float32), ratio=ratio, rng=np.random.default_rng(0))


def test_an_unknown_strategy_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'mgn'.*mgm"):
        make_mask("mgn", np.zeros((2, 4, 4), np.float32), ratio=0.5, rng=np.random.default_rng(0))


def test_the_example_of_contributing_is_a_strategy_and_its_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    function, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    in_masking, in_tests = dict(vars(masking)), {**globals(), "RNG": np.random.default_rng(0)}
    exec(function, in_masking)
    monkeypatch.setitem(STRATEGIES, "chess", in_masking["chess"])
    exec(test, in_tests)
    in_tests["test_half_of_a_chess_mask_is_one_colour"]()

"""Where an encoder found no vector: the rules for intra blocks, against loops, pictures without vectors, and clips."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic import texture

from mgm_shared.errors import UserError
from mgm_shared.geometry import Box
from mgm_shared.store import Store
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import Clip, motion_between, read_clips, vectors
from mgm_train.data.views import View, view_share
from mgm_train.masking import intra
from mgm_train.masking.guidance import Guidance, filled, magnitude

ROWS, COLUMNS = 7, 9
RULES = ("nearest", "strong", "spread", "change")


def random_motion(seed: int, share_missing: float = 0.3, num_frames: int = 6) -> Any:
    """Vectors in sixteenths of a pixel, as stored; the third frame is an I picture, and the last one has them all."""
    rng = np.random.default_rng(seed)
    motion_SYX2 = (rng.integers(-90, 90, (num_frames, ROWS, COLUMNS, 2)) / 16).astype(np.float32)
    motion_SYX2[rng.random(motion_SYX2.shape[:3]) < share_missing] = np.nan
    motion_SYX2[2] = np.nan
    motion_SYX2[-1] = np.nan_to_num(motion_SYX2[-1], nan=1.0)
    return motion_SYX2


def strong_by_loops(motion_YX2: Any) -> Any:
    places = [(y, x) for y in range(ROWS) for x in range(COLUMNS)]
    known = [place for place in places if not np.isnan(motion_YX2[place][0])]
    longest = max(known, key=lambda place: float(np.square(motion_YX2[place]).sum()))
    out_YX2 = motion_YX2.copy()
    for place in set(places) - set(known):
        out_YX2[place] = motion_YX2[longest]
    return out_YX2


def spread_by_loops(motion_YX2: Any) -> Any:
    """Ring by ring, in sets of places."""
    found = {
        (y, x): motion_YX2[y, x].astype(np.float64)
        for y in range(ROWS)
        for x in range(COLUMNS)
        if not np.isnan(motion_YX2[y, x, 0])
    }
    while len(found) < ROWS * COLUMNS:
        ring = {}
        for y in range(ROWS):
            for x in range(COLUMNS):
                near = [found[y + j, x + i] for j in (-1, 0, 1) for i in (-1, 0, 1) if (y + j, x + i) in found]
                if (y, x) not in found and near:
                    ring[y, x] = np.mean(near, axis=0)
        found |= ring
    return np.array([[found[y, x] for x in range(COLUMNS)] for y in range(ROWS)])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.3, 0.9]))
def test_strong_and_spread_are_what_loops_over_the_cells_give(seed: int, share_missing: float) -> None:
    motion_SYX2 = random_motion(seed, share_missing)
    before_SYX2 = motion_SYX2.copy()
    strong_SYX2, spread_SYX2 = intra.strong(motion_SYX2), intra.spread(motion_SYX2)
    np.testing.assert_array_equal(motion_SYX2, before_SYX2)
    for motion_YX2, strong_YX2, spread_YX2 in zip(motion_SYX2, strong_SYX2, spread_SYX2, strict=True):
        if np.isnan(motion_YX2).all():
            # An I picture says nothing about any cell.
            assert np.isnan(strong_YX2).all()
            assert np.isnan(spread_YX2).all()
        else:
            np.testing.assert_allclose(np.hypot(*strong_YX2.T), np.hypot(*strong_by_loops(motion_YX2).T), rtol=1e-6)
            np.testing.assert_allclose(spread_YX2, spread_by_loops(motion_YX2), rtol=1e-4, atol=1e-5)


def test_where_all_else_is_still_an_intra_cell_is_strong() -> None:
    """A thing that is too fast for the encoder, before a still background: its cells are all that may draw a mask."""
    motion_SYX2 = np.zeros((4, ROWS, COLUMNS, 2), np.float32)
    motion_SYX2[:, 3:5, 4:6] = np.nan
    frames_THWC = np.repeat(texture(8 * ROWS, 8 * COLUMNS, 0)[None], 4, axis=0)
    for t in range(4):
        frames_THWC[t, 24:40, 32:48] = 60 * t
    for rule in ("strong", "change"):
        strength_TYX = Guidance(missing_motion=rule).strength(clip_of(motion_SYX2, np.arange(4), frames_THWC, rule))
        for strength_YX in strength_TYX:
            y, x = np.unravel_index(strength_YX.argmax(), strength_YX.shape)
            assert (y in (3, 4), x in (4, 5)) == (True, True), rule
    still_TYX = Guidance().strength(clip_of(motion_SYX2, np.arange(4), frames_THWC, "nearest"))
    assert (still_TYX == 0).all()


def clip_of(motion_SYX2: Any, indices_T: Any, frames_THWC: Any, rule: str) -> Clip:
    """The clip of whole frames that `read_clips` makes of these stored vectors."""
    make = {"strong": intra.strong, "spread": intra.spread, "change": intra.with_intra}.get(rule, np.copy)
    field_TYXK = motion_between(make(motion_SYX2), indices_T)
    return Clip(
        frames_CTHW=np.ascontiguousarray(frames_THWC.transpose(3, 0, 1, 2)),
        motion_TYX2=field_TYXK[..., :2],
        label=-1,
        sample_id="a",
        intra_TYX=np.nan_to_num(field_TYXK[..., 2]) if field_TYXK.shape[-1] == 3 else None,
    )


def changed_by_loops(strength_TYX: Any, intra_TYX: Any, frames_THWC: Any) -> Any:
    green_TPQ = frames_THWC[:, ::4, ::4, 1].astype(np.float64)
    out_TYX = strength_TYX.copy()
    for t in range(len(strength_TYX)):
        difference_PQ = np.abs(green_TPQ[t] - green_TPQ[t - 1 if t else 1])
        change_YX = np.array(
            [[difference_PQ[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(COLUMNS)] for y in range(ROWS)]
        )
        is_used_YX = (intra_TYX[t] < 0.5) & ~np.isnan(strength_TYX[t])
        if not is_used_YX.any():
            # An I picture: no cell of it is intra.
            assert not intra_TYX[t].any()
            continue
        scale = np.sqrt(np.mean(strength_TYX[t][is_used_YX] ** 2) / np.mean(change_YX[is_used_YX] ** 2))
        for y in range(ROWS):
            for x in range(COLUMNS):
                share, strength = intra_TYX[t, y, x], strength_TYX[t, y, x]
                if share and np.isnan(strength):
                    out_TYX[t, y, x] = scale * change_YX[y, x]
                elif share:
                    out_TYX[t, y, x] = (1 - share) * strength + share * scale * change_YX[y, x]
    return out_TYX


@pytest.mark.parametrize("stride", [1, 2])
def test_change_is_what_loops_over_the_cells_give(stride: int) -> None:
    rng = np.random.default_rng(3)
    motion_SYX2 = random_motion(3)
    indices_T = np.arange(0, 6, stride)
    frames_THWC = rng.integers(0, 256, (len(indices_T), 8 * ROWS, 8 * COLUMNS, 3), np.uint8)
    clip = clip_of(motion_SYX2, indices_T, frames_THWC, "change")
    # The share of the pictures with vectors in which a cell has none: of each frame's own stored frames.
    assert clip.intra_TYX is not None
    start = 0
    for t, stop in enumerate((indices_T + 1).tolist()):
        with_vectors_SYX2 = [motion_YX2 for motion_YX2 in motion_SYX2[start:stop] if not np.isnan(motion_YX2).all()]
        if with_vectors_SYX2:
            np.testing.assert_allclose(clip.intra_TYX[t], np.isnan(np.array(with_vectors_SYX2)[..., 0]).mean(0))
        start = stop
    expected_TYX = changed_by_loops(magnitude(clip.motion_TYX2), clip.intra_TYX, frames_THWC)
    strength_TYX = Guidance(missing_motion="change").strength(clip)
    np.testing.assert_allclose(strength_TYX, filled(expected_TYX), rtol=1e-4)


def test_the_rule_of_today_is_the_default_and_the_same_bits(pan_store: Store) -> None:
    video = pan_store["train/left/0.mp4"]
    assert Guidance.of(PretrainConfig()) == Guidance(missing_motion="nearest")
    np.testing.assert_array_equal(Guidance().read(video, slice(0, 12)), vectors(video, slice(0, 12)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("source", ["vectors", "clean"])
def test_a_clip_of_a_store_has_guidance_everywhere(pan_store: Store, rule: str, source: str) -> None:
    guidance = Guidance(source=source, missing_motion=rule)
    video = pan_store["train/left/0.mp4"]
    views = [View(box=Box(x=16, y=8, width=96, height=96), size_px=64, is_mirrored=flip) for flip in (False, True)]
    straight, mirrored = read_clips(video, np.arange(2, 18, 2), views, read_field=guidance.read)
    assert (straight.intra_TYX is not None) == (rule == "change")
    if straight.intra_TYX is not None and mirrored.intra_TYX is not None:
        np.testing.assert_allclose(mirrored.intra_TYX[..., ::-1], straight.intra_TYX, atol=1e-6)
        assert straight.intra_TYX.min() >= 0
        assert straight.intra_TYX.max() <= 1
    strength_TYX = guidance.strength(straight)
    assert strength_TYX.shape == (8, 8, 8)
    assert np.isfinite(strength_TYX).all()


def test_a_share_is_seen_without_the_scale_of_motion() -> None:
    share_TYX: NDArray[np.float32] = np.zeros((2, 6, 8), np.float32)
    share_TYX[0, 2:4, 2:4] = 0.75
    share_TYX[1] = np.nan
    view = View(box=Box(x=16, y=16, width=16, height=16), size_px=64, is_mirrored=True)
    seen_TYX = view_share(share_TYX, view)
    np.testing.assert_allclose(seen_TYX[0], 0.75)
    np.testing.assert_array_equal(seen_TYX[1], 0)


def test_only_vectors_have_intra_blocks() -> None:
    for source in ("vectors", "clean"):
        config = PretrainConfig(guidance=source, missing_motion="change")
        assert Guidance.of(config) == Guidance(source=source, missing_motion="change")
    with pytest.raises(UserError, match="missing-motion is 'strong' but must be nearest"):
        PretrainConfig(guidance="flow", missing_motion="strong")
    with pytest.raises(UserError, match="missing-motion"):
        PretrainConfig(missing_motion="louder")  # type: ignore[arg-type]

"""Crops and flips of frames and motion: they agree with each other and with slow, obvious oracles."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgm_shared.geometry import Box
from mgm_train.augment import (
    FinetuneAugment,
    PretrainAugment,
    crop_clip,
    crop_frames,
    erase_box,
    flip_clip,
    multi_scale_crop,
    rand_augment,
    random_resized_crop,
    view_boxes,
)
from mgm_train.clips import Clip

RANDAUG = "rand-m7-n4-mstd0.5-inc1"
sides = st.integers(8, 50).map(lambda cells: 8 * cells)
seeds = st.integers(0, 2**32)


def moving_square(num_frames=6, height=96, width=128, speed_px=8):
    """A bright 16-px square that moves right by one cell a frame, and the motion that says so."""
    frames_THWC = np.zeros((num_frames, height, width, 3), np.uint8)
    motion_TYX2 = np.zeros((num_frames, height // 8, width // 8, 2), np.float32)
    for t in range(num_frames):
        left = 24 + speed_px * t
        frames_THWC[t, 40:56, left : left + 16] = 255
        motion_TYX2[t, 5:7, left // 8 : left // 8 + 2] = (speed_px, 0)
    return Clip(frames_THWC=frames_THWC, motion_TYX2=motion_TYX2, label=3, video_id="a")


def bright_center_x(frame_HWC):
    return np.average(np.arange(frame_HWC.shape[1]) + 0.5, weights=frame_HWC[..., 0].sum(0).astype(float))


def moving_center_x(motion_YX2):
    weights = np.nan_to_num(np.abs(motion_YX2[..., 0])).sum(0)
    return np.average(8 * np.arange(motion_YX2.shape[1]) + 4, weights=weights)


@given(sides, sides, seeds, st.booleans())
def test_a_multi_scale_crop_lies_inside_and_its_sides_are_scales_one_step_apart(height, width, seed, is_offset_fixed):
    box = multi_scale_crop(height, width, np.random.default_rng(seed), is_offset_fixed=is_offset_fixed)
    assert 0 <= box.x <= width - box.width
    assert 0 <= box.y <= height - box.height
    scales = [round(min(height, width) * scale) for scale in (1, 0.875, 0.75, 0.66)]
    assert abs(scales.index(int(box.width)) - scales.index(int(box.height))) <= 1


def test_the_fixed_offsets_are_the_thirteen_of_tsn_for_one_size():
    rng = np.random.default_rng(0)
    boxes = (multi_scale_crop(400, 400, rng, scales=(0.5,)) for _ in range(500))
    corners_and_edges = {(x, y) for x in (0, 100, 200) for y in (0, 100, 200)}
    quarters = {(x, y) for x in (50, 150) for y in (50, 150)}
    assert {(box.x, box.y) for box in boxes} == corners_and_edges | quarters


@given(sides, sides, seeds)
def test_a_random_resized_crop_keeps_its_limits(height, width, seed):
    box = random_resized_crop(height, width, np.random.default_rng(seed), scale=(0.3, 0.6))
    assert 0 <= box.x <= width - box.width
    assert 0 <= box.y <= height - box.height
    is_fallback = box == view_boxes(height, width, 1)[0]
    # Whole pixels: half a pixel a side either way.
    slack = 1.2 * (1 / box.width + 1 / box.height)
    assert is_fallback or 0.3 - slack <= box.width * box.height / (height * width) <= 0.6 + slack
    assert is_fallback or 3 / 4 * (1 - slack) <= box.width / box.height <= 4 / 3 * (1 + slack)


def test_random_resized_crops_differ():
    rng = np.random.default_rng(0)
    boxes = [random_resized_crop(256, 340, rng) for _ in range(300)]
    shares = [box.width * box.height / (256 * 340) for box in boxes]
    assert min(shares) < 0.15
    assert max(shares) > 0.7
    assert len({(box.x, box.y) for box in boxes}) > 200


def test_three_views_reach_from_edge_to_edge_and_one_is_the_center():
    assert [(box.x, box.y) for box in view_boxes(256, 340, 3)] == [(0, 0), (42, 0), (84, 0)]
    assert [(box.x, box.y) for box in view_boxes(340, 256, 3)] == [(0, 0), (0, 42), (0, 84)]
    assert view_boxes(256, 340, 1) == [Box(x=42, y=0, width=256, height=256)]


@pytest.mark.parametrize("box", [Box(x=16, y=8, width=80, height=80), Box(x=24, y=32, width=40, height=40)])
@pytest.mark.parametrize("is_flipped", [False, True])
def test_motion_stays_on_the_pixels_through_crop_and_flip(box, is_flipped):
    cropped = crop_clip(moving_square(), box, 80)
    if is_flipped:
        cropped = flip_clip(cropped)
    assert cropped.frames_THWC.shape == (6, 80, 80, 3)
    assert cropped.motion_TYX2.shape == (6, 10, 10, 2)
    centres = [bright_center_x(frame_HWC) for frame_HWC in cropped.frames_THWC[:3]]
    for t in (1, 2):
        assert moving_center_x(cropped.motion_TYX2[t]) == pytest.approx(centres[t], abs=0.6)
        speed_px = cropped.motion_TYX2[t].reshape(-1, 2)
        fastest_px = speed_px[np.nanargmax(np.abs(speed_px[:, 0])), 0]
        assert fastest_px == pytest.approx(centres[t] - centres[t - 1], abs=0.6)
    assert (cropped.label, cropped.video_id) == (3, "a")


def test_flipping_twice_changes_nothing():
    clip = moving_square()
    twice = flip_clip(flip_clip(clip))
    assert np.array_equal(twice.frames_THWC, clip.frames_THWC)
    assert np.array_equal(twice.motion_TYX2, clip.motion_TYX2)


def test_a_crop_of_the_same_size_copies_the_pixels():
    frames_THWC = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    out_THWC = crop_frames(frames_THWC, Box(x=8, y=16, width=32, height=32), 32, 32)
    assert np.array_equal(out_THWC, frames_THWC[:, 16:48, 8:40])


def test_shrinking_by_two_is_the_mean_of_four_pixels():
    frames_THWC = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    out_THWC = crop_frames(frames_THWC, Box(x=0, y=0, width=64, height=64), 32, 32)
    mean_THWC = frames_THWC.reshape(2, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(out_THWC - mean_THWC).max() <= 0.51


def test_pretrain_augment_is_decided_by_its_generator_and_mirrors_half():
    clip = moving_square()
    augment = PretrainAugment(size_px=48)
    one, same, other = (augment(clip, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.frames_THWC, same.frames_THWC)
    assert np.array_equal(one.motion_TYX2, same.motion_TYX2)
    assert not np.array_equal(one.frames_THWC, other.frames_THWC)
    for flip in (True, False):
        seen = [PretrainAugment(size_px=48, flip=flip)(clip, np.random.default_rng(seed)) for seed in range(40)]
        num_mirrored = sum(bool(np.nanmin(view.motion_TYX2[..., 0]) < -1) for view in seen)
        assert (8 < num_mirrored < 32) if flip else num_mirrored == 0


def test_rand_augment_does_the_same_to_every_frame_and_leaves_the_global_generators_alone():
    frame_HWC = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    frames_THWC = np.stack([frame_HWC] * 4)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    results = [rand_augment(frames_THWC, RANDAUG, np.random.default_rng(seed)) for seed in range(12)]
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    for out_THWC in results:
        assert (out_THWC == out_THWC[0]).all()
    assert len({out_THWC.tobytes() for out_THWC in results}) > 9
    assert np.array_equal(results[3], rand_augment(frames_THWC, RANDAUG, np.random.default_rng(3)))


def test_one_box_is_erased_in_all_frames():
    frames_THWC = np.full((3, 64, 64, 3), 7, np.uint8)
    for seed in range(10):
        is_erased_THW = (erase_box(frames_THWC, np.random.default_rng(seed)) != 7).any(-1)
        rows, columns = np.nonzero(is_erased_THW.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        # Noise may hit 7 by chance, but not in many pixels of a box.
        assert (is_erased_THW.sum((1, 2)) > 0.95 * height * width).all()
        assert 0.015 <= height * width / 64**2 <= 0.36
    assert (frames_THWC == 7).all()


def test_finetune_augment_is_decided_by_its_generator_and_needs_no_motion():
    clip = moving_square()
    clip = Clip(frames_THWC=clip.frames_THWC, motion_TYX2=np.zeros((6, 0, 0, 2), np.float32), label=1, video_id="b")
    augment = FinetuneAugment(size_px=32)
    seen = [augment(clip, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert seen[0].frames_THWC.shape == (6, 32, 32, 3)
    assert np.array_equal(seen[0].frames_THWC, seen[1].frames_THWC)
    assert not np.array_equal(seen[0].frames_THWC, seen[2].frames_THWC)
    assert seen[0].label == 1

"""Which views are drawn, and what is done to the pixels after that."""

import random
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mgm_shared.geometry import Box
from mgm_train.data.augmentation.augment import (
    FinetuneAugment,
    PretrainAugment,
    draw_erasing,
    fill_box,
    multi_scale_crop,
    random_resized_crop,
    view_boxes,
)
from mgm_train.data.augmentation.operations import apply_operations, draw_operations
from mgm_train.data.clips import Clip

RANDAUG = "rand-m7-n4-mstd0.5-inc1"
sides = st.integers(8, 50).map(lambda cells: 8 * cells)
seeds = st.integers(0, 2**32)


def rand_augment(frames_CTHW: Any, config: str, rng: np.random.Generator) -> Any:
    return apply_operations(frames_CTHW, draw_operations(config, frames_CTHW.shape[2], rng))


def erase_box(frames_CTHW: Any, rng: np.random.Generator) -> Any:
    height, width = frames_CTHW.shape[2:]
    return fill_box(frames_CTHW, *draw_erasing(height, width, rng))


@given(sides, sides, seeds, st.booleans())
def test_a_multi_scale_crop_lies_inside_and_its_sides_are_scales_one_step_apart(
    height: Any, width: Any, seed: Any, is_offset_fixed: bool
) -> None:
    box = multi_scale_crop(height, width, np.random.default_rng(seed), is_offset_fixed=is_offset_fixed)
    assert 0 <= box.x <= width - box.width
    assert 0 <= box.y <= height - box.height
    assert not any(side % 2 for side in (box.x, box.y, box.width, box.height))
    scales = [2 * int(min(height, width) * scale / 2) for scale in (1, 0.875, 0.75, 0.66)]
    assert abs(scales.index(int(box.width)) - scales.index(int(box.height))) <= 1


def test_the_fixed_offsets_are_the_thirteen_of_tsn_for_one_size() -> None:
    rng = np.random.default_rng(0)
    boxes = (multi_scale_crop(400, 400, rng, scales=(0.5,)) for _ in range(500))
    corners_and_edges = {(x, y) for x in (0, 100, 200) for y in (0, 100, 200)}
    quarters = {(x, y) for x in (50, 150) for y in (50, 150)}
    assert {(box.x, box.y) for box in boxes} == corners_and_edges | quarters


@given(sides, sides, seeds)
def test_a_random_resized_crop_keeps_its_limits(height: Any, width: Any, seed: Any) -> None:
    box = random_resized_crop(height, width, np.random.default_rng(seed), scale=(0.3, 0.6))
    assert 0 <= box.x <= width - box.width
    assert 0 <= box.y <= height - box.height
    assert not any(side % 2 for side in (box.x, box.y, box.width, box.height))
    is_fallback = box == view_boxes(height, width, 1)[0]
    # Even pixels: up to two fewer a side.
    slack = 2.4 * (1 / box.width + 1 / box.height)
    assert is_fallback or 0.3 - slack <= box.width * box.height / (height * width) <= 0.6 + slack
    assert is_fallback or 3 / 4 * (1 - slack) <= box.width / box.height <= 4 / 3 * (1 + slack)


def test_random_resized_crops_differ() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_resized_crop(256, 340, rng) for _ in range(300)]
    shares = [box.width * box.height / (256 * 340) for box in boxes]
    assert min(shares) < 0.15
    assert max(shares) > 0.7
    assert len({(box.x, box.y) for box in boxes}) > 200


def test_three_views_reach_from_edge_to_edge_and_one_is_the_center() -> None:
    assert [(box.x, box.y) for box in view_boxes(256, 340, 3)] == [(0, 0), (42, 0), (84, 0)]
    assert [(box.x, box.y) for box in view_boxes(340, 256, 3)] == [(0, 0), (0, 42), (0, 84)]
    assert view_boxes(256, 340, 1) == [Box(x=42, y=0, width=256, height=256)]


def test_pretrain_augment_is_decided_by_its_generator_and_mirrors_half() -> None:
    augment = PretrainAugment(size_px=48)
    one, same, other = (augment.view(96, 128, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other
    for flip in (True, False):
        augment = PretrainAugment(size_px=48, flip=flip)
        num_mirrored = sum(augment.view(96, 128, np.random.default_rng(seed)).is_mirrored for seed in range(40))
        assert (8 < num_mirrored < 32) if flip else num_mirrored == 0


def test_rand_augment_does_the_same_to_every_frame_and_leaves_the_global_generators_alone() -> None:
    frame_CHW = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    frames_CTHW = np.stack([frame_CHW] * 4, axis=1)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    results = [rand_augment(frames_CTHW, RANDAUG, np.random.default_rng(seed)) for seed in range(12)]
    assert before == (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist())  # noqa: NPY002
    for out_CTHW in results:
        assert (out_CTHW == out_CTHW[:, :1]).all()
    assert len({out_CTHW.tobytes() for out_CTHW in results}) > 9
    assert np.array_equal(results[3], rand_augment(frames_CTHW, RANDAUG, np.random.default_rng(3)))


def test_one_box_is_erased_in_all_frames() -> None:
    frames_CTHW = np.full((3, 5, 64, 64), 7, np.uint8)
    for seed in range(10):
        erased_CTHW = erase_box(frames_CTHW, np.random.default_rng(seed))
        is_erased_THW = (erased_CTHW != 7).any(0)
        rows, columns = np.nonzero(is_erased_THW.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        # Noise may hit 7 by chance, but not in many pixels of a box.
        assert (is_erased_THW.sum((1, 2)) > 0.95 * height * width).all()
        assert 0.015 <= height * width / 64**2 <= 0.36
    assert (frames_CTHW == 7).all()


def test_the_noise_is_imagenets_normal_cut_off_to_grey_levels() -> None:
    """Against normal numbers of numpy, clipped and cut off, of which the noise once was made."""
    frames_CTHW = np.zeros((3, 40, 96, 96), np.uint8)
    erased_CTHW = erase_box(frames_CTHW, np.random.default_rng(4))
    box_HW = (erased_CTHW != 0).any((0, 1))
    rng = np.random.default_rng(5)
    for erased_THW, mean, std in zip(erased_CTHW, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True):
        ours = erased_THW[:, box_HW].ravel()
        normal = (255 * (mean + std * rng.standard_normal(ours.size))).clip(0, 255).astype(np.uint8)
        assert ours.size > 5000
        shares = [np.cumsum(np.bincount(levels, minlength=256)) / levels.size for levels in (ours, normal)]
        assert np.abs(shares[0] - shares[1]).max() < 2.5 / np.sqrt(ours.size)


def test_finetune_augment_is_decided_by_its_generator_and_needs_no_motion() -> None:
    frames_CTHW = np.random.default_rng(0).integers(0, 256, (3, 6, 32, 32), np.uint8)
    clip = Clip(frames_CTHW=frames_CTHW, motion_TYX2=np.zeros((6, 0, 0, 2), np.float32), label=1, sample_id="b")
    augment = FinetuneAugment(size_px=32)

    def drawn(seed: Any) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        return augment.view(96, 128, rng), augment.finish(clip, rng)

    (view, one), (same_view, same), (other_view, other) = drawn(1), drawn(1), drawn(2)
    assert view == same_view != other_view
    assert one.frames_CTHW.shape == (3, 6, 32, 32)
    assert np.array_equal(one.frames_CTHW, same.frames_CTHW)
    assert not np.array_equal(one.frames_CTHW, other.frames_CTHW)
    assert one.label == 1

"""The batch-wise augmentation by torch, on CPU tensors, against the clip-wise one of the data loading processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_operations import COLOURS, RANDAUG, SHIFTS, texture

from mgm_shared.errors import UserError
from mgm_shared.geometry import Box
from mgm_train.config import FinetuneConfig
from mgm_train.data.augmentation.augment import FinetuneAugment, noise_levels
from mgm_train.data.augmentation.device_augment import Changes, change_batch
from mgm_train.data.augmentation.operations import Operation, apply_operations, draw_operations
from mgm_train.data.clips import Clip, _sample, collate
from mgm_train.tasks.finetune import finetune_job

FRAMES_CTHW = texture(4, 48, 48)
PLAIN = FinetuneAugment(size_px=48, random_erasing=0.0)


def changed(clips: list[Any], changes: list[Changes]) -> Any:
    batch = {"frames_BCTHW": torch.from_numpy(np.stack(clips)), "changes_B": changes}
    return change_batch(batch, noise_levels)["frames_BCTHW"].numpy()


@pytest.mark.parametrize("operation", [*COLOURS, *SHIFTS], ids=str)
def test_an_operation_is_that_of_the_other_side(operation: Operation) -> None:
    """In a batch in which every second clip has it."""
    other = FRAMES_CTHW[:, ::-1].copy()
    changes = [Changes(operations=(operation,)), Changes(), Changes(operations=(operation,))]
    one, untouched, two = changed([FRAMES_CTHW, FRAMES_CTHW, other], changes)
    assert np.array_equal(untouched, FRAMES_CTHW)
    for ours, frames_CTHW in ((one, FRAMES_CTHW), (two, other)):
        difference = np.abs(ours.astype(int) - apply_operations(frames_CTHW, [operation]))
        assert difference.max() <= 1 or (difference > 1).mean() < 1e-3


def test_batches_of_drawn_operations_are_those_of_the_other_side() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_operations(RANDAUG, 48, rng) for _ in range(40)]
    ours = changed([FRAMES_CTHW] * 40, [Changes(operations=tuple(operations)) for operations in drawn])
    for clip_CTHW, operations in zip(ours, drawn, strict=True):
        difference = np.abs(clip_CTHW.astype(int) - apply_operations(FRAMES_CTHW, operations))
        assert np.median(difference) == 0, operations
        assert difference.mean() < 1.5, operations


def test_a_box_is_erased_with_noise_that_depends_on_the_seed_alone() -> None:
    box = Box(x=8, y=4, width=20, height=30)
    changes = [Changes(erased=box, noise_seed=seed) for seed in (1, 2, 1)]
    one, other, same = changed([FRAMES_CTHW] * 3, changes)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(changed([FRAMES_CTHW], changes[1:2])[0], other), "in another batch too"
    is_in_box_HW = np.zeros((48, 48), bool)
    is_in_box_HW[4:34, 8:28] = True
    assert np.array_equal(one[:, :, ~is_in_box_HW], FRAMES_CTHW[:, :, ~is_in_box_HW])
    noise_CTP = one[:, :, is_in_box_HW].astype(float)
    assert noise_CTP.mean((1, 2)) == pytest.approx([255 * mean for mean in (0.485, 0.456, 0.406)], abs=5)
    assert noise_CTP.std((1, 2)) == pytest.approx([55, 54, 54], abs=4)


@pytest.mark.parametrize("random_erasing", [0.0, 1.0])
def test_both_sides_draw_the_same(random_erasing: float) -> None:
    """What the worker leaves to the device is what it would have done itself, and later draws are the same."""
    clip = Clip(frames_CTHW=FRAMES_CTHW, motion_TYX2=np.zeros((4, 0, 0, 2), np.float32), label=1, sample_id="a")
    here = replace(PLAIN, random_erasing=random_erasing)
    for seed in range(20):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        done, left = here.finish(clip, rngs[0]), replace(here, is_on_device=True).finish(clip, rngs[1])
        assert rngs[0].random() == rngs[1].random()
        assert done.changes is None
        assert left.changes is not None
        assert np.array_equal(left.frames_CTHW, FRAMES_CTHW)
        (ours_CTHW,) = change_batch(collate([[_sample(left, 0)]]), noise_levels)["frames_BCTHW"].numpy()
        is_erased = random_erasing > 0
        assert (left.changes.erased is not None) == is_erased
        difference = np.abs(ours_CTHW.astype(int) - done.frames_CTHW)
        assert np.median(difference) <= is_erased * 40


def test_batches_without_changes_stay_the_same_object() -> None:
    batch = {"frames_BCTHW": torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8)}
    assert change_batch(batch, noise_levels) is batch


def test_the_option_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="augment-on is 'cuda' but must be auto or cpu with device cpu"):
        FinetuneConfig(augment_on="cuda", device="cpu")
    with pytest.raises(UserError, match="augment-on is cuda but torch sees no GPU"):
        finetune_job(tmp_path / "none", tmp_path, FinetuneConfig(augment_on="cuda"), None)  # type: ignore[arg-type]
    sides = [FinetuneAugment.of(FinetuneConfig(augment_on=where)).is_on_device for where in ("auto", "cpu", "cuda")]
    assert sides == [False, False, True]

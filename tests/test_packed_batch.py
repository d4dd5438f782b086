"""The shared memory of a worker's batches, which is used again."""

import time
from typing import Any

import pytest
import torch
from test_readers import STARTS
from toy import CPU, MovingStripes, process_server

from mgm_train.data import packed_batch
from mgm_train.data.loader import Plan, make_loader
from mgm_train.data.packed_batch import SharedRing, num_slots
from mgm_train.data.readers import reading

PLAN = Plan(num_videos=8, batch_size=2, grad_accum_steps=1, repeats=1, epochs=3, seed=0)


def test_the_memory_of_the_batch_before_last_comes_back() -> None:
    ring = SharedRing(3)
    places = []
    for number in range(7):
        ring.next_batch()
        frames, jpegs = ring.empty("frames", (2, 5)), ring.empty("jpegs", (4,))
        frames.fill_(number)
        jpegs.fill_(100 + number)
        assert frames.is_shared()
        assert frames.shape == (2, 5)
        assert frames.unique().tolist() == [number], "another name of the same batch has its own memory"
        places.append(frames.data_ptr())
    assert places[:3] == places[3:6]
    assert len(set(places)) == 3


def test_a_smaller_batch_takes_a_part_and_a_larger_one_takes_more() -> None:
    ring = SharedRing(1)
    first, part = ring.empty("frames", (4, 8)), ring.empty("frames", (1, 8))
    assert part.data_ptr() == first.data_ptr()
    assert part.shape == (1, 8)
    larger = ring.empty("frames", (9, 8))
    assert larger.untyped_storage().nbytes() == 72
    assert ring.empty("frames", (4, 8)).data_ptr() == larger.data_ptr()
    assert ring.empty("frames", (0, 8)).numel() == 0


def slowly(num_workers: int, start: str) -> list[list[bool]]:
    """For each batch whether it is what one process reads: when it comes, and after a while in which workers go on."""
    process_server()
    expected = list(make_loader(MovingStripes(), PLAN, 0, CPU, 0))
    same: list[list[bool]] = []
    with reading(make_loader(MovingStripes(), PLAN, 0, CPU, num_workers, start)) as batches:
        for batch, wanted in zip(batches, expected, strict=True):
            now = torch.equal(batch["frames_BCTHW"], wanted["frames_BCTHW"])
            time.sleep(0.1)
            same.append([now, torch.equal(batch["frames_BCTHW"], wanted["frames_BCTHW"])])
    return same


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(num_workers: int, start: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("mgm_train.data.loader.num_usable_cores", lambda: 2)
    assert slowly(num_workers, start) == [[True, True]] * 12


def test_with_one_slot_the_worker_would_write_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr(packed_batch, "num_slots", lambda is_pinned: 1)
    assert min(slowly(1, "fork")) != [True, True]


def test_batches_that_are_pinned_need_less_memory() -> None:
    assert (num_slots(is_pinned=True), num_slots(is_pinned=False)) == (2, 3)

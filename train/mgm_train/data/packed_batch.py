"""Batches on their way from a data loading worker to the training process: nothing that fails there is lost.

Their pixels lie in shared memory that the worker uses again, because fresh pages of it are slow.

A worker's queue pickles in a thread of its own. An error in that thread, such as full shared memory or too many open
files, is printed, the batch is dropped, and the training process waits for it forever. So a worker pickles each batch
in its main thread, whose errors reach the training process.
"""

import errno
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mgm_shared.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
# PyTorch's default: batches that each worker prepares ahead.
PREFETCH_FACTOR = 2

Allocate = Callable[[str, tuple[int, ...]], Tensor]
"""(name, shape) → an uninitialised uint8 tensor; a batch asks once for each name."""


def fresh(name: str, shape: tuple[int, ...]) -> Tensor:
    """Memory of this process. numpy asks the system for large pages, which saves a quarter of a test's time."""
    return torch.from_numpy(np.empty(shape, np.uint8))


def num_slots(is_pinned: bool) -> int:
    """The batches of a worker whose memory is in use at a time.

    A worker begins its batch n when the training process has taken batch n − 2 off the queue. If batches are pinned,
    which copies them, that one is free by then; if not, it is still in use.
    """
    return PREFETCH_FACTOR if is_pinned else PREFETCH_FACTOR + 1


class SharedRing:
    """Shared memory of a worker for its batches, used again in turn: the first touch of each page is slow.

    A batch of 36 MiB in fresh pages takes 30 ms longer. The system takes the memory back when the worker ends.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots, self.turn = num_slots, 0
        self.slots: dict[tuple[str, int], Tensor] = {}

    def next_batch(self) -> None:
        self.turn = (self.turn + 1) % self.num_slots

    def empty(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory for `name` of this batch, uint8; its content is that of an earlier batch."""
        place, num_bytes = (name, self.turn), math.prod(shape)
        if place not in self.slots or len(self.slots[place]) < num_bytes:
            # The old one is given back first.
            self.slots.pop(place, None)
            storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(num_bytes, device="cpu")
            self.slots[place] = torch.empty(0, dtype=torch.uint8).set_(storage)
        return self.slots[place][:num_bytes].view(shape)


class Packed:
    """A batch that a worker pickled in its main thread. Its tensors lie in shared memory."""

    def __init__(self, batch: object) -> None:
        self.pickled = bytes(ForkingPickler.dumps(batch))

    def unpack(self) -> Any:
        """The batch; only once, because its shared memory is handed over."""
        return ForkingPickler.loads(self.pickled)

    def pin_memory(self) -> Any:
        """For DataLoader's `pin_memory`: the batch, with tensors that a GPU can copy while it computes."""
        batch = self.unpack()
        return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}


@dataclass
class Packing:
    """A `collate_fn` that returns what another one does as `Packed`, in a worker. UserError without shared memory.

    `collate(samples, allocate)` puts what is large into the memory that it is given. A batch that is not pinned is
    valid until the next is asked for.
    """

    collate: Callable[[Any, Allocate], dict[str, Any]]
    is_pinned: bool = False
    ring: SharedRing | None = field(default=None, init=False)
    """Of this worker; each has its own copy of this object."""

    def __call__(self, samples: Any) -> Any:
        if get_worker_info() is None:
            return self.collate(samples, fresh)
        self.ring = self.ring or SharedRing(num_slots(self.is_pinned))
        self.ring.next_batch()
        try:
            return Packed(self.collate(samples, self.ring.empty))
        except (RuntimeError, OSError) as error:
            raise _explained(error, _num_bytes(samples)) from error


def _num_bytes(value: Any) -> int:
    """The size of all tensors in nested lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_num_bytes, value))
    parts = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return sum(map(_num_bytes, parts.values()))


def _explained(error: Exception, num_bytes: int) -> Exception:
    """A UserError for PyTorch's "unable to … file </torch_1_2>: No space left on device (28)", else the error.

    `num_bytes` is the size of the batch.
    """
    found = re.search(r"</torch_.*\((\d+)\)\s*$", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    if number in {errno.EMFILE, errno.ENFILE}:
        return UserError("too many open files in a data loading worker; lower batch-size, or raise `ulimit -n`")
    if number in {errno.ENOSPC, errno.ENOMEM, errno.EFBIG}:
        return UserError(
            f"a data loading worker cannot get shared memory for a batch of {num_bytes / 2**20:.1f} MiB "
            f"({os.strerror(number)}{_free_shared_memory()}); lower batch-size or num-workers, or enlarge it "
            "(docker run --shm-size 8g); num-workers 0 needs none"
        )
    return error


def _free_shared_memory() -> str:
    with suppress(OSError):
        about = os.statvfs(SHARED_MEMORY)
        free, size = (blocks * about.f_frsize / 2**20 for blocks in (about.f_bavail, about.f_blocks))
        return f"; {free:.1f} of {size:.1f} MiB of {SHARED_MEMORY} are free"
    return ""


def free_shared_bytes() -> float:
    """Bytes that are free in shared memory; infinite on systems without /dev/shm."""
    with suppress(OSError):
        about = os.statvfs(SHARED_MEMORY)
        return about.f_bavail * about.f_frsize
    return math.inf

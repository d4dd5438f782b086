"""How many data loading workers a process starts: what its share of the cores and of shared memory allows.

Batches wait in shared memory (/dev/shm) until the training process takes them. Where it is full, PyTorch fails in the
middle of a run, so the need is compared with what is free before the start.
"""

import math
import os
from dataclasses import dataclass

import torch

from mgm_shared.cores import num_usable_cores
from mgm_shared.errors import UserError
from mgm_train.config import Workers
from mgm_train.data.packed_batch import SHARED_MEMORY, free_shared_bytes, num_slots

# On a CPU the model computes on the same cores. A clip takes it far longer than reading takes.
CORES_PER_WORKER_ON_CPU = 4


@dataclass(frozen=True, kw_only=True)
class WorkerCount:
    """The number of workers of this process, and a line to print where it is not what one would expect."""

    number: int
    remark: str = ""


def local_world_size() -> int:
    """The number of processes that torchrun started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))


def auto_workers(device: torch.device, num_processes: int) -> int:
    """A process's share of the usable cores, of which one is left for itself; at least one worker."""
    share = num_usable_cores() // num_processes
    return max(1, share // CORES_PER_WORKER_ON_CPU if device.type == "cpu" else share - 1)


def count_workers(
    setting: Workers, batch_bytes: int, device: torch.device, num_processes: int | None = None
) -> WorkerCount:
    """The number of workers for `--num-workers`, whose batches must fit into shared memory.

    With auto there are fewer workers where memory is short. UserError for a number that was set and does not fit.

    Args:
        setting: The option.
        batch_bytes: Size of the batch that a worker hands over.
        device: Device of the model.
        num_processes: Training processes on this machine; by default those that torchrun started.
    """
    num_processes = num_processes or local_world_size()
    wanted = auto_workers(device, num_processes) if setting == "auto" else min(setting, num_usable_cores())
    num_batches = num_slots(is_pinned=device.type == "cuda")
    needed_bytes = batch_bytes * num_batches * num_processes
    free_bytes = free_shared_bytes()
    fitting = wanted if math.isinf(free_bytes) else min(wanted, int(free_bytes // max(1, needed_bytes)))
    if fitting == wanted:
        return WorkerCount(number=wanted)
    problem = (
        f"num-workers {wanted} needs {_gib(wanted * needed_bytes)} of shared memory ({num_batches} batches of "
        f"{_gib(batch_bytes)} for each worker), but {_gib(free_bytes)} of {SHARED_MEMORY} are free"
    )
    enlarge = f"enlarge it (docker run --shm-size {math.ceil(wanted * needed_bytes / 2**30) + 1}g)"
    if setting == "auto":
        return WorkerCount(number=fitting, remark=f"num-workers is {fitting}: {problem}; {enlarge} for more")
    raise UserError(f"{problem}; lower num-workers to {fitting}, or batch-size, or {enlarge}")


def clip_bytes(num_frames: int, image_px: int) -> int:
    """The bytes of a clip of uint8 RGB frames."""
    return 3 * num_frames * image_px**2


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2g} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"

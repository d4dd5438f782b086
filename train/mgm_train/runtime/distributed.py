"""The processes that train together: none but this one, or those that torchrun started.

A single process needs no process group, and makes none.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mgm_shared.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """Which process this is, of how many, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, is_true: bool) -> bool:
        """Whether it is true on any process. All processes must ask together."""
        if self.world_size == 1:
            return is_true
        return bool(self.sum(torch.tensor(float(is_true), device=self.device)) > 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[Distributed]:
    """This process among those that torchrun started (its WORLD_SIZE, RANK and LOCAL_RANK), or alone.

    `device` is auto, cpu or cuda; auto is a GPU where there is one. UserError when cuda is asked for and absent.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    place = _place(device, local_rank)
    if world_size == 1:
        yield Distributed(device=place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Distributed(device=place, rank=rank, world_size=world_size)
    finally:
        dist.destroy_process_group()


def _place(device: str, local_rank: int) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not has_gpu):
        return torch.device("cpu")
    if not has_gpu:
        raise UserError("device is cuda but torch sees no GPU; set device to cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"torchrun started more processes than there are GPUs ({torch.cuda.device_count()})")
    return torch.device("cuda", local_rank)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for float32. auto: bfloat16 on a GPU that has it, float32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if precision == "bf16" else None

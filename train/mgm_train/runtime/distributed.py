"""The processes that train together: this one alone, or those that torchrun started.

A single process creates no process group.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.runtime.peers import Peers, leave_broken_group

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """The rank of this process, the number of processes, and the device of this process."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, returned on each of them."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, is_true: bool) -> bool:
        """Whether it is true on any process. All processes must call it together."""
        if self.world_size == 1:
            return is_true
        return bool(self.sum(torch.tensor(float(is_true), device=self.device)) > 0)

    def gather(self, value: Result) -> list[Result]:
        """The values of all processes by their rank, returned on each of them. They are pickled."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """What `work` returns on the main process, None on the others; its UserError is raised on all of them."""
        result, failure = None, [""]
        if self.is_main:
            try:
                result = work()
            except UserError as error:
                failure = [str(error)]
        if self.world_size > 1:
            dist.broadcast_object_list(failure, device=self.device)
        if failure[0]:
            raise UserError(failure[0])
        return result

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.world_size > 1:
            dist.barrier()

    def wait_for_device(self) -> None:
        """Wait until the device of this process has done all that it was given, to measure time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[Distributed]:
    """Join the processes that torchrun started (WORLD_SIZE, RANK and LOCAL_RANK), or run alone.

    `device` is auto, cpu or cuda; auto is a GPU if there is one. UserError if cuda is asked for and there is none, and
    when another process has failed.
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
        with Peers(rank, world_size).watched():
            yield Distributed(device=place, rank=rank, world_size=world_size)
    except BaseException:
        leave_broken_group()
        raise
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


# GPUs from this compute capability on multiply float16 matrices in tensor cores (V100, T4), and run Triton's kernels.
VOLTA = (7, 0)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16, float16, or None for float32.

    auto: bfloat16 on a GPU that computes in it, float16 on an older one with tensor cores, float32 elsewhere.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        if not _is_bf16_emulated(device):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= VOLTA else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def precision_remark(precision: str, device: torch.device) -> str:
    """What to say where a GPU only emulates bfloat16, which is slower than float32; empty everywhere else."""
    if precision in ("fp16", "fp32") or not _is_bf16_emulated(device):
        return ""
    name = torch.cuda.get_device_name(device)
    if precision == "bf16":
        return f"warning: {name} only emulates bfloat16; --precision fp16 is faster, or fp32"
    if autocast_dtype(precision, device) is None:
        return f"{name} has no bfloat16 arithmetic: computing in float32"
    return (
        f"{name} has no bfloat16 arithmetic: computing in float16, with a loss that is scaled; --precision fp32 is "
        "slower and safer"
    )


def _is_bf16_emulated(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def is_compiled(setting: bool | str, device: str) -> bool:
    """Whether to compile the model, for the options `compile` and `device`; all processes find the same.

    auto: on a GPU for which Triton generates code, if Triton is installed.
    """
    if isinstance(setting, bool):
        return setting
    if device == "cpu" or not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability() >= VOLTA

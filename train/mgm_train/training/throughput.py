"""Measure loss, speed and the wait for data between two lines of metrics.jsonl.

Losses are summed on the device, so that no step waits for it.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mgm_train.runtime.distributed import Distributed


class Meter:
    """Sums since the last line. `loss_sum` and `num_micro_steps` are saved in last.pt for a resumed run."""

    def __init__(self, distributed: Distributed) -> None:
        self.distributed = distributed
        if distributed.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(distributed.device)
        self.loss_sum = torch.zeros((), device=distributed.device)
        self.part_sums: dict[str, Tensor] = {}
        self.num_micro_steps = 0
        self.num_steps = self.num_clips = 0
        self.flops: float | None = 0.0
        self.data_wait_s = 0.0
        self.start_s = time.perf_counter()

    def add_loss(self, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Add the mean loss of a micro-step of this process, and its parts by name."""
        self.loss_sum += loss.detach()
        for name, part in parts.items():
            self.part_sums[name] = self.part_sums.get(name, torch.zeros_like(self.loss_sum)) + part.detach()
        self.num_micro_steps += 1

    def add_step(self, num_clips: int, flops_per_clip: float | None = None) -> None:
        """Count a step with that many clips over all processes, and the operations of each, if they are known."""
        self.num_steps += 1
        self.num_clips += num_clips
        if flops_per_clip is None or self.flops is None:
            self.flops = None
        else:
            self.flops += num_clips * flops_per_clip

    def loss(self) -> float:
        """Mean loss over all micro-steps and processes; NaN before the first. All processes must call it together."""
        if self.num_micro_steps == 0:
            return math.nan
        return float(self.distributed.sum(self.loss_sum)) / (self.num_micro_steps * self.distributed.world_size)

    def parts(self) -> dict[str, float]:
        """`loss_NAME` of each part, a mean like `loss`; none for one part. All processes must call it together."""
        if len(self.part_sums) < 2:
            return {}
        num_losses = self.num_micro_steps * self.distributed.world_size
        return {f"loss_{name}": float(self.distributed.sum(part)) / num_losses for name, part in self.part_sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the sums of `state`."""
        self.loss_sum.fill_(state["loss_sum"])
        self.num_micro_steps = state["num_micro_steps"]
        device = self.distributed.device
        self.part_sums = {name: torch.tensor(part, device=device) for name, part in state.get("part_sums", {}).items()}

    def state(self) -> dict[str, Any]:
        """The sums, averaged over processes. All processes must call it together."""
        return {
            "loss_sum": float(self.distributed.sum(self.loss_sum)) / self.distributed.world_size,
            "num_micro_steps": self.num_micro_steps,
            "part_sums": {
                name: float(self.distributed.sum(part)) / self.distributed.world_size
                for name, part in self.part_sums.items()
            },
        }

    def pause(self, seconds: float) -> None:
        """Exclude time that was not spent on training."""
        self.start_s += seconds

    def exclude_start_up(self) -> float:
        """After the first step: exclude the wait for its first batch, in which workers start; returns it in seconds."""
        start_up_s = self.data_wait_s
        self.pause(start_up_s)
        self.data_wait_s = 0.0
        return start_up_s

    def speed(self, peak_flops_per_s: float) -> dict[str, Any]:
        """Speed for metrics.jsonl: throughput of all processes, wait and memory of this one.

        The wait is the time until a batch was there, per step and as a share; `mfu` is None where nobody counted the
        operations of a clip, `gpu_memory_gib`, the most that was used at a time, without a GPU.
        """
        duration_s = time.perf_counter() - self.start_s
        clips_per_s = self.num_clips / duration_s
        is_gpu = self.distributed.device.type == "cuda"
        return {
            "clips_per_s": clips_per_s,
            "data_wait": self.data_wait_s / duration_s,
            "data_wait_ms": 1e3 * self.data_wait_s / max(1, self.num_steps),
            "mfu": self.flops and self.flops / duration_s / (peak_flops_per_s * self.distributed.world_size),
            "gpu_memory_gib": torch.cuda.max_memory_allocated(self.distributed.device) / 2**30 if is_gpu else None,
        }


def time_left(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3.5 h, 2.1 days."""
    for limit_s, unit_s, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit_s:
            return f"{seconds / unit_s:.0f} {unit}" if unit != "h" else f"{seconds / unit_s:.1f} h"
    return f"{seconds / 86400:.1f} days"


def step_line(row: Mapping[str, Any], num_steps: int, left_s: float) -> str:
    """A row of metrics.jsonl as a line of text."""
    # Without a GPU the peak is a short measurement on shared cores, which means little.
    has_mfu = row["mfu"] is not None and row["gpu_memory_gib"] is not None
    mfu = f"MFU {row['mfu']:.0%} | " if has_mfu else ""
    return (
        f"step {row['step']}/{num_steps} | epoch {row['epoch']} | loss {row['loss']:.4f} | lr {row['lr']:.2e} | "
        f"grad {row['grad_norm']:.3f} | {row['clips_per_s']:.1f} clips/s | "
        f"waited for data {row['data_wait']:.0%} | {mfu}{time_left(left_s)} left"
    )

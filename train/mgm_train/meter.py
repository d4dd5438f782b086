"""What is measured between two lines of metrics.jsonl: loss, speed, and the time spent waiting for data.

Losses are added up on the device, so that no step waits for it.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mgm_train.ranks import Ranks


class Meter:
    """Sums since the last line. `loss_sum` and `num_parts` are saved in last.pt: a resumed run adds to them."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.loss_sum = torch.zeros((), device=ranks.device)
        self.num_parts = 0
        self.num_clips = 0
        self.data_wait_s = 0.0
        self.start_s = time.perf_counter()

    def add_loss(self, loss: Tensor) -> None:
        """The mean loss of one part of a step, on this process."""
        self.loss_sum += loss.detach()
        self.num_parts += 1

    def loss(self) -> float:
        """Mean over all parts and processes; nan before the first. All processes must ask together."""
        if self.num_parts == 0:
            return math.nan
        return float(self.ranks.sum(self.loss_sum)) / (self.num_parts * self.ranks.num_ranks)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of `state`."""
        self.loss_sum.fill_(state["loss_sum"])
        self.num_parts = state["num_parts"]

    def state(self) -> dict[str, Any]:
        """The sums, as the mean over processes. All processes must ask together."""
        return {"loss_sum": float(self.ranks.sum(self.loss_sum)) / self.ranks.num_ranks, "num_parts": self.num_parts}

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent training."""
        self.start_s += seconds

    def speed(self) -> dict[str, float]:
        """Clips a second over all processes, and the share of the time that this one waited for its data."""
        duration_s = time.perf_counter() - self.start_s
        return {"clips_per_s": self.num_clips / duration_s, "data_wait": self.data_wait_s / duration_s}


def step_line(row: Mapping[str, Any], num_steps: int, left_s: float) -> str:
    """A row of metrics.jsonl for people."""
    left = f"{left_s / 60:.0f} min left" if left_s > 90 else f"{left_s:.0f} s left"
    return (
        f"step {row['step']}/{num_steps} | epoch {row['epoch']} | loss {row['loss']:.4f} | lr {row['lr']:.2e} | "
        f"grad {row['grad_norm']:.3f} | {row['clips_per_s']:.1f} clips/s | "
        f"waited for data {row['data_wait']:.0%} | {left}"
    )

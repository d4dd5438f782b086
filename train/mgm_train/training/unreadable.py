"""The videos that could not be read during a run: named, counted over all processes, and too many of them end it.

A blank clip stands in the place of each (`clips.py`) and has no share in the loss (`objective.py`), so what the others
teach does not depend on it, nor on the number of workers and processes.
"""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from mgm_shared.errors import UserError
from mgm_train.runtime.distributed import Distributed


class UnreadableVideos:
    """video_id → reason, since the run began: `known` is what an earlier process of it had found."""

    def __init__(self, distributed: Distributed, num_allowed: int, known: Mapping[str, str]) -> None:
        self.distributed = distributed
        self.num_allowed = num_allowed
        self.reason_of = dict(known)
        self._new: dict[str, str] = {}

    def note(self, batch: Mapping[str, Any]) -> None:
        """Take up what `collate` says of this process's batch."""
        self._new |= batch.get("unreadable", {})

    def gather(self) -> dict[str, str]:
        """Those that all processes have found since the last call and never before; they must ask together.

        UserError when there are now more than allowed.
        """
        found = self._new
        if self.distributed.world_size > 1:
            of_rank: list[Any] = [None] * self.distributed.world_size
            dist.all_gather_object(of_rank, found)
            found = {video_id: reason for of_one in of_rank for video_id, reason in of_one.items()}
        new = {video_id: found[video_id] for video_id in sorted(found) if video_id not in self.reason_of}
        self.reason_of |= new
        self._new = {}
        if new and len(self.reason_of) > self.num_allowed:
            video_id, reason = next(iter(new.items()))
            raise UserError(
                f"{len(self.reason_of)} videos cannot be read, {self.num_allowed} may be (max-unreadable-videos); "
                f"the last is {video_id!r}: {reason}"
            )
        return new

"""Count the videos that cannot be read during a run, over all processes; too many of them end it.

A blank clip takes the place of each (`clips.py`) and has no weight in the loss (`losses.py`). The gradients of the
others depend neither on it nor on the number of workers and processes.
"""

from collections.abc import Mapping
from typing import Any

from mgm_shared.errors import UserError
from mgm_train.runtime.distributed import Distributed


class UnreadableVideos:
    """The unreadable videos of a run, video_id → reason; `known` are those of its earlier starts."""

    def __init__(self, distributed: Distributed, num_allowed: int, known: Mapping[str, str]) -> None:
        self.distributed = distributed
        self.num_allowed = num_allowed
        self.reason_of = dict(known)
        self._new: dict[str, str] = {}

    def note(self, batch: Mapping[str, Any]) -> None:
        """Add the unreadable videos of a batch of this process."""
        self._new |= batch.get("unreadable", {})

    def gather(self) -> dict[str, str]:
        """The videos that any process found since the last call. All processes must call it together.

        UserError if there are more than allowed.
        """
        of_rank = self.distributed.gather(self._new)
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

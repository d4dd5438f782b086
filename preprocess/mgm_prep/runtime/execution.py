"""Where the work of a command runs, and who hears of its progress."""

import os
from dataclasses import dataclass

from mgm_shared.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to execute a command that works on many videos.

    By default everything runs in this process, silently.
    """

    workers: int = 0
    """Number of local worker processes; 0 runs in this process."""
    scheduler: str | None = None
    """Address or scheduler file of an existing Dask cluster, to use instead of local workers."""
    progress: Progress = SILENT
    """Hears of steps, of finished items, and of what the user should know."""


def num_usable_cores() -> int:
    """The cores that this process may use."""
    # macOS and Windows have no affinity; Python 3.13 has one function for all systems.
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

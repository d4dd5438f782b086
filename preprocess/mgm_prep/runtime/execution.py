"""How a command is executed: where its work runs, and where its progress is reported."""

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
    """Receives the steps, the finished items, and messages for the user."""

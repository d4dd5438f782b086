"""Tasks of the cluster: the videos that one worker opens, and what is retried after a worker died."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from mgm_prep.extraction.failures import Failure
from mgm_prep.runtime.crash_journal import convicted
from mgm_prep.sources.discover import Source
from mgm_prep.sources.names import text_of
from mgm_shared.storage import StorePath

AnyTask = TypeVar("AnyTask", bound="Task")


# Of this many pairs of dead workers a task may be the cause before something else must be wrong.
MAX_DEATHS = 20


@dataclass(frozen=True, kw_only=True)
class Task:
    """Videos that one worker opens, in order."""

    name: str
    sources: tuple[Source, ...]
    rejected: tuple[Failure, ...] = ()
    """Videos that belonged to it and are known to be unreadable."""


def after_deaths(store: StorePath) -> Callable[[AnyTask], AnyTask]:
    """What to try instead of a task that ended two workers. RuntimeError when that goes on and on."""
    deaths: Counter[str] = Counter()

    def without_killer(task: AnyTask) -> AnyTask:
        deaths[task.name] += 1
        if deaths[task.name] > MAX_DEATHS:
            raise RuntimeError(
                f"workers keep dying at {task.name}; the rest is done, and run the same command again to continue"
            )
        return _without_killer(task, store)

    return without_killer


def _without_killer(task: AnyTask, store: StorePath) -> AnyTask:
    """The task without the video that ended two of its workers, which is rejected; as it is when there is none."""
    causes = convicted(store, task.name)
    rejected = tuple(
        Failure(
            video_id=source.video_id,
            path=text_of(str(source.path)),
            reason=f"decoding it ended the worker process, twice ({causes[source.video_id]})",
            exception="KilledWorker",
        )
        for source in task.sources
        if source.video_id in causes
    )
    sources = tuple(source for source in task.sources if source.video_id not in causes)
    return replace(task, sources=sources, rejected=task.rejected + rejected)

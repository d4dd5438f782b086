"""What the steps of a command share: the videos of one task, and the job that runs the tasks."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from mgm_prep.extraction.failures import Failure
from mgm_prep.runtime.cluster import Cluster
from mgm_prep.runtime.crash_journal import deadly_videos
from mgm_prep.sources.discover import Source
from mgm_prep.sources.names import text_of
from mgm_shared.lock import CheckLock
from mgm_shared.progress import Progress
from mgm_shared.storage import StorePath

# A task may end so many pairs of workers before something other than its videos must be the cause.
MAX_DEATHS_PER_TASK = 20


@dataclass(frozen=True, kw_only=True)
class Task:
    """Videos that one worker opens, in order."""

    name: str
    sources: tuple[Source, ...]
    rejected: tuple[Failure, ...] = ()
    """Videos that belong to the task and are known to be unreadable."""


AnyTask = TypeVar("AnyTask", bound=Task)
Place = TypeVar("Place", bound=StorePath)
Settings = TypeVar("Settings")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Place, Settings]):
    """What every step of a running command works with."""

    place: Place
    """The store, or the folder of copies. It is locked."""
    settings: Settings
    cluster: Cluster
    progress: Progress
    check_lock: CheckLock

    def map(self, function: Callable[[AnyTask, Place, Settings], Result], tasks: Iterable[AnyTask]) -> Iterator[Result]:
        """Yield `function(task, place, settings)` for each task, in order of completion.

        A video that ends two workers is rejected, and its task is tried again without it. RuntimeError when workers
        keep dying; UserError when another process took the lock.
        """
        retried = without_deadly_videos(self.place)
        for result in self.cluster.map(function, tasks, self.place, self.settings, after_deaths=retried):
            self.check_lock()
            yield result


def without_deadly_videos(place: StorePath) -> Callable[[AnyTask], AnyTask]:
    """A function that returns what to try instead of a task that ended two workers."""
    deaths: Counter[str] = Counter()

    def retried(task: AnyTask) -> AnyTask:
        deaths[task.name] += 1
        if deaths[task.name] > MAX_DEATHS_PER_TASK:
            raise RuntimeError(
                f"workers keep dying at {task.name}; the rest is done, and run the same command again to continue"
            )
        return _without(task, deadly_videos(place, task.name))

    return retried


def _without(task: AnyTask, causes: dict[str, str]) -> AnyTask:
    """The task without the videos of `causes`, which are rejected; the same task when there are none."""
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

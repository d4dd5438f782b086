"""Videos that are rejected: a row of failures.jsonl each. And tasks, which go on without them."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from mgm_prep.sources import Source
from mgm_prep.strikes import convicted
from mgm_shared.schema import FAILURES_FILE
from mgm_shared.storage import StorePath, read_rows, write_rows

AnyTask = TypeVar("AnyTask", bound="Task")

# Of this many pairs of dead workers a task may be the cause before something else must be wrong.
MAX_DEATHS = 20


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A video that was rejected."""

    video_id: str
    path: str
    reason: str
    exception: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """Videos that one worker opens, in order."""

    name: str
    sources: tuple[Source, ...]
    rejected: tuple[Failure, ...] = ()
    """Videos that belonged to it and are known to be unreadable."""


def failure_of(source: Source, error: Exception) -> Failure:
    """The row that says why a video is not in the store."""
    return Failure(
        video_id=source.video_id,
        path=str(source.path),
        reason=str(error) or type(error).__name__,
        exception=type(error.__cause__ or error).__name__,
    )


def read_failures(store: StorePath) -> dict[str, Failure]:
    """The rejected videos of a store, by id."""
    return {row["video_id"]: Failure(**row) for row in read_rows(store / FAILURES_FILE)}


def write_failures(store: StorePath, failures: Iterable[Failure]) -> None:
    """Replace the list of rejected videos, sorted by id."""
    write_rows(store / FAILURES_FILE, map(asdict, sorted(failures, key=lambda failure: failure.video_id)))


def after_deaths(store: StorePath) -> Callable[[AnyTask], AnyTask]:
    """What to try instead of a task that ended two workers. RuntimeError when that goes on and on."""
    deaths: Counter[str] = Counter()

    def without_killer(task: AnyTask) -> AnyTask:
        deaths[task.name] += 1
        if deaths[task.name] > MAX_DEATHS:
            raise RuntimeError(
                f"workers keep dying at {task.name}; the rest is done, and the same command goes on from there"
            )
        return _without_killer(task, store)

    return without_killer


def _without_killer(task: AnyTask, store: StorePath) -> AnyTask:
    """The task without the video that ended two of its workers, which is rejected; as it is when there is none."""
    causes = convicted(store, task.name)
    rejected = tuple(
        Failure(
            video_id=source.video_id,
            path=str(source.path),
            reason=f"decoding it ended the worker process, twice ({causes[source.video_id]})",
            exception="KilledWorker",
        )
        for source in task.sources
        if source.video_id in causes
    )
    sources = tuple(source for source in task.sources if source.video_id not in causes)
    return replace(task, sources=sources, rejected=task.rejected + rejected)

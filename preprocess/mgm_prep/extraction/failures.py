"""Videos that are rejected: a row of failures.jsonl each. And tasks, which go on without them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from mgm_prep.sources.discover import Source
from mgm_prep.sources.names import text_of
from mgm_shared.schema import FAILURES_FILE
from mgm_shared.storage import StorePath, read_rows, write_rows


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A video that was rejected."""

    video_id: str
    path: str
    reason: str
    exception: str


def failure_of(source: Source, error: Exception) -> Failure:
    """The row that says why a video is not in the store."""
    return Failure(
        video_id=source.video_id,
        path=text_of(str(source.path)),
        reason=str(error) or type(error).__name__,
        exception=type(error.__cause__ or error).__name__,
    )


def read_failures(store: StorePath) -> dict[str, Failure]:
    """The rejected videos of a store, by id."""
    return {row["video_id"]: Failure(**row) for row in read_rows(store / FAILURES_FILE)}


def write_failures(store: StorePath, failures: Iterable[Failure]) -> None:
    """Replace the list of rejected videos, sorted by id."""
    write_rows(store / FAILURES_FILE, map(asdict, sorted(failures, key=lambda failure: failure.video_id)))

"""Rejected videos: each is a row of failures.jsonl."""

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
    """The file, as text (`names.py`)."""
    reason: str
    exception: str
    """Class of the error."""


def failure_of(source: Source, error: Exception) -> Failure:
    """The row that says why a video is not in the store."""
    return Failure(
        video_id=source.video_id,
        path=text_of(str(source.path)),
        reason=text_of(str(error)) or type(error).__name__,
        exception=type(error.__cause__ or error).__name__,
    )


def read_failures(store: StorePath) -> dict[str, Failure]:
    """The rejected videos of a store, by id."""
    return {row["video_id"]: Failure(**row) for row in read_rows(store / FAILURES_FILE)}


def write_failures(store: StorePath, failures: Iterable[Failure]) -> None:
    """Replace the list of rejected videos. The rows are sorted by id."""
    write_rows(store / FAILURES_FILE, map(asdict, sorted(failures, key=lambda failure: failure.video_id)))

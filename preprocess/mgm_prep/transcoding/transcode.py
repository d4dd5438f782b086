"""Copy a data set as H.264 whose motion vectors are exactly the paper's: each one leads to the frame before.

For data sets whose codec has no vectors, such as Something-Something's VP9, or whose encoder is unknown.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgm_prep.config import TranscodeSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.extraction.failures import Failure, failure_of, write_failures
from mgm_prep.extraction.part import REJECTED
from mgm_prep.extraction.tasks import Job
from mgm_prep.runtime.cluster import open_cluster
from mgm_prep.runtime.crash_journal import journal
from mgm_prep.runtime.execution import Execution
from mgm_prep.runtime.lock import locked
from mgm_prep.sources.discover import find_sources
from mgm_prep.transcoding.copies import Copy, hidden_copies, is_copy, plan_copies, write_copies
from mgm_prep.transcoding.encode import UNFINISHED_SUFFIX, encode, is_fatal, size_of_copy
from mgm_shared.errors import UserError
from mgm_shared.schema import UNFINISHED_DIR

HIDDEN = "its copy would overwrite another one: the file system ignores case in names; rename the video"
UNFINISHED_NAME = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(UNFINISHED_SUFFIX)}")


@dataclass(frozen=True, kw_only=True)
class TranscodeSummary:
    """The state of a data set's copies after a call."""

    out: str
    listed: int
    """Videos of the data set."""
    done: int
    """Videos that have their copy, made by this call or an earlier one."""
    failed: int
    """Videos that could not be transcoded: the rows of OUT/failures.jsonl."""
    transcoded_now: int


@dataclass(frozen=True, kw_only=True)
class TranscodePreview:
    """What `transcode` would do."""

    out: str
    listed: int
    done: int
    to_do: int
    outdated: int
    """Copies among `to_do` that are older than their video."""


def preview_transcode(videos: str | os.PathLike[str], out: str | os.PathLike[str]) -> TranscodePreview:
    """Compare a data set with its copies without opening a video. UserError as `transcode`."""
    copies = _planned(Path(videos), Path(out))
    due = [copy for copy in copies if _is_due(copy)]
    return TranscodePreview(
        out=str(out),
        listed=len(copies),
        done=len(copies) - len(due),
        to_do=len(due),
        outdated=sum(is_copy(copy.target) for copy in due),
    )


def transcode(
    videos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: TranscodeSettings | None = None,
    execution: Execution | None = None,
) -> TranscodeSummary:
    """Write an H.264 copy of every video that has none, or an older one, below the folder `out`.

    A copy has the path of its video below `videos`, with the suffix .mp4; OUT/copies.jsonl lists them (`copies.py`).

    Args:
        videos: A folder of videos, or a list file.
        out: Folder of the copies.
        settings: Size and quality of the copies.
        execution: Workers and progress. By default everything runs silently in this process.

    UserError for a data set without videos, an `out` that lies within it, or a listed video that would lead out of it.
    A video that cannot be transcoded is no error: it is counted as failed, its reason is in OUT/failures.jsonl, and the
    next call tries it again.
    """
    settings, execution, folder = settings or TranscodeSettings(), execution or Execution(), Path(out)
    copies = _planned(Path(videos), folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as check_lock:
        _tidy(folder)
        write_copies(copies, folder)
        failures = [failure_of(copy.sources[0], Unreadable(HIDDEN)) for copy in hidden_copies(copies, folder)]
        hidden = {failure.video_id for failure in failures}
        due = [copy for copy in copies if copy.sources[0].video_id not in hidden and _is_due(copy)]
        try:
            with open_cluster(execution) as cluster:
                job = Job(
                    place=folder,
                    settings=settings,
                    cluster=cluster,
                    progress=execution.progress,
                    check_lock=check_lock,
                )
                for failed in _transcode_all(job, due):
                    failures += failed
        finally:
            _tidy(folder)
            write_failures(folder, failures)
    failed_ids = {failure.video_id for failure in failures}
    done = [copy for copy in copies if copy.sources[0].video_id not in failed_ids and is_copy(copy.target)]
    return TranscodeSummary(
        out=str(folder),
        listed=len(copies),
        done=len(done),
        failed=len(failures),
        transcoded_now=len(due) - len(failed_ids - hidden),
    )


def transcode_one(copy: Copy, out: Path, settings: TranscodeSettings) -> list[Failure]:
    """Write one copy, whole or not at all: one task of the cluster. Returns its failures, none or one."""
    for source in copy.sources:
        try:
            with journal(out, copy.name, settings.max_seconds) as notes:
                notes.opening(source.video_id)
                size = size_of_copy(source.path, settings)
            encode(source.path, size, copy.target, settings)
        except (Unreadable, *REJECTED) as error:
            if is_fatal(error):
                raise
            return [failure_of(source, error)]
    return list(copy.rejected)


def _planned(videos: Path, out: Path) -> list[Copy]:
    if out.absolute().is_relative_to(videos.absolute()):
        raise UserError(f"{out} lies within {videos}, so the next call would transcode the copies")
    return plan_copies(find_sources(videos).sources, out)


def _transcode_all(job: Job[Path, TranscodeSettings], due: Sequence[Copy]) -> Iterator[list[Failure]]:
    """The failures of each copy, in the order in which the copies are done."""
    job.progress.start("transcoding", len(due), "video")
    num_failed = 0
    for failures in job.map(transcode_one, due):
        num_failed += len(failures)
        job.progress.advance(failed=num_failed)
        yield failures


def _is_due(copy: Copy) -> bool:
    """Whether there is no copy, or one that is older than its video."""
    if not is_copy(copy.target):
        return True
    try:
        return copy.sources[0].path.stat().st_mtime > copy.target.stat().st_mtime
    except (OSError, ValueError):
        # The video is gone; its copy is kept.
        return False


def _tidy(out: Path) -> None:
    """Delete what runs that were killed have left."""
    shutil.rmtree(out / UNFINISHED_DIR, ignore_errors=True)
    for file in out.rglob(f".*{UNFINISHED_SUFFIX}"):
        if UNFINISHED_NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)

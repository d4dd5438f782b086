"""Crash journal: records the video being decoded, so that one that ends two workers can be rejected.

A decoder that crashes ends its process. Dask reports which task was lost, but not at which of its videos. One death may
have any cause; a second death at the same video is taken for the video's fault.
"""

import faulthandler
import json
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from mgm_prep.runtime.cluster import is_expendable, keep_freed_memory, settle
from mgm_shared.objects import Url
from mgm_shared.schema import UNFINISHED_DIR
from mgm_shared.storage import StorePath, file_names, read_bytes, remove, write_bytes

SUFFIX = ".opening"
MAX_DEATHS_PER_VIDEO = 2
# The decoder stops a video that keeps yielding frames after its time; so much later it must be stuck inside one call.
GRACE_S = 60


class Journal:
    """The record of one task: a file that holds the id of the video that the task has open."""

    def __init__(self, file: TextIO, shared: Url | None, max_seconds: int) -> None:
        self._file = file
        self._shared = shared
        self._max_seconds = max_seconds if is_expendable() else 0

    def opening(self, video_id: str) -> None:
        """Record that the decoder gets this video next. A worker that still decodes it long after its time is ended."""
        if self._max_seconds:
            # Before the record changes: this waits for a traceback that is being written and that ends this process.
            # Otherwise the record would name the next video.
            faulthandler.cancel_dump_traceback_later()
        line = json.dumps(video_id) + "\n"
        if self._shared:
            write_bytes(self._shared, f"{line}killed or crashed".encode())
        self._file.seek(0)
        self._file.truncate()
        self._file.write(line)
        self._file.flush()
        if self._max_seconds:
            # A C thread that needs no GIL: nothing else can act while a decoder does not return.
            faulthandler.dump_traceback_later(self._max_seconds + GRACE_S, exit=True, file=self._file)


@contextmanager
def journal(store: StorePath, task: str, max_seconds: int) -> Iterator[Journal]:
    """Open the journal of a task; the record is deleted afterwards, unless this process dies.

    After a crash, the record also holds what faulthandler wrote about it. Its name is unique to this call, because Dask
    may start a task again while the first try is still running elsewhere.
    """
    record = store / UNFINISHED_DIR / f"{task}-{uuid.uuid4().hex}{SUFFIX}"
    with _opened(record) as file:
        shared = _shared(record, task)
        was_enabled = faulthandler.is_enabled()
        if is_expendable():
            settle()
            keep_freed_memory()
            faulthandler.enable(file)
        try:
            yield Journal(file, shared, max_seconds)
        finally:
            if is_expendable():
                faulthandler.cancel_dump_traceback_later()
                faulthandler.disable()
                if was_enabled:
                    faulthandler.enable(sys.stderr)
            remove(record)


@contextmanager
def _opened(record: StorePath) -> Iterator[TextIO]:
    """The record; behind a URL a local file instead, since faulthandler can write to no other."""
    if isinstance(record, Url):
        with tempfile.TemporaryFile("w") as file:
            yield file
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("w") as file:
        yield file


def _shared(record: StorePath, task: str) -> Url | None:
    """The object that tells other processes which video is open, where the record is a local file.

    Each update of it is a request, which takes as long as a short video. So the first try of a task creates the object
    and does not name its videos, and its death is counted against none; tries after a death name them.
    """
    if not isinstance(record, Url):
        return None
    is_retry = any(name.startswith(f"{task}-") for name in file_names(record.parent))
    write_bytes(record, b"")
    return record if is_retry else None


def deadly_videos(store: StorePath, task: str) -> dict[str, str]:
    """The videos at which two workers of the task died, with the cause of death. Their records are deleted."""
    records: dict[str, list[StorePath]] = defaultdict(list)
    causes: dict[str, str] = {}
    for name in file_names(store / UNFINISHED_DIR):
        if not (name.startswith(f"{task}-") and name.endswith(SUFFIX)):
            continue
        record = store / UNFINISHED_DIR / name
        first, *rest = read_bytes(record).decode(errors="replace").splitlines() or [""]
        try:
            video_id = json.loads(first)
        except ValueError:
            # No video was open yet, or the machine stopped while this was written: it counts against no video.
            remove(record)
            continue
        records[video_id].append(record)
        # The first line of faulthandler says what happened; a process that was killed leaves none.
        causes[video_id] = next(filter(None, rest), "killed").rstrip("!").removeprefix("Fatal Python error: ")
    found = sorted(video_id for video_id in records if len(records[video_id]) >= MAX_DEATHS_PER_VIDEO)
    for video_id in found:
        for record in records[video_id]:
            remove(record)
    return {video_id: causes[video_id] for video_id in found}

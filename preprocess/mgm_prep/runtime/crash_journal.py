"""At which video a worker was when it died: written down before the decoder gets it, read after the death.

A decoder that crashes takes its process with it, and Dask tells which task that was and no more. One death may have any
cause, a second one at the same video convicts it.
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
STRIKES = 2
# A video that keeps yielding pictures is stopped by decode.py; this much later it must be stuck inside one call.
GRACE_S = 60


class Journal:
    """The video that a task has open, in a file named for the task beside the store's unfinished parts."""

    def __init__(self, file: TextIO, shared: Url | None, max_seconds: int) -> None:
        self._file = file
        self._shared = shared
        self._max_seconds = max_seconds if is_expendable() else 0

    def opening(self, video_id: str) -> None:
        """Call it before the decoder sees the video. A worker that is still at it long after its time is ended."""
        if self._max_seconds:
            # It waits for a traceback that is being written, and with which this process ends: at the video before.
            faulthandler.cancel_dump_traceback_later()
        line = json.dumps(video_id) + "\n"
        if self._shared:
            write_bytes(self._shared, f"{line}killed or crashed".encode())
        self._file.seek(0)
        self._file.truncate()
        self._file.write(line)
        self._file.flush()
        if self._max_seconds:
            # A thread of C's, which needs no GIL: the one thing that can still act when a decoder never returns.
            faulthandler.dump_traceback_later(self._max_seconds + GRACE_S, exit=True, file=self._file)


@contextmanager
def journal(store: StorePath, task: str, max_seconds: int) -> Iterator[Journal]:
    """A journal that is gone afterwards, unless this process died; then what faulthandler saw of it is added.

    The file's name is the call's own: Dask may start a task again while the first try is still running somewhere.
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
    """The record itself; behind a URL a file of this machine, since faulthandler can write to no other."""
    if isinstance(record, Url):
        with tempfile.TemporaryFile("w") as file:
            yield file
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("w") as file:
        yield file


def _shared(record: StorePath, task: str) -> Url | None:
    """Where to tell others at which video we are, when that is not the file itself.

    Behind a URL each telling is a request, as long as a short video takes. So the first try says only that it was
    there, and its deaths blame nobody; those after a death name the video.
    """
    if not isinstance(record, Url):
        return None
    is_retry = any(name.startswith(f"{task}-") for name in file_names(record.parent))
    write_bytes(record, b"")
    return record if is_retry else None


def convicted(store: StorePath, task: str) -> dict[str, str]:
    """The videos at which the task's workers died twice, with what ended them; their records are removed."""
    strikes: dict[str, list[StorePath]] = defaultdict(list)
    causes: dict[str, str] = {}
    for name in file_names(store / UNFINISHED_DIR):
        if not (name.startswith(f"{task}-") and name.endswith(SUFFIX)):
            continue
        record = store / UNFINISHED_DIR / name
        first, *rest = read_bytes(record).decode(errors="replace").splitlines() or [""]
        try:
            video_id = json.loads(first)
        except ValueError:
            # Nothing was open yet, or the machine went down while this was written: it blames nobody.
            remove(record)
            continue
        strikes[video_id].append(record)
        # faulthandler's first line says what happened; an end by SIGKILL leaves none.
        causes[video_id] = next(filter(None, rest), "killed").rstrip("!").removeprefix("Fatal Python error: ")
    found = {video_id for video_id, records in strikes.items() if len(records) >= STRIKES}
    for video_id in found:
        for record in strikes[video_id]:
            remove(record)
    return {video_id: causes[video_id] for video_id in sorted(found)}

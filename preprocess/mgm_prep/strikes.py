"""At which video a worker was when it died: written down before the decoder gets it, read after the death.

A decoder that crashes takes its process with it, and Dask tells which task that was and no more. One death may have any
cause, a second one at the same video convicts it.
"""

import faulthandler
import json
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mgm_prep.cluster import is_expendable
from mgm_shared.schema import UNFINISHED_DIR

SUFFIX = ".opening"
STRIKES = 2
# A video that keeps yielding pictures is stopped by decode.py; this much later it must be stuck inside one call.
GRACE_S = 60


class Journal:
    """The video that a task has open, in a file named for the task beside the store's unfinished parts."""

    def __init__(self, file: TextIO, max_seconds: int) -> None:
        self._file = file
        self._max_seconds = max_seconds if is_expendable() else 0

    def opening(self, video_id: str) -> None:
        """Call it before the decoder sees the video. A worker that is still at it long after its time is ended."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(video_id) + "\n")
        self._file.flush()
        if self._max_seconds:
            # A thread of C's, which needs no GIL: the one thing that can still act when a decoder never returns.
            faulthandler.dump_traceback_later(self._max_seconds + GRACE_S, exit=True, file=self._file)


@contextmanager
def journal(store: Path, task: str, max_seconds: int) -> Iterator[Journal]:
    """A journal that is gone afterwards, unless this process died; then what faulthandler saw of it is added.

    The file's name is the call's own: Dask may start a task again while the first try is still running somewhere.
    """
    directory = store / UNFINISHED_DIR
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{task}-{uuid.uuid4().hex}{SUFFIX}"
    with path.open("w") as file:
        was_enabled = faulthandler.is_enabled()
        if is_expendable():
            faulthandler.enable(file)
        try:
            yield Journal(file, max_seconds)
        finally:
            if is_expendable():
                faulthandler.cancel_dump_traceback_later()
                faulthandler.disable()
                if was_enabled:
                    faulthandler.enable(sys.stderr)
            path.unlink(missing_ok=True)


def convicted(store: Path, task: str) -> dict[str, str]:
    """The videos at which the task's workers died twice, with what ended them; their records are removed."""
    strikes: dict[str, list[Path]] = defaultdict(list)
    causes: dict[str, str] = {}
    for record in sorted((store / UNFINISHED_DIR).glob(f"{task}-*{SUFFIX}")):
        first, *rest = record.read_text(errors="replace").splitlines() or [""]
        if not first:
            record.unlink()
            continue
        video_id = json.loads(first)
        strikes[video_id].append(record)
        # faulthandler's first line says what happened; an end by SIGKILL leaves none.
        causes[video_id] = next(filter(None, rest), "killed").rstrip("!").removeprefix("Fatal Python error: ")
    found = {video_id for video_id, records in strikes.items() if len(records) >= STRIKES}
    for video_id in found:
        for record in strikes[video_id]:
            record.unlink()
    return {video_id: causes[video_id] for video_id in sorted(found)}

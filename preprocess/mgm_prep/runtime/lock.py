"""The lock of a store: one command at a time may write to it, since two would overwrite each other's plan.

A local store is locked as any directory is (see `mgm_shared.lock`). Behind a URL the lock is an object that only one
process can create. Its owner rewrites it every few seconds; an object that does not change was left by a process that
died. Clocks of different machines are never compared.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mgm_shared import objects
from mgm_shared.errors import UserError
from mgm_shared.lock import BEAT_S, LOCK_FILE, SILENT_BEATS, CheckLock, one_writer
from mgm_shared.objects import Url
from mgm_shared.processes import ProcessId
from mgm_shared.progress import SILENT, Progress
from mgm_shared.storage import StorePath


@contextmanager
def locked(store: StorePath, progress: Progress = SILENT) -> Iterator[CheckLock]:
    """Hold the lock of a store. UserError when another process holds it.

    Yields a function to call before each step that writes.
    """
    holding = _lease(store, progress) if isinstance(store, Url) else one_writer(store, progress.say)
    with holding as check_lock:
        yield check_lock


@contextmanager
def _lease(store: Url, progress: Progress) -> Iterator[CheckLock]:
    lease = Lease(store)
    lease.acquire(progress)
    beating = threading.Thread(target=lease.keep, daemon=True)
    beating.start()
    try:
        yield lease.check
    finally:
        lease.ended.set()
        beating.join()
        lease.release()


class Lease:
    """The lock of a store behind a URL."""

    def __init__(self, store: Url) -> None:
        self.store = store
        self.ended = threading.Event()
        self._lock = store / LOCK_FILE
        self._token = uuid.uuid4().hex
        self._num_beats = 0
        self._is_lost = False

    def acquire(self, progress: Progress) -> None:
        """Create the lock. Waits for a while if there is one already; UserError when its owner is alive."""
        for _ in range(2):
            try:
                objects.create(self._lock, self._content())
                return
            except FileExistsError:
                self._wait_for_silence(progress)
                objects.delete(self._lock)
        raise self._taken()

    def keep(self) -> None:
        """Rewrite the lock until `ended` is set."""
        while not self.ended.wait(BEAT_S) and not self._is_lost:
            # Without a network nothing is known; when it is back, the next beat finds out who has the lock.
            with suppress(UserError):
                self._is_lost = not self._is_there()
                if not self._is_lost:
                    self._num_beats += 1
                    objects.put(self._lock, self._content())

    def check(self) -> None:
        """Raise UserError when another process took the lock."""
        if self._is_lost:
            raise UserError(f"another command has locked {self.store}; run this one again when that is done")

    def release(self) -> None:
        """Release the lock."""
        # Without a network the lock stays, and the next command waits until it has proved dead.
        with suppress(UserError):
            if not self._is_lost and self._is_there():
                objects.delete(self._lock)

    def _content(self) -> bytes:
        record = {
            "token": self._token,
            "beat": self._num_beats,
            "owner": str(ProcessId.own()),
        }
        return json.dumps(record).encode()

    def _is_there(self) -> bool:
        return self._read().get("token") == self._token

    def _read(self) -> dict[str, object]:
        try:
            record: dict[str, object] = json.loads(objects.fetch_files([self._lock])[0])
        except (FileNotFoundError, ValueError):
            return {}
        return record

    def _wait_for_silence(self, progress: Progress) -> None:
        """Return when the lock's owner is dead or has released it. UserError when it is alive."""
        left = self._read()
        if not left:
            return
        wait_s = SILENT_BEATS * BEAT_S
        progress.say(f"{self._lock} belongs to {left.get('owner')}; waiting {wait_s:.0f} s to see whether it is alive")
        for _ in range(SILENT_BEATS):
            time.sleep(BEAT_S)
            now = self._read()
            if not now:
                return
            if now != left:
                raise self._taken(now)

    def _taken(self, record: dict[str, object] | None = None) -> UserError:
        owner = (record or self._read()).get("owner", "unknown")
        return UserError(f"another command ({owner}) is writing to {self.store}; wait for it, or stop it")

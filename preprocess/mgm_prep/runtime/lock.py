"""One command at a time may write to a store: two would undo each other's plan.

A local store is locked by the kernel, which lets go when the process ends, however it ends. Behind a URL the lock is
an object that only one of several can create; its owner rewrites it every few seconds, and one that stays as it is was
left by a process that is no more. No clock is compared with another machine's.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mgm_shared import objects
from mgm_shared.errors import UserError
from mgm_shared.objects import Url
from mgm_shared.storage import StorePath

LOCK_FILE = ".lock"
BEAT_S = 5.0
# A lock that has not been rewritten for so many beats has no owner any more.
SILENT_BEATS = 6

StillOurs = Callable[[], None]
"""UserError when another process has taken the store over, because this one was cut off for too long."""


@contextmanager
def locked(store: StorePath, say: Callable[[str], None] = lambda line: None) -> Iterator[StillOurs]:
    """Hold the store for oneself. UserError when another process has it.

    Call what it yields before each step that writes.
    """
    if isinstance(store, Url):
        with _lease(store, say) as still_ours:
            yield still_ours
        return
    with _kernel_lock(store):
        yield lambda: None


@contextmanager
def _kernel_lock(store: Path) -> Iterator[None]:
    store.mkdir(parents=True, exist_ok=True)
    lock = store / LOCK_FILE
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another command is writing to {store}; wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _lease(store: Url, say: Callable[[str], None]) -> Iterator[StillOurs]:
    lease = Lease(store)
    lease.acquire(say)
    beating = threading.Thread(target=lease.keep, daemon=True)
    beating.start()
    try:
        yield lease.still_ours
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

    def acquire(self, say: Callable[[str], None]) -> None:
        """Create the lock, after some waiting if a dead process has left one. UserError when its owner lives."""
        for _ in range(2):
            try:
                objects.create(self._lock, self._content())
                return
            except FileExistsError:
                self._wait_for_silence(say)
                objects.delete(self._lock)
        raise self._taken()

    def keep(self) -> None:
        """Rewrite the lock until `ended` is set."""
        while not self.ended.wait(BEAT_S) and not self._is_lost:
            # While the network is away nothing is known; when it is back, the next beat tells whether somebody came.
            with suppress(UserError):
                self._is_lost = not self._is_there()
                if not self._is_lost:
                    self._num_beats += 1
                    objects.put(self._lock, self._content())

    def still_ours(self) -> None:
        """UserError when it is not."""
        if self._is_lost:
            raise UserError(f"another command has taken {self.store} over; the same command again goes on after it")

    def release(self) -> None:
        """Give the store free."""
        # Without a network the lock stays, and the next command waits for a sign of its owner.
        with suppress(UserError):
            if not self._is_lost and self._is_there():
                objects.delete(self._lock)

    def _content(self) -> bytes:
        record = {
            "token": self._token,
            "beat": self._num_beats,
            "owner": f"process {os.getpid()} on {socket.gethostname()}",
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

    def _wait_for_silence(self, say: Callable[[str], None]) -> None:
        left = self._read()
        if not left:
            return
        say(f"{self._lock} is of {left.get('owner')}; waiting up to {SILENT_BEATS * BEAT_S:.0f} s for a sign of it")
        for _ in range(SILENT_BEATS):
            time.sleep(BEAT_S)
            now = self._read()
            if not now:
                return
            if now != left:
                raise self._taken(now)

    def _taken(self, record: dict[str, object] | None = None) -> UserError:
        owner = (record or self._read()).get("owner", "somebody")
        return UserError(f"another command ({owner}) is writing to {self.store}; wait for it, or stop it")

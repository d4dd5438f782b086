"""A folder has one writer at a time: two would overwrite or mix each other's files.

A lock file in the folder names its owner. The kernel holds the lock (flock), and releases it when the owner ends,
however it ends. Some network file systems have no such lock, or keep it to one machine. So the owner also rewrites the
file every few seconds: a file of another machine that does not change belongs to a process that is gone. No clock is
compared with another machine's.
"""

import errno
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mgm_shared.errors import UserError
from mgm_shared.processes import ProcessId

LOCK_FILE = ".lock"
BEAT_S = 5.0
# A lock that has not been rewritten for so many beats has no owner any more.
SILENT_BEATS = 6

CheckLock = Callable[[], None]
"""UserError when another process has taken the folder over, because this one was cut off for too long."""


@contextmanager
def one_writer(
    folder: Path, say: Callable[[str], None] = lambda line: None, name: str = LOCK_FILE
) -> Iterator[CheckLock]:
    """Make the folder and hold it for this process. UserError, which names the owner, when another process holds it.

    Call what it yields before writing something that must not be mixed with another process's. `say` hears why it has
    to wait. Writers of files that have nothing to do with each other may use locks of different `name`.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _FolderLock(folder, name)
    try:
        lock.acquire(say)
        beating = threading.Thread(target=lock.keep, name="lock", daemon=True)
        beating.start()
        try:
            yield lock.check_lock
        finally:
            lock.ended.set()
            beating.join()
            lock.release()
    finally:
        lock.close()
        if is_new:
            # A call that was stopped before it wrote anything leaves nothing behind.
            with suppress(OSError):
                folder.rmdir()


class _FolderLock:
    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / name, name
        # The folder may be renamed while it is locked.
        self._folder: int | None = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._file: int | None = None
        self._record = {"token": uuid.uuid4().hex, "owner": asdict(ProcessId.own())}
        self._num_beats = 0
        self._is_lost = False
        self.ended = threading.Event()
        # A forked child would keep the kernel's lock after this process was killed.
        os.register_at_fork(after_in_child=self.close)

    def acquire(self, say: Callable[[str], None]) -> None:
        """Lock the file, after some waiting if it belongs to another machine. UserError when it has an owner."""
        has_kernel_lock = self._open()
        left = self._read()
        is_free = _owner(left) is None or _has_ended(left) or (has_kernel_lock and _is_local(left))
        if not is_free:
            self._wait_for_silence(left, say)
        try:
            self._write()
        except OSError:
            os.unlink(self.name, dir_fd=self._folder)
            raise
        if not has_kernel_lock:
            # Another process may have found it free in the same moment; the last one to write has it.
            time.sleep(min(1.0, BEAT_S))
            if not self._is_own():
                raise self._taken(self._read())

    def _open(self) -> bool:
        """Open and lock the file; whether the kernel has locked it."""
        while True:
            self._file = os.open(self.name, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=self._folder)
            has_kernel_lock = self._lock_file()
            if self._is_in_place():
                return has_kernel_lock
            # Its owner has deleted it since it was opened.
            os.close(self._file)
            self._file = None

    def _lock_file(self) -> bool:
        """Whether the kernel has given the lock; False on file systems without it. UserError when it is taken."""
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._taken(self._read()) from None
            return False
        return True

    def _is_in_place(self) -> bool:
        assert self._file is not None
        try:
            return os.stat(self.name, dir_fd=self._folder).st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:
            return False

    def _wait_for_silence(self, left: dict[str, Any], say: Callable[[str], None]) -> None:
        say(f"{self.path} is of {_owner(left)}; waiting up to {SILENT_BEATS * BEAT_S:.0f} s for a sign of it")
        for _ in range(SILENT_BEATS):
            time.sleep(BEAT_S)
            now = self._read()
            if not now:
                return
            if now != left:
                raise self._taken(now)

    def keep(self) -> None:
        """Rewrite the file until `ended` is set."""
        while not self.ended.wait(BEAT_S) and not self._is_lost:
            # While a network file system is away nothing is known; the next beat tells whether somebody came.
            with suppress(OSError):
                self._is_lost = not self._is_own()
                if not self._is_lost:
                    self._num_beats += 1
                    self._write()

    def check_lock(self) -> None:
        """UserError when it is not."""
        if self._is_lost:
            raise UserError(
                f"another command has taken {self.path.parent} over; run the same command again when it is done"
            )

    def release(self) -> None:
        """Delete the lock file."""
        with suppress(OSError):
            if not self._is_lost and self._is_own():
                os.unlink(self.name, dir_fd=self._folder)

    def close(self) -> None:
        """Let the kernel's lock go."""
        descriptors, self._file, self._folder = (self._file, self._folder), None, None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)

    def _is_own(self) -> bool:
        return self._read().get("token") == self._record["token"]

    def _read(self) -> dict[str, Any]:
        """What the file says, {} where it says nothing. It is opened anew, so that NFS asks its server."""
        try:
            descriptor = os.open(self.name, os.O_RDONLY, dir_fd=self._folder)
        except FileNotFoundError:
            return {}
        with open(descriptor) as file:
            try:
                record = json.load(file)
            except ValueError:
                return {}
        return record if isinstance(record, dict) else {}

    def _write(self) -> None:
        assert self._file is not None
        # Every beat has the same length, so that a reader never sees a part of one.
        text = json.dumps({**self._record, "beat": f"{self._num_beats:012d}"})
        os.pwrite(self._file, text.encode(), 0)
        os.ftruncate(self._file, len(text))
        os.fsync(self._file)

    def _taken(self, record: dict[str, Any]) -> UserError:
        owner = _owner(record) or "somebody"
        return UserError(f"another command ({owner}) is writing to {self.path.parent}; wait for it, or stop it")


def _owner(record: dict[str, Any]) -> ProcessId | None:
    try:
        return ProcessId(**record["owner"])
    except (KeyError, TypeError):
        return None


def _is_local(record: dict[str, Any]) -> bool:
    owner = _owner(record)
    return owner is not None and owner.is_local


def _has_ended(record: dict[str, Any]) -> bool:
    owner = _owner(record)
    return owner is not None and owner.has_ended()

"""The data loading workers of a DataLoader: how they start, how their death is reported, how they end.

PyTorch ends its workers when the iterator is garbage collected or when Python exits. After an exception the traceback
keeps the iterator alive, and a worker that ignores SIGTERM then keeps the program from exiting. Here the workers end
with a `with` block, and each one also ends by itself as soon as its parent asks for it or dies.
"""

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from mgm_shared.errors import UserError
from mgm_train.data.clips import start_worker
from mgm_train.data.packed_batch import SHARED_MEMORY, Packed, free_shared_bytes
from mgm_train.runtime.signals import signals_put_off

# Enough for the semaphores of the queues.
MIN_SHARED_BYTES = 2**16
# A worker checks so often whether its parent still lives.
PARENT_CHECK_S = 1.0
# Idle workers end at once when asked politely; one that decodes is not waited for.
POLITE_S = 1.0
FORCED_S = 3.0

_ADVICE = {
    signal.SIGKILL: "probably because memory ran out; lower num-workers or batch-size",
    signal.SIGBUS: "probably because shared memory (/dev/shm) is full; lower num-workers or batch-size",
}
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


class ReaderDied(UserError):
    """A data loading worker ended before its work was done."""


def start_reader(worker_id: int) -> None:
    """For DataLoader's `worker_init_fn`: `start_worker`, and only the parent may end this process.

    A terminal sends Ctrl-C, and torchrun and SLURM send SIGTERM, to the whole process group. The training process then
    finishes its step, for which it still needs the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # PyTorch's handlers of these print a line of their own; the parent reports the signal.
    for number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # A signal that is blocked in all threads waits until one of them asks for it.
    blocking = signal.SIG_BLOCK if hasattr(signal, "sigtimedwait") else signal.SIG_UNBLOCK
    signal.pthread_sigmask(blocking, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent, os.getppid()), name="end with loader", daemon=True).start()
    start_worker(worker_id)


def _end_with(loader: BaseProcess, parent_pid: int) -> None:
    """Exit on a SIGTERM from the training process, `loader`, or when it is gone; ignore the SIGTERM of others."""
    # Two signs of its end, since each may be missing. Its pipe stays open in workers that were forked later. The parent
    # of a worker under forkserver is the server, which lives as long as any worker: each of them holds its pipe.
    while loader.is_alive() and os.getppid() == parent_pid:
        if _sender_of_sigterm(PARENT_CHECK_S) == loader.pid:
            break
    os._exit(0)


def _sender_of_sigterm(limit_s: float) -> int | None:
    """The process that sent a SIGTERM within `limit_s`, which must be blocked; None if there was none."""
    if not hasattr(signal, "sigtimedwait"):
        # macOS does not tell who sent a signal; there every SIGTERM ends a worker.
        time.sleep(limit_s)
        return None
    received = signal.sigtimedwait({signal.SIGTERM}, limit_s)
    return received.si_pid if received is not None else None


@contextmanager
def reading(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """The batches of a loader, whose workers end with the block, however it is left.

    A batch is valid until the next is asked for: then its worker may use its memory again. Reading a batch
    raises ReaderDied when a worker was killed or has exited.
    """
    others = set(multiprocessing.active_children())
    batches: Any = None
    readers: list[BaseProcess] = []
    sigchld = None
    try:
        try:
            with signals_put_off():
                batches = _start(loader)
        finally:
            readers = [child for child in multiprocessing.active_children() if child not in others]
        sigchld = _silence_sigchld()
        yield _checked(batches, readers)
    finally:
        _end(batches, readers)
        if sigchld is not None:
            signal.signal(signal.SIGCHLD, sigchld)


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    if loader.num_workers and free_shared_bytes() < MIN_SHARED_BYTES:
        # PyTorch would stop in the middle of its constructor, and print more errors when the half is collected.
        raise UserError(f"{SHARED_MEMORY} is full, and data loading workers need it; enlarge it, or take num-workers 0")
    try:
        return iter(loader)
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC}:
            raise
        raise UserError(
            f"cannot start {loader.num_workers} data loading workers: {error.strerror}; lower num-workers"
        ) from error


def _silence_sigchld() -> Any:
    """Take away PyTorch's SIGCHLD handler and return it.

    It raises wherever the program happens to be, also in the middle of saving. `_checked` looks after the workers.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _checked(batches: Iterator[Any], readers: Sequence[BaseProcess]) -> Iterator[Any]:
    while True:
        _raise_if_dead(readers)
        try:
            batch = next(batches)
            batch = batch.unpack() if isinstance(batch, Packed) else batch
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError):
            # What PyTorch raises when a worker died does not say how; nor do broken connections to it.
            _reap(readers)
            _raise_if_dead(readers)
            raise
        yield batch


def _reap(readers: Sequence[BaseProcess]) -> None:
    """Wait a moment for a worker whose connection broke to end, so that its exit code is known."""
    ended = wait([reader.sentinel for reader in readers], timeout=1.0) if readers else []
    for reader in readers:
        if reader.sentinel in ended:
            # The kernel closes the files of a process before it gives out its exit code.
            reader.join(FORCED_S)


def _raise_if_dead(readers: Sequence[BaseProcess]) -> None:
    for reader in readers:
        if reader.exitcode is not None:
            raise ReaderDied(f"a data loading worker (pid {reader.pid}) {how_it_ended(reader.exitcode)}")


def how_it_ended(exit_code: int) -> str:
    """What a process's exit code means, and what to do about it; negative codes are signals."""
    if exit_code >= 0:
        return f"exited with code {exit_code}; num-workers 0 shows what it does"
    try:
        number = signal.Signals(-exit_code)
    except ValueError:
        return f"was killed by signal {-exit_code}"
    if number in _FAULTS:
        return f"was killed by {number.name}, a fault in a library; num-workers 0 shows where"
    return f"was killed by {number.name}" + (f", {_ADVICE[number]}" if number in _ADVICE else "")


def _end(batches: Any, readers: Sequence[BaseProcess]) -> None:
    """End the workers and PyTorch's threads: politely, then by SIGTERM, which a worker obeys at once, then by SIGKILL.

    A worker that was killed may have held a lock or left half a message: nothing here waits without a limit.
    """
    if not readers:
        return
    polite = threading.Thread(target=_shut_down, args=(batches,), daemon=True)
    if batches is not None:
        polite.start()
        polite.join(POLITE_S)
    for end in (BaseProcess.terminate, BaseProcess.kill):
        for reader in readers:
            if reader.is_alive():
                end(reader)
        _join(readers, FORCED_S)
    if batches is not None:
        polite.join(POLITE_S)


def _shut_down(batches: Any) -> None:
    # Otherwise Python waits at exit until the queue's thread has written, for which it may need a dead worker's lock.
    batches._worker_result_queue.cancel_join_thread()
    batches._shutdown_workers()


def _join(readers: Sequence[BaseProcess], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    for reader in readers:
        reader.join(max(0.0, end_s - time.monotonic()))

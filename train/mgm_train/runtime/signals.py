"""Ctrl-C and SIGTERM in training: a request to stop after the current step, which data loading workers never see."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from mgm_shared.signals import StopRequest
from mgm_train.runtime.distributed import Distributed


def is_stop_agreed(stop: StopRequest, distributed: Distributed, is_meeting: bool) -> bool:
    """Whether any process was asked to stop. Several processes agree only where they meet anyway, `is_meeting`."""
    if distributed.world_size == 1:
        return stop.is_asked
    return is_meeting and distributed.any(stop.is_asked)


@contextmanager
def signals_put_off() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block, and block them in the processes started in it.

    Both may be sent to a whole process group: a process that is still loading its modules would die of it with a
    traceback, and the one that starts it would leave it half started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # It is started with the first process, and would unblock the signals for the thread that does it.
    resource_tracker.ensure_running()
    numbers = (signal.SIGINT, signal.SIGTERM)
    heard: list[int] = []
    # Both: children inherit what is blocked, but other threads of this process may still take the signal.
    handlers = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for received in heard:
        signal.raise_signal(received)

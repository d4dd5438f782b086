"""Ctrl-C and SIGTERM: a wish to stop, which the loop fulfils at the end of a step; readers never hear of it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from mgm_train.runtime.distributed import Distributed


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.is_asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Until the block ends, the first signal is noted here; a second Ctrl-C ends the program at once.

        Outside the main thread Python allows no signal handlers, and nothing is done.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        self.is_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def is_agreed(self, distributed: Distributed, is_meeting: bool) -> bool:
        """Whether any process was asked. Several agree only where they meet anyway, `is_meeting`."""
        if distributed.world_size == 1:
            return self.is_asked
        return is_meeting and distributed.any(self.is_asked)


@contextmanager
def signals_put_off() -> Iterator[None]:
    """A Ctrl-C or SIGTERM in this block is heard at its end, and stays blocked in the processes started in the block.

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

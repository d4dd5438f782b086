"""Handle Ctrl-C and SIGTERM where something must be finished first.

Python raises KeyboardInterrupt wherever the program happens to be: in the middle of starting a process, or inside a
callback, where it is lost. These functions note the signal instead, and the program stops at a place that it chooses.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.is_asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM until the block ends. A second Ctrl-C raises KeyboardInterrupt at once.

        Outside the main thread, where Python allows no signal handlers, the block changes nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if the process was asked to stop."""
        if self.is_asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: object) -> None:
        self.is_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_after_block() -> Iterator[StopRequest]:
    """Note signals until the block ends, then raise KeyboardInterrupt if there was one.

    The block may call `check` of what it gets, to stop earlier.
    """
    request = StopRequest()
    with request.listening():
        yield request
    request.check()


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block Ctrl-C in all threads started in this block, and in the processes that these threads start.

    A terminal sends Ctrl-C to all processes of a command. A worker that receives it dies while it answers.
    """
    # The resource tracker starts with the first process, and would unblock the signal for the thread that starts it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raise_on_sigterm() -> None:
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does. For programs; call it in the main thread.

    Dask and cluster managers stop a job with SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)

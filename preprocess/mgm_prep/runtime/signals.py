"""Ctrl-C and SIGTERM where something must be whole: noted, and obeyed between two steps.

Python raises KeyboardInterrupt wherever it is, also in the middle of starting a process, and inside a callback, where
it is lost. A part that is being decoded in this process can be dropped anywhere; a cluster cannot.
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

    def check(self) -> None:
        """KeyboardInterrupt when it was."""
        if self.is_asked:
            raise KeyboardInterrupt

    def note(self, number: int, frame: object) -> None:
        """A signal handler. A second Ctrl-C ends the program at once."""
        self.is_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def noting_signals() -> Iterator[StopRequest]:
    """Until the block ends signals are only noted, and raised then if nobody has asked for them.

    Outside the main thread, where Python allows no signal handlers, nothing is done.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    request.check()


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Threads that are started in this block, and the processes which these start, never see a Ctrl-C.

    A terminal sends it to all processes of a command. Workers that hear it die in the middle of their answer.
    """
    # It is started with the first process, and would unblock the signal for the thread that does it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

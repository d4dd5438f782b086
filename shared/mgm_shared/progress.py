"""How long work tells what it does: one small protocol for both stages.

A library call is silent unless it is given a `Progress`. The programs give it a `TerminalProgress`.
"""

import sys
from typing import Any, Protocol

from mgm_shared.printable import one_line


class Progress(Protocol):
    """What a caller hears of long work. Implement it to draw a bar, fill a log, or update a widget."""

    def start(self, description: str, total: int | None, unit: str) -> None:
        """A step of the work begins: `total` items, each called `unit`; None where the number is unknown."""

    def advance(self, count: int = 1, **details: object) -> None:
        """`count` more items are done; `details` are shown beside the bar, such as failed=3."""

    def say(self, line: str) -> None:
        """A line of text for the person who waits."""


class Silent:
    """A progress that shows nothing."""

    def start(self, description: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, count: int = 1, **details: object) -> None:
        pass

    def say(self, line: str) -> None:
        pass


SILENT: Progress = Silent()


class TerminalProgress:
    """Lines on stderr, and a progress bar where stderr is a terminal. Use it as a context manager.

    A quiet one shows nothing.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.is_quiet = is_quiet
        self._bar: Any = None

    def __enter__(self) -> "TerminalProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def start(self, description: str, total: int | None, unit: str) -> None:
        self._close()
        if sys.stderr.isatty() and not self.is_quiet:
            # Only now: a command that shows no bar need not wait for the import.
            from tqdm import tqdm

            self._bar = tqdm(desc=description, total=total, unit=unit, smoothing=0.1)

    def advance(self, count: int = 1, **details: object) -> None:
        if self._bar is not None:
            self._bar.update(count)
            self._bar.set_postfix({name: str(value) for name, value in details.items()})

    def say(self, line: str) -> None:
        if self.is_quiet:
            return
        if self._bar is not None:
            self._bar.clear()
        print(one_line(line), file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

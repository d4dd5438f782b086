"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file beside `path`, flush it to the disk, then rename it over `path`."""
    # One name, so that what a killed run left is overwritten by the next: whoever writes here holds a lock or is alone.
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        flush(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    flush(path.parent)

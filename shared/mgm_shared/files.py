"""Write files atomically: write a temporary file in the same folder, flush it to the disk, rename it."""

import os
from collections.abc import Callable
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
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

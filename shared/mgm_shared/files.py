"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


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


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, none when it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a .jsonl file: one object a line, keys sorted."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    replace_file(file, lambda beside: beside.write_text(text))

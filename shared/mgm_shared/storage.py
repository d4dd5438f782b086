"""Read and write the files of a store, wherever it lies: in a local directory or behind a URL.

Each function picks the backend of its path and calls the method of the same name; `store_files.py` describes them.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mgm_shared.local_files import LocalFiles
from mgm_shared.objects import Url
from mgm_shared.remote_files import RemoteFiles
from mgm_shared.store_files import ByteRange, StoreFiles

StorePath = Path | Url
PathLike = str | os.PathLike[str] | Url
"""What names a store in Python: a local path or a URL."""

LOCAL, REMOTE = LocalFiles(), RemoteFiles()


def is_url(path: str | StorePath) -> bool:
    """Whether a path is an address with a scheme."""
    return isinstance(path, Url) or "://" in str(path)


def backend(path: str | StorePath) -> StoreFiles[Any]:
    """The backend for a path of a store."""
    return REMOTE if is_url(path) else LOCAL


def store_path(text: PathLike) -> StorePath:
    """A local path, or a Url for an address with a scheme."""
    name = str(text)
    return Url(name.rstrip("/")) if is_url(name) else Path(name)


def read_ranges(ranges: Sequence[ByteRange]) -> Iterator[bytes]:
    """The bytes of each range, in order; fewer where the file ends early. All ranges are of one store."""
    return backend(ranges[0].path).read_ranges(ranges) if ranges else iter(())


def read_tail(path: str, length: int) -> bytes:
    """The last `length` bytes of a file, or all of a shorter one."""
    return backend(path).read_tail(path, length)


def read_bytes(path: StorePath) -> bytes:
    """A whole file. FileNotFoundError where there is none."""
    return backend(path).read_files([path])[0]


def read_files(paths: Sequence[StorePath]) -> list[bytes]:
    """Whole files of one store, behind a URL all at once. FileNotFoundError where one is missing."""
    return backend(paths[0]).read_files(paths) if paths else []


def write_bytes(path: StorePath, content: bytes) -> None:
    """Write or replace a file: it is whole, or as it was. Folders above it are made."""
    backend(path).write_bytes(path, content)


def read_rows(file: StorePath) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; none when the file is missing."""
    try:
        return [json.loads(line) for line in read_bytes(file).splitlines()]
    except FileNotFoundError:
        return []


def write_rows(file: StorePath, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a .jsonl file: one object a line, keys sorted."""
    write_bytes(file, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def is_file(path: StorePath) -> bool:
    """Whether there is a file."""
    return backend(path).is_file(path)


def folder_names(path: StorePath) -> list[str]:
    """The folders in a folder, sorted; none where it is missing."""
    return backend(path).names(path, "directory")


def file_names(path: StorePath) -> list[str]:
    """The files in a folder, sorted; none where it is missing."""
    return backend(path).names(path, "file")


def group_names(path: StorePath) -> list[str]:
    """The published Zarr groups in a folder, sorted; none where it is missing."""
    return backend(path).group_names(path)


def file_version(path: StorePath) -> int:
    """A number that changes when a file is replaced; 0 where the backend knows none. FileNotFoundError."""
    return backend(path).version(path)


def file_sizes(path: StorePath) -> dict[str, int]:
    """Bytes of all files below a folder, by their path below it; none where it is missing."""
    return backend(path).file_sizes(path)


def remove(path: StorePath) -> None:
    """Delete a file, or a folder with everything in it, if it is there."""
    backend(path).remove(path)


def scratch_folder(beside: StorePath) -> AbstractContextManager[Path]:
    """A new local folder to fill and `publish`: `beside` itself, or for a Url one of the system's (TMPDIR)."""
    return backend(beside).scratch_folder(beside)


def publish(folder: Path, place: StorePath) -> None:
    """Make a finished Zarr group visible at `place`, whole; one that is already there is equal, and stays."""
    backend(place).publish(folder, place)


def withdraw(place: StorePath, aside: StorePath) -> None:
    """Delete a published group so that it disappears in one step; `aside` is a free name beside it."""
    backend(place).withdraw(place, aside)

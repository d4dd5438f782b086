"""Where a store lies: in a local directory, or behind a URL such as s3://bucket/ssv2.store.

Whoever reads or writes a store's files does it through these functions. They keep nothing open for their caller, so
what names a store is safe after fork and spawn, and a local store pays nothing for the other kind.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from mgm_shared import objects
from mgm_shared.files import flush, replace_file
from mgm_shared.objects import ByteRange, Url

METADATA_FILE = "zarr.json"

StorePath = Path | Url


def store_path(text: str | os.PathLike[str] | Url) -> StorePath:
    """A local path, or a Url for what has a scheme."""
    name = str(text)
    return Url(name.rstrip("/")) if "://" in name else Path(name)


def read_ranges(ranges: Sequence[ByteRange]) -> Iterator[bytes]:
    """The bytes of each range, in order; fewer where the file ends early. FileNotFoundError where there is no file."""
    if ranges and "://" in ranges[0].path:
        yield from objects.fetch_ranges(ranges)
        return
    for path, of_one_file in groupby(ranges, key=lambda wanted: wanted.path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for _, offset, length in of_one_file:
                yield os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)


def read_tail(path: str, length: int) -> bytes:
    """The last `length` bytes of a file, or all of a shorter one. FileNotFoundError where there is no file."""
    if "://" in path:
        return objects.fetch_tail(path, length)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, length, max(0, os.fstat(descriptor).st_size - length))
    finally:
        os.close(descriptor)


def read_bytes(path: StorePath) -> bytes:
    """A whole file. FileNotFoundError where there is none."""
    return path.read_bytes() if isinstance(path, Path) else objects.fetch_files([path])[0]


def read_files(paths: Sequence[StorePath]) -> list[bytes]:
    """Whole files, behind URLs all at once. FileNotFoundError where one is missing."""
    fetched = iter(objects.fetch_files([path for path in paths if isinstance(path, Url)]))
    return [path.read_bytes() if isinstance(path, Path) else next(fetched) for path in paths]


def write_bytes(path: StorePath, content: bytes) -> None:
    """Write or replace a file: it is whole, or as it was. The folders above it come by themselves."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda beside: beside.write_bytes(content))
    else:
        objects.put(path, content)


def read_rows(file: StorePath) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, none when it is not there."""
    try:
        return [json.loads(line) for line in read_bytes(file).splitlines()]
    except FileNotFoundError:
        return []


def write_rows(file: StorePath, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a .jsonl file: one object a line, keys sorted."""
    write_bytes(file, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def is_file(path: StorePath) -> bool:
    """Whether there is such a file."""
    return path.is_file() if isinstance(path, Path) else objects.is_file(path)


def folder_names(path: StorePath) -> list[str]:
    """The folders in a folder, sorted; none where it is missing."""
    if isinstance(path, Url):
        return objects.names(path, "directory")
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if path.is_dir() else []


def file_names(path: StorePath) -> list[str]:
    """The files in a folder, sorted; none where it is missing."""
    if isinstance(path, Url):
        return objects.names(path, "file")
    return sorted(entry.name for entry in os.scandir(path) if entry.is_file()) if path.is_dir() else []


def file_sizes(path: StorePath) -> dict[str, int]:
    """Bytes of all files below a folder, by their path below it; none where it is missing."""
    if isinstance(path, Url):
        return objects.file_sizes(path)
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}


def remove(path: StorePath) -> None:
    """Delete a file, or a folder with all that is in it, should it be there."""
    if isinstance(path, Url):
        objects.delete(path)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(beside: StorePath) -> Iterator[Path]:
    """A new local folder to fill and `publish`: `beside` itself, or for a Url one of the system's (TMPDIR)."""
    if isinstance(beside, Url):
        with tempfile.TemporaryDirectory(prefix="mgm-") as folder:
            yield Path(folder)
        return
    beside.mkdir(parents=True)
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def publish(folder: Path, place: StorePath) -> None:
    """Make a finished Zarr group visible at `place`, whole; one that is there already is equal, and stays.

    Behind a URL the group's own metadata is uploaded last: without it a group is not there, and what an upload that was
    stopped has left is overwritten by the next.
    """
    if isinstance(place, Url):
        if not objects.is_file(place / METADATA_FILE):
            objects.upload(folder, place, last=METADATA_FILE)
        return
    try:
        folder.rename(place)
    except OSError:
        if not place.is_dir():
            raise
    flush(place.parent)


def withdraw(place: StorePath, aside: StorePath) -> None:
    """Delete a published group, which is gone in one step; locally by way of `aside`, a free name beside it."""
    if isinstance(place, Path) and isinstance(aside, Path):
        aside.parent.mkdir(parents=True, exist_ok=True)
        place.rename(aside)
        remove(aside)
        return
    remove(place / METADATA_FILE)
    remove(place)

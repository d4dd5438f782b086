"""The files of a store in a local directory."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Literal

from mgm_shared.files import flush, replace_file
from mgm_shared.store_files import ByteRange


class LocalFiles:
    """`StoreFiles` on a mounted file system. See there what each method does."""

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """One `pread` a range, without a thread: the hot path of training."""
        for path, of_one_file in groupby(ranges, key=lambda wanted: wanted.path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for _, offset, length in of_one_file:
                    yield os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)

    def read_tail(self, path: str, length: int) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, length, max(0, os.fstat(descriptor).st_size - length))
        finally:
            os.close(descriptor)

    def read_files(self, paths: Sequence[Path]) -> list[bytes]:
        return [path.read_bytes() for path in paths]

    def write_bytes(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda beside: beside.write_bytes(content))

    def is_file(self, path: Path) -> bool:
        return path.is_file()

    def names(self, path: Path, kind: Literal["directory", "file"]) -> list[str]:
        if not path.is_dir():
            return []
        entries = (entry for entry in os.scandir(path) if (entry.is_dir() if kind == "directory" else entry.is_file()))
        return sorted(entry.name for entry in entries)

    def group_names(self, path: Path) -> list[str]:
        return self.names(path, "directory")

    def version(self, path: Path) -> int:
        return path.stat().st_mtime_ns

    def file_sizes(self, path: Path) -> dict[str, int]:
        return {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}

    def remove(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def scratch_folder(self, beside: Path) -> Iterator[Path]:
        """`beside` itself, so that publishing is a rename on the same file system."""
        beside.mkdir(parents=True)
        try:
            yield beside
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def publish(self, folder: Path, place: Path) -> None:
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():
                raise
        flush(place.parent)

    def withdraw(self, place: Path, aside: Path) -> None:
        aside.parent.mkdir(parents=True, exist_ok=True)
        place.rename(aside)
        self.remove(aside)

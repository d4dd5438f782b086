"""The one interface to the files of a store, with two backends: `local_files.py` and `remote_files.py`.

universal-pathlib and zarr's own stores were considered. An object that keeps its filesystem, as a universal-pathlib
path does, fails in a forked data loading worker, and zarr's stores are asynchronous, which costs a local clip more than
its decoding. Backends keep nothing open between calls, so they are safe after fork and spawn.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

METADATA_FILE = "zarr.json"

AnyPath = TypeVar("AnyPath", contravariant=True)


class ByteRange(NamedTuple):
    """`length` bytes of the file at `path`, from `offset` on."""

    path: str
    offset: int
    length: int


class StoreFiles(Protocol[AnyPath]):
    """What a store needs of a file system. FileNotFoundError where a file to read is missing."""

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """The bytes of each range, in order; fewer where the file ends early."""

    def read_tail(self, path: str, length: int) -> bytes:
        """The last `length` bytes of a file, or all of a shorter one."""

    def read_files(self, paths: Sequence[AnyPath]) -> list[bytes]:
        """Whole files."""

    def write_bytes(self, path: AnyPath, content: bytes) -> None:
        """Write or replace a file: it is whole, or as it was. Folders above it are made."""

    def is_file(self, path: AnyPath) -> bool:
        """Whether there is a file."""

    def names(self, path: AnyPath, kind: Literal["directory", "file"]) -> list[str]:
        """What a folder contains of this kind, sorted; nothing where it is missing."""

    def group_names(self, path: AnyPath) -> list[str]:
        """The published Zarr groups in a folder, sorted; nothing where it is missing."""

    def version(self, path: AnyPath) -> int:
        """A number that changes when a file is replaced; 0 where the backend knows none. FileNotFoundError."""

    def file_sizes(self, path: AnyPath) -> dict[str, int]:
        """Bytes of all files below a folder, by their path below it; nothing where it is missing."""

    def remove(self, path: AnyPath) -> None:
        """Delete a file, or a folder with everything in it, if it is there."""

    def scratch_folder(self, beside: AnyPath) -> AbstractContextManager[Path]:
        """A new local folder to fill and `publish`."""

    def publish(self, folder: Path, place: AnyPath) -> None:
        """Make a finished Zarr group visible at `place`, whole; one that is already there is equal, and stays."""

    def withdraw(self, place: AnyPath, aside: AnyPath) -> None:
        """Delete a published group so that it disappears in one step; `aside` is a free name beside it."""

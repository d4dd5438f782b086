"""Where a store's bytes lie, and how to get at some of them.

Nothing here keeps a file open for its caller, so what names a store is safe after fork and spawn.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple


class ByteRange(NamedTuple):
    """`length` bytes of the file at `path`, from `offset` on."""

    path: str
    offset: int
    length: int


def read_ranges(ranges: Sequence[ByteRange]) -> Iterator[bytes]:
    """The bytes of each range, in order; fewer where the file ends early. FileNotFoundError where there is no file."""
    for path, of_one_file in groupby(ranges, key=lambda wanted: wanted.path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for _, offset, length in of_one_file:
                yield os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)


def read_tail(path: str, length: int) -> bytes:
    """The last `length` bytes of a file, or all of a shorter one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, length, max(0, os.fstat(descriptor).st_size - length))
    finally:
        os.close(descriptor)

"""Requests to an object store by way of fsspec (extra `s3`); `remote_files.py` makes a store's files of them.

fsspec is imported when a URL is first used, and asked for its filesystem at each call: it makes its connections anew in
each process, so what names a store is safe after fork and spawn. An object that keeps its filesystem, as a
universal-pathlib path does, fails in a forked worker.
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mgm_shared.errors import UserError
from mgm_shared.store_files import ByteRange

# Ranges closer together than this are fetched with one request. A request costs the client 2 ms of CPU (s3fs), as much
# as 2 MB of content; a clip of 16 frames at stride 4 takes 34 ms frame by frame and 4 ms in one piece.
MAX_GAP_BYTES = 256 * 1024
# Longer ranges are fetched in several pieces at once.
MAX_REQUEST_BYTES = 8 * 1024 * 1024
# A file is held in memory while it is uploaded; a shard of frames has 20 MB as JPEG and 180 MB lossless.
UPLOADS_AT_ONCE = 2


@dataclass(frozen=True)
class Url:
    """The address of a remote folder or file. It cannot be read from, so that mypy finds code for local paths."""

    text: str

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        return Url(self.text.rpartition("/")[0])


def fetch_ranges(ranges: Sequence[ByteRange]) -> Iterator[bytes]:
    """The bytes of each range, in order: what lies close together in one request, all requests at once.

    Fewer bytes where the file ends early; FileNotFoundError where there is none.
    """
    requests: list[ByteRange] = []
    request_of: list[int] = []
    for path, offset, length in ranges:
        last = requests[-1] if requests else ByteRange("", 0, 0)
        last_end, end = last.offset + last.length, offset + length
        is_near = path == last.path and last.offset <= offset <= last_end + MAX_GAP_BYTES
        if is_near and end - last.offset <= MAX_REQUEST_BYTES:
            requests[-1] = last._replace(length=max(last_end, end) - last.offset)
        else:
            requests.append(ByteRange(path, offset, length))
        request_of.append(len(requests) - 1)
    blocks = _fetch(requests)
    for (_, offset, length), number in zip(ranges, request_of, strict=True):
        start = offset - requests[number].offset
        yield blocks[number][start : start + length]


def fetch_tail(url: str, length: int) -> bytes:
    """The last `length` bytes of a file, or all of a shorter one."""
    with _reached(url) as files:
        return bytes(files.cat_file(url, start=-length))


def fetch_files(urls: Sequence[Url]) -> list[bytes]:
    """Whole files, all at once. FileNotFoundError where one is missing."""
    return _fetch([ByteRange(str(url), 0, -1) for url in urls])


def put(url: Url, content: bytes) -> None:
    """Write or replace a file. S3 shows an object only when it is complete."""
    with _written(url) as files:
        files.pipe_file(str(url), content)


def create(url: Url, content: bytes) -> None:
    """Create a file. FileExistsError if it exists; of several processes that try at once, one succeeds."""
    with _written(url) as files:
        files.pipe_file(str(url), content, mode="create")


def is_file(url: Url) -> bool:
    """Whether there is a file at the address."""
    with _reached(str(url)) as files:
        return bool(files.isfile(str(url)))


def names(url: Url, kind: Literal["directory", "file"]) -> list[str]:
    """The entries of this kind in a folder, sorted; empty if the folder is missing."""
    with _reached(str(url)) as files:
        try:
            entries = files.ls(str(url), detail=True)
        except FileNotFoundError:
            return []
    return sorted(Url(entry["name"].rstrip("/")).name for entry in entries if entry["type"] == kind)


def file_sizes(url: Url) -> dict[str, int]:
    """Bytes of all files below a folder, by their path below it; none where it is missing."""
    with _reached(str(url)) as files:
        root = f"{files._strip_protocol(str(url))}/"
        try:
            found = files.find(str(url), detail=True)
        except FileNotFoundError:
            return {}
    return {name.removeprefix(root): int(entry["size"]) for name, entry in found.items()}


def delete(url: Url) -> None:
    """Delete a file, or all files below a folder, if there are any."""
    with _reached(str(url)) as files:
        for name in files.find(str(url)):
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(name)


def upload(folder: Path, url: Url, last: str) -> None:
    """Make the files below `url` equal to those of a local folder; `last` is written after all others."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    names.remove(last)
    with _written(url) as files:
        # In slices: fsspec's own `batch_size` drops coroutines when one fails, and Python warns about each.
        for start in range(0, len(names), UPLOADS_AT_ONCE):
            some = names[start : start + UPLOADS_AT_ONCE]
            files.put([str(folder / name) for name in some], [str(url / name) for name in some])
        for name in file_sizes(url).keys() - set(names):
            files.rm_file(str(url / name))
        files.put_file(str(folder / last), str(url / last))


def _fetch(ranges: Sequence[ByteRange]) -> list[bytes]:
    """The bytes of each range, a request each; length −1 reaches to the end."""
    if not ranges:
        return []
    with _reached(ranges[0].path) as files:
        blocks: list[Any] = files.cat_ranges(
            [wanted.path for wanted in ranges],
            [wanted.offset for wanted in ranges],
            [None if wanted.length < 0 else wanted.offset + wanted.length for wanted in ranges],
            on_error="return",
        )
        for number, block in enumerate(blocks):
            if isinstance(block, OSError) and block.errno == errno.EINVAL:
                # HTTP 416: the file ends before the range begins.
                blocks[number] = b""
            elif isinstance(block, Exception):
                raise block
    return blocks


@contextlib.contextmanager
def _reached(url: str) -> Iterator[Any]:
    """The filesystem of a URL. Its errors become UserErrors, except FileNotFoundError and FileExistsError."""
    try:
        yield _filesystem(url)
    except (FileNotFoundError, FileExistsError):
        raise
    except _network_errors() as error:
        raise UserError(f"{url} cannot be reached: {' '.join(str(error).split()) or type(error).__name__}") from error


@contextlib.contextmanager
def _written(url: Url) -> Iterator[Any]:
    """The same for writing, where FileNotFoundError means that the bucket is missing."""
    with _reached(str(url)) as files:
        try:
            yield files
        except FileNotFoundError as error:
            raise UserError(f"{url} cannot be written: {error}") from error


def _filesystem(url: str) -> Any:
    """The filesystem of this process and thread, without a cache of listings: other processes write here too."""
    try:
        import fsspec

        return fsspec.filesystem(url.partition("://")[0], use_listings_cache=False)
    except ImportError as error:
        raise UserError(
            f"{url} needs more than is installed; pip install '.[s3]' in a checkout of mgm ({error})"
        ) from None
    except ValueError as error:
        raise UserError(f"{url} is no address that fsspec knows: {error}") from None


def _network_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a failed request; their modules are imported only then."""
    kinds: list[type[Exception]] = [OSError]
    with contextlib.suppress(ImportError):
        from aiohttp import ClientError

        kinds.append(ClientError)
    with contextlib.suppress(ImportError):
        from botocore.exceptions import BotoCoreError

        kinds.append(BotoCoreError)
    return tuple(kinds)

"""Write files atomically: write a temporary file in the same folder, flush it to the disk, rename it."""

import hashlib
import os
import re
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
    """`write` a file beside `path`, flush it to the disk, then rename it over `path`.

    A full disk and other failures of the system are an OSError that names `path`, also where the library that `write`
    calls hides them in an exception of its own.
    """
    # One name, so that what a killed run left is overwritten by the next: whoever writes here holds a lock or is alone.
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    except Exception as error:
        if failure := _failure(path, error):
            raise failure from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with a text, in UTF-8."""
    replace_file(path, lambda beside: beside.write_bytes(text.encode()))


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, in UTF-8: the whole line, or none of it and an OSError that names `path`."""
    content = line.encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        start, num_written = file.tell(), 0
        try:
            # A disk that fills up takes a part of the line, and has an error for the next part.
            while num_written < len(content):
                num_written += file.write(content[num_written:])
        except OSError as error:
            file.truncate(start)
            raise _failure(path, error) or error from None


def os_error_in(error: BaseException) -> OSError | None:
    """The failure of the operating system behind an exception, if there is one.

    PyTorch's file writer raises a RuntimeError while it handles the OSError of a file object. Rust libraries
    (safetensors) end their message with "(os error 28)", as std::io::Error prints it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        if found := re.search(r"\(os error (\d+)\)", str(cause)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        cause = cause.__cause__ or cause.__context__
    return None


def _failure(path: Path, error: Exception) -> OSError | None:
    """The failure of the operating system behind an error, with the name of the file that was to be written."""
    found = os_error_in(error)
    return OSError(found.errno, found.strerror, str(path)) if found is not None and found.errno else None


def content_digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and the contents of all files in a folder. OSError when there is none."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    running = hashlib.sha256()
    for file_path in sorted(found for found in path.rglob("*") if found.is_file()):
        running.update(os.fsencode(file_path.relative_to(path)) + b"\0" + content_digest(file_path).encode())
    return running.hexdigest()

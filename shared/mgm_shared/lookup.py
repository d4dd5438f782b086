"""Find the video of a store that a person names: by its id, by its path, or by a part of its id."""

import os
import posixpath
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from mgm_shared import index
from mgm_shared.errors import UserError

MAX_NAMED = 3


class NoSuchVideo(UserError, KeyError):
    """No video has the name, or several have it. As a KeyError it is what a missing key of a mapping raises."""

    # KeyError shows its message in quotes.
    __str__ = Exception.__str__


def find_video_row(table: pa.Table, wanted: str, place: str) -> int:
    """The row of the video that `wanted` names in the table of a store.

    Args:
        table: The table of videos.
        wanted: An id; or a path whose end is an id, as it was given to `mgm-prep extract`; or a part of one id.
        place: The store, for messages.

    Raises:
        NoSuchVideo: No id, or several ids, contain the text.
    """
    if (row := index.find_row(table, wanted)) is not None:
        return row
    if (row := _row_of_path(table, wanted, place)) is not None:
        return row
    rows = pc.indices_nonzero(pc.match_substring(table["video_id"], wanted)).to_pylist()
    if len(rows) == 1:
        return int(rows[0])
    named = ", ".join(table["video_id"][row].as_py() for row in rows[:MAX_NAMED])
    found = f"{len(rows)} ids contain it, such as {named}" if rows else "no id contains it"
    raise NoSuchVideo(f"{place} has no video {wanted!r}; {found}; `mgm-prep list` lists them")


def _row_of_path(table: pa.Table, path: str, place: str) -> int | None:
    """The row whose id is the end of the path, the longest such id; NoSuchVideo if another file is at the path."""
    rows = (index.find_row(table, name) for name in _ends(path))
    row = next((row for row in rows if row is not None), None)
    if row is not None and _is_other_file(path, table["size"][row].as_py()):
        video_id = table["video_id"][row].as_py()
        raise NoSuchVideo(f"{place} has a video {video_id!r}, but {path} has another size than its file; give the id")
    return row


def _ends(path: str) -> Iterator[str]:
    r"""The ends of a path that may be an id, the longest first. Bytes that are not text are `\xNN` in an id."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    words = posixpath.normpath(text).lstrip("/").split("/")
    yield from ("/".join(words[k:]) for k in range(len(words)))


def _is_other_file(path: str, num_bytes: int) -> bool:
    """Whether there is a file at the path, and it has another size."""
    try:
        return os.stat(os.path.expanduser(path)).st_size != num_bytes
    except (OSError, ValueError):
        return False

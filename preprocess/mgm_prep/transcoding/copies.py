"""The path of each video's copy below OUT. No two videos share one, and a video keeps its path from call to call.

OUT/copies.jsonl has a row for each video: its id, and the path of its copy.
"""

import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mgm_prep.extraction.tasks import Task
from mgm_prep.sources.discover import Source
from mgm_shared.errors import UserError
from mgm_shared.storage import read_rows, write_rows

COPIES_FILE = "copies.jsonl"
COPY_SUFFIX = ".mp4"


@dataclass(frozen=True, kw_only=True)
class Copy(Task):
    """One video to transcode, and the file to write."""

    target: Path


def plan_copies(sources: Sequence[Source], out: Path) -> list[Copy]:
    """The copy of each video. The tree of folders is kept, and copies that earlier calls planned keep their paths.

    `a.avi` becomes `a.mp4`. Where that path belongs to another video or folder, for example because there is an
    `a.mkv` too, it becomes `a.avi.mp4`. UserError for a listed video whose copy would lie outside `out`.
    """
    names = {source.video_id: PurePosixPath(source.video_id) for source in sources}
    for name in names.values():
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise UserError(f"{name} leads out of {out}; list videos by paths below the list's own folder")
    planned = read_copies(out)
    num_with_stem = Counter(name.with_suffix("") for name in names.values())
    files, folders = set(names.values()), {folder for name in names.values() for folder in name.parents}
    taken = {PurePosixPath(copy) for copy in planned.values()} | folders
    for video_id, name in names.items():
        if video_id in planned:
            continue
        stem = name.with_suffix("")
        short, long = name.with_suffix(COPY_SUFFIX), name.with_name(name.name + COPY_SUFFIX)
        # The long path of a.avi is the short one of a.avi.webm.
        is_free = num_with_stem[stem] == 1 and stem not in files and short not in taken
        copy = short if is_free else long
        while copy in taken:
            copy = copy.with_name(copy.name + COPY_SUFFIX)
        planned[video_id] = str(copy)
        taken.add(copy)
    return [
        Copy(name=f"copy-{number}", sources=(source,), target=out / planned[source.video_id])
        for number, source in enumerate(sources)
    ]


def read_copies(out: Path) -> dict[str, str]:
    """The path of each video's copy below `out`, by id, as earlier calls planned them."""
    return {row["video_id"]: row["copy"] for row in read_rows(out / COPIES_FILE)}


def write_copies(copies: Iterable[Copy], out: Path) -> None:
    """Add the copies to those that earlier calls planned. Call it before the first of them is written."""
    before = read_copies(out)
    after = before | {copy.sources[0].video_id: copy.target.relative_to(out).as_posix() for copy in copies}
    if after != before:
        write_rows(out / COPIES_FILE, ({"video_id": name, "copy": after[name]} for name in sorted(after)))


def hidden_copies(copies: Iterable[Copy], out: Path) -> list[Copy]:
    """Copies that would overwrite others because the file system of `out` takes A.mp4 and a.mp4 for one file."""
    first: dict[str, Copy] = {}
    later = [copy for copy in copies if first.setdefault(_folded(copy.target), copy) is not copy]
    return later if later and _ignores_case(out) else []


def is_copy(path: Path) -> bool:
    """Whether there is a file at `path`."""
    try:
        return path.is_file()
    except OSError:
        # A name that is too long, or a folder without permission; writing the copy will fail with the reason.
        return False


def _folded(path: Path) -> str:
    """The same text for paths that differ by case or in how Unicode composes a letter."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _ignores_case(folder: Path) -> bool:
    probe = folder / f".Case-{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.with_name(probe.name.lower()).exists()
    finally:
        probe.unlink()

"""The path of each video's copy below OUT. No two videos share one."""

import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mgm_prep.extraction.tasks import Task
from mgm_prep.sources.discover import Source
from mgm_shared.errors import UserError

COPY_SUFFIX = ".mp4"


@dataclass(frozen=True, kw_only=True)
class Copy(Task):
    """One video to transcode, and the file to write."""

    target: Path
    former_target: Path
    """The path that the copy would have if other videos had other names, and may have had in an earlier call."""


def plan_copies(sources: Sequence[Source], out: Path) -> list[Copy]:
    """The copy of each video. The tree of folders is kept.

    `a.avi` becomes `a.mp4`. Where that path belongs to another video or folder, for example because there is an
    `a.mkv` too, it becomes `a.avi.mp4`. UserError for a listed video whose copy would lie outside `out`.
    """
    names = [PurePosixPath(source.video_id) for source in sources]
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{name} leads out of {out}; list videos by paths below the list's own folder")
    num_with_stem = Counter(name.with_suffix("") for name in names)
    files, folders = set(names), {folder for name in names for folder in name.parents}
    copies = []
    for number, (source, name) in enumerate(zip(sources, names, strict=True)):
        stem = name.with_suffix("")
        short, long = name.with_suffix(COPY_SUFFIX), name.with_name(name.name + COPY_SUFFIX)
        # The long path of a.avi is the short one of a.avi.webm.
        is_free = num_with_stem[stem] == 1 and stem not in files and short not in folders
        target, former = (short, long) if is_free else (long, short)
        task = f"copy-{number}"
        copies.append(Copy(name=task, sources=(source,), target=out / target, former_target=out / former))
    return copies


def stray_copies(copies: Iterable[Copy]) -> list[Path]:
    """Copies that earlier calls left under a path that no video has any more, because videos came or went."""
    targets = {copy.target for copy in copies}
    former = dict.fromkeys(copy.former_target for copy in copies)
    return [path for path in former if path not in targets and is_copy(path)]


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

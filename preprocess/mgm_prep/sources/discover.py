"""Find the videos of a data set: a directory of class folders, or a list file. The first step of a datum's way."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mgm_prep.sources.annotations import SPLITS, VIDEO_SUFFIXES, read_table
from mgm_shared.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video to extract. `video_id` is its path below the data set, with suffix: unique, the same on every machine."""

    video_id: str
    path: Path
    label: str | None
    split: str | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a data set holds: the sources sorted by id, and how many other files were passed over, by suffix."""

    sources: list[Source]
    ignored: Counter[str]


def find_sources(videos: Path) -> Found:
    """All videos of a directory, or of a list: `path label` lines, or a table with or without a header.

    UserError when `videos` does not exist or names no video.
    """
    if videos.is_dir():
        found = _walk(videos)
    elif videos.is_file() and videos.suffix.lower() in (".txt", ".csv", ".lst"):
        found = _read_list(videos)
    elif videos.exists():
        raise UserError(f"{videos} is neither a directory of videos nor a list file (.txt, .csv)")
    else:
        raise UserError(f"{videos} does not exist; give a directory of videos or a list file")
    if not found.sources:
        passed_over = f" ({sum(found.ignored.values())} files of other kinds)" if found.ignored else ""
        raise UserError(f"{videos} holds no video{passed_over}; known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))}")
    return found


def _walk(root: Path) -> Found:
    sources, ignored = [], Counter[str]()
    # Links to directories are followed, but none to a directory that the way led through: that would be a loop.
    ways = {str(root): frozenset({_identity(str(root))})}
    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        way = ways.pop(folder)
        found = {name: _identity(os.path.join(folder, name)) for name in sorted(subfolders) if not name.startswith(".")}
        subfolders[:] = [name for name, identity in found.items() if identity not in way]
        ways |= {os.path.join(folder, name): way | {found[name]} for name in subfolders}
        for name in sorted(names):
            path = Path(folder) / name
            if name.startswith("."):
                continue
            if path.suffix.lower() in VIDEO_SUFFIXES:
                sources.append(_source_below(root, path))
            else:
                ignored[path.suffix.lower() or "no suffix"] += 1
    return Found(sources=sorted(sources, key=lambda source: source.video_id), ignored=ignored)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed is no folder without videos."""
    raise error


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _source_below(root: Path, path: Path) -> Source:
    """`train/left/0.mp4` has split train and label left; `left/0.mp4` label left; `0.mp4` neither."""
    relative = path.relative_to(root)
    folders = list(relative.parts[:-1])
    split = SPLITS.get(folders[0].lower()) if folders else None
    label = "/".join(folders[1:] if split else folders) or None
    return Source(video_id=_text(relative.as_posix()), path=path, label=_text(label) if label else None, split=split)


def _text(name: str) -> str:
    r"""The same name, where it is text; bytes that are no UTF-8 become \xNN, since Parquet and JSON hold text only."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_list(file: Path) -> Found:
    """The videos that a list or table names; paths are relative to its directory."""
    sources: dict[str, Source] = {}
    for annotation in read_table(file):
        path, values = annotation.names[0], annotation.values
        if path in sources:
            raise UserError(f"{file}: {path} is listed twice")
        split = values.get("split") or SPLITS.get(Path(path).parts[0].lower())
        sources[path] = Source(video_id=path, path=file.parent / path, label=values.get("label"), split=split)
    return Found(sources=sorted(sources.values(), key=lambda source: source.video_id), ignored=Counter())

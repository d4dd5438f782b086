"""Find the videos of a data set: a directory of class folders, or a list file. The first step of a datum's way."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mgm_shared.errors import UserError

# Names that FFmpeg's whitelisted demuxers (decode.py) read. Other files are counted and named, never opened.
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m1v .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg "
    ".mts .mxf .nut .ogm .ogv .ts .vob .webm .wmv".split()
)
SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


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
    """All videos of a directory, or of a list file with `path`, `path label` or `path,label,split` a line.

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
    # Links to directories are not followed, so a loop of links ends.
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if name.startswith("."):
                continue
            if path.suffix.lower() in VIDEO_SUFFIXES:
                sources.append(_source_below(root, path))
            else:
                ignored[path.suffix.lower() or "no suffix"] += 1
    return Found(sources=sorted(sources, key=lambda source: source.video_id), ignored=ignored)


def _source_below(root: Path, path: Path) -> Source:
    """`train/left/0.mp4` has split train and label left; `left/0.mp4` label left; `0.mp4` neither."""
    relative = path.relative_to(root)
    folders = list(relative.parts[:-1])
    split = SPLITS.get(folders[0].lower()) if folders else None
    label = "/".join(folders[1:] if split else folders) or None
    return Source(video_id=relative.as_posix(), path=path, label=label, split=split)


def _read_list(file: Path) -> Found:
    """A line is `path`, `path label`, or `path,label,split`; paths are relative to the list's directory."""
    sources: dict[str, Source] = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        fields = entry.split(",") if "," in entry else entry.split(maxsplit=1)
        path, label, split, *more = [*(field.strip() for field in fields), "", ""]
        if any(more) or split.lower() not in ("", *SPLITS):
            raise UserError(f"{file}, line {number}: want `path,label,split` with split train, val or test")
        if path in sources:
            raise UserError(f"{file}, line {number}: {path} is listed twice")
        split_name = split or Path(path).parts[0]
        sources[path] = Source(
            video_id=path, path=file.parent / path, label=label or None, split=SPLITS.get(split_name.lower())
        )
    return Found(sources=sorted(sources.values(), key=lambda source: source.video_id), ignored=Counter())

"""Find the videos or images of a data set: a directory of class folders, or a list file."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from mgm_prep.sources.annotations import Annotation, annotations_of_table
from mgm_prep.sources.lerobot import camera_of, is_lerobot
from mgm_prep.sources.names import (
    IMAGE_SUFFIXES,
    SPLITS,
    VIDEO_SUFFIXES,
    bytes_name,
    has_image_suffix,
    has_video_suffix,
    normalized,
    split_of,
    text_of,
    unique_ids,
)
from mgm_shared.errors import UserError

LIST_SUFFIXES = (".txt", ".csv", ".lst")
Kind = Literal["video", "image"]
ONLY_VIDEOS: tuple[Kind, ...] = ("video",)
ONLY_IMAGES: tuple[Kind, ...] = ("image",)
ANY_KIND: tuple[Kind, ...] = ("video", "image")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A video to extract."""

    video_id: str
    """Its path below the data set, with suffix, as text (`names.py`): unique, and the same on every machine."""
    path: Path
    label: str | None
    split: str | None
    is_image: bool = False
    """Whether it is an image file, a video of one frame."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The videos of a data set, and what was passed over."""

    sources: list[Source]
    """Sorted by id."""
    ignored: Counter[str]
    """Files that are not videos, by suffix; `hidden` counts files and folders whose name begins with a dot."""
    comments: list[str] = field(default_factory=list)
    """Lines of a list that begin with `#` and name no file."""


def find_sources(videos: Path, cameras: Sequence[str] = (), kinds: Sequence[Kind] = ONLY_VIDEOS) -> Found:
    """All videos of a directory, or of a list: `path label` lines, or a table with or without a header.

    `cameras` chooses among the cameras of a LeRobot dataset; without a choice all are taken. `kinds` says whether
    video files are taken, or image files, or both.

    UserError when `videos` does not exist, names no video, or has a folder that cannot be read.
    """
    if videos.is_dir():
        found = _walk(videos, kinds)
        if "video" in kinds and is_lerobot(videos):
            found = _of_lerobot(found)
    elif videos.is_file() and videos.suffix.lower() in LIST_SUFFIXES:
        found = _read_list(videos, kinds)
    elif videos.exists():
        raise UserError(f"{videos} is neither a directory of videos nor a list file ({', '.join(LIST_SUFFIXES)})")
    else:
        raise UserError(f"{videos} does not exist; give a directory of videos or a list file")
    if cameras:
        found = _of_cameras(found, cameras)
    if not found.sources:
        raise UserError(_none_found(videos, found, kinds))
    return found


def _none_found(videos: Path, found: Found, kinds: Sequence[Kind]) -> str:
    passed_over = f" ({describe_ignored(found)})" if found.ignored or found.comments else ""
    if "video" not in kinds:
        return f"{videos} holds no image{passed_over}; known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))}"
    if "image" not in kinds and any(found.ignored[suffix] for suffix in IMAGE_SUFFIXES):
        return f"{videos} holds no video{passed_over}; --images takes image files"
    return f"{videos} holds no video{passed_over}; known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))}"


def describe_ignored(found: Found) -> str:
    """What was passed over, for messages: counts by suffix, and an example of a comment line."""
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(found.ignored.items()))
    said = [f"{found.ignored.total()} files of other kinds: {kinds}"] if found.ignored else []
    if found.comments:
        said.append(f"{len(found.comments)} lines begin with # and name no file, such as {found.comments[0]!r}")
    return "; ".join(said)


def _is_wanted(name: str, kinds: Sequence[Kind]) -> bool:
    return ("video" in kinds and has_video_suffix(name)) or ("image" in kinds and has_image_suffix(name))


def _is_image(name: str, kinds: Sequence[Kind]) -> bool:
    """Whether a file is to be read as an image; the files of a list may have any suffix or none."""
    return "image" in kinds and (has_image_suffix(name) or "video" not in kinds)


def _walk(root: Path, kinds: Sequence[Kind]) -> Found:
    paths: dict[str, Path] = {}
    ignored = Counter[str]()
    for folder, names in _folders(root, ignored):
        for name in names:
            if name.startswith("."):
                ignored["hidden"] += 1
            elif _is_wanted(name, kinds):
                path = Path(folder) / name
                paths[path.relative_to(root).as_posix()] = path
            else:
                ignored[text_of(PurePosixPath(name).suffix.lower()) or "no suffix"] += 1
    ids = unique_ids(paths)
    sources = [
        replace(_source_below(relative, path, ids[relative]), is_image=_is_image(relative, kinds))
        for relative, path in paths.items()
    ]
    return Found(sources=sorted(sources, key=lambda source: source.video_id), ignored=ignored)


def _of_lerobot(found: Found) -> Found:
    """The videos of the cameras of a LeRobot dataset. Its folders are no labels."""
    sources = [replace(source, label=None, split=None) for source in found.sources if camera_of(source.video_id)]
    return replace(found, sources=sources)


def _of_cameras(found: Found, cameras: Sequence[str]) -> Found:
    """Only the videos of these cameras of a LeRobot dataset. UserError for a camera that it does not have."""
    there = {camera for source in found.sources if (camera := camera_of(source.video_id))}
    # `top` is short for observation.images.top.
    wanted = {camera: [one for one in there if one == camera or one.endswith(f".{camera}")] for camera in cameras}
    if unknown := [camera for camera, matches in wanted.items() if len(matches) != 1]:
        known = ", ".join(sorted(there)) or "none, since it is no LeRobot dataset"
        raise UserError(f"no camera {unknown[0]!r}; the cameras are {known}")
    kept = {matches[0] for matches in wanted.values()}
    return replace(found, sources=[source for source in found.sources if camera_of(source.video_id) in kept])


def _folders(root: Path, ignored: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder that is not hidden, with the names of its files.

    Links to folders are followed, except to a folder that lies on the way from the root: that would be a loop.
    """
    ways = {str(root): frozenset({_identity(str(root))})}
    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        way = ways.pop(folder)
        shown = sorted(name for name in subfolders if not name.startswith("."))
        ignored.update(["hidden"] * (len(subfolders) - len(shown)))
        found = {name: _identity(os.path.join(folder, name)) for name in shown}
        subfolders[:] = [name for name, identity in found.items() if identity not in way]
        ways |= {os.path.join(folder, name): way | {found[name]} for name in subfolders}
        yield folder, sorted(names)


def _refuse(error: OSError) -> None:
    """UserError for a folder that cannot be listed: its videos would be missing without a word."""
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}")


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    return status.st_dev, status.st_ino


def _source_below(relative: str, path: Path, video_id: str) -> Source:
    """`train/left/0.mp4` has split train and label left; `left/0.mp4` label left; `0.mp4` neither."""
    folders = list(PurePosixPath(relative).parts[:-1])
    split = SPLITS.get(folders[0].lower()) if folders else None
    label = "/".join(folders[1:] if split else folders)
    return Source(video_id=video_id, path=path, label=text_of(label) or None, split=split)


def _read_list(file: Path, kinds: Sequence[Kind]) -> Found:
    """The videos that a list or table names; paths are relative to its directory. UserError for one listed twice."""
    sources: dict[str, Source] = {}
    comments: list[str] = []
    ids: dict[str, str] = {}
    for annotation in annotations_of_table(file):
        reading, name = _reading_with_file(annotation, file.parent)
        if annotation.is_optional and not _is_there(file.parent / name):
            comments.append(annotation.shown)
            continue
        video_id, place = text_of(reading.names[0]), normalized(name)
        if place in ids or video_id in sources:
            raise UserError(f"{file}: {video_id} is listed twice" + _also_as(ids.get(place, video_id), video_id))
        ids[place] = video_id
        split = reading.values.get("split") or split_of(video_id)
        label = reading.values.get("label")
        is_image = _is_image(name, kinds)
        sources[video_id] = Source(
            video_id=video_id, path=file.parent / name, label=label, split=split, is_image=is_image
        )
    ordered = sorted(sources.values(), key=lambda source: source.video_id)
    return Found(sources=ordered, ignored=Counter(), comments=comments)


def _reading_with_file(annotation: Annotation, folder: Path) -> tuple[Annotation, str]:
    """The first reading of a line that names a file, with the file's name; the most likely one when none does."""
    if not annotation.alternatives and "\\x" not in annotation.names[0]:
        return annotation, annotation.names[0]
    names = [(reading, name) for reading in annotation.readings for name in _spellings(reading.names[0])]
    return next(((reading, name) for reading, name in names if _is_there(folder / name)), names[0])


def _spellings(name: str) -> Sequence[str]:
    r"""The name, and where it holds `\xNN` as an id does, the file name with these bytes."""
    return list(dict.fromkeys((name, bytes_name(name))))


def _is_there(path: Path) -> bool:
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


def _also_as(first: str, second: str) -> str:
    return "" if first == second else f" (as {first} and {second})"

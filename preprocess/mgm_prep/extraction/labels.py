"""Attach labels and splits to the videos of a store. No frame is read or written.

Parts never change, so attached labels are stored beside them in labels.jsonl. The index prefers them to those of the
part.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mgm_prep.extraction.failures import read_failures
from mgm_prep.extraction.plan import read_plan
from mgm_prep.runtime.lock import locked
from mgm_prep.sources.annotations import Annotation, is_annotation_folder, read_annotations
from mgm_prep.sources.discover import find_sources
from mgm_prep.sources.names import normalized, text_of, without_video_suffix
from mgm_shared.errors import UserError
from mgm_shared.index import codes, read_index, read_labels, write_index
from mgm_shared.progress import SILENT, Progress
from mgm_shared.schema import INDEX_FILE, LABELS_FILE
from mgm_shared.storage import PathLike, StorePath, remove, store_path, write_rows
from mgm_shared.store import check_schema

NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which video each annotation means."""

    values: dict[str, dict[str, str | None]]
    """By video_id: `label`, `split` or both."""
    unmatched: list[str]
    """Names that no video has."""
    ambiguous: list[str]
    """Names that several videos have, or for which the files state different labels. Nothing is attached to these."""
    comments: list[str]
    """Lines that begin with `#` and name no video."""


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """The labels of a store after files were attached."""

    store: str
    listed: int
    attached: int
    """Videos of the store that a file names."""
    unmatched: int
    ambiguous: int
    comments: int
    """Lines that begin with `#` and name no video."""
    videos: int
    without_label: int
    labels: int
    splits: dict[str, int] = field(default_factory=dict)


def read_label_files(files: Sequence[str | os.PathLike[str]], fold: int = 1) -> list[Annotation]:
    """The annotations of files, of directories of such files, or of directories of videos in class folders."""
    annotations: list[Annotation] = []
    paths = [Path(file) for file in files]
    is_videos = {path: path.is_dir() and not is_annotation_folder(path, fold) for path in paths}
    for folder in (path for path in paths if is_videos[path]):
        for source in find_sources(folder).sources:
            annotation = Annotation(names=(source.video_id,), values={})
            annotation.values.update({"label": source.label} if source.label else {})
            annotation.values.update({"split": source.split} if source.split else {})
            annotations.append(annotation)
    return annotations + read_annotations([path for path in paths if not is_videos[path]], fold)


def attach_labels(
    store: PathLike,
    files: Sequence[str | os.PathLike[str]],
    *,
    fold: int = 1,
    is_dry_run: bool = False,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Give the videos that the files name their labels and splits. Labels and splits that no file states stay.

    Args:
        store: The store.
        files: CSV or JSON files, `path label` lists, official split files, or folders (`sources/annotations.py`).
        fold: Which official split of UCF101 or HMDB51, from 1 to 3.
        is_dry_run: Match the names, and write nothing.
        progress: Hears of names that fit no video or several.

    UserError for files that cannot be understood, or that name no video of the store.
    """
    store = store_path(store)
    check_schema(store)
    annotations = read_label_files(files, fold)
    with locked(store, progress):
        table = read_index(store)
        # Videos that are planned or rejected get their labels now, too.
        planned = {video_id for part in read_plan(store) for video_id in part.videos}
        video_ids = planned | set(table["video_id"].to_pylist()) | read_failures(store).keys()
        match = match_videos(annotations, video_ids)
        if not match.values and video_ids:
            raise UserError(
                f"the files name no video of {store}: they list {_some(a.names[0] for a in annotations)}, "
                f"the store holds {_some(sorted(video_ids))}"
            )
        say_unattached(match, progress)
        if not is_dry_run:
            merge_labels(store, match)
            table = write_index(store)
    return LabelSummary(
        store=str(store),
        listed=len(annotations),
        attached=len(match.values.keys() & set(table["video_id"].to_pylist())),
        unmatched=len(match.unmatched),
        ambiguous=len(match.ambiguous),
        comments=len(match.comments),
        videos=len(table),
        without_label=table["label"].null_count,
        labels=sum(name is not None for name in codes(table, "label")[1]),
        splits=dict(Counter(split or "none" for split in table["split"].to_pylist()).most_common()),
    )


def merge_labels(store: StorePath, match: Match) -> None:
    """Write the matched labels over those attached before. Call `write_index` after it."""
    before = read_labels(store)
    after = {video_id: dict(values) for video_id, values in before.items()}
    for video_id, values in match.values.items():
        after[video_id] = after.get(video_id, {}) | values
    if after == before:
        return
    # Before the labels, so that no reader uses an index without them.
    remove(store / INDEX_FILE)
    write_rows(store / LABELS_FILE, ({"video_id": video_id} | after[video_id] for video_id in sorted(after)))


def say_unattached(match: Match, progress: Progress) -> None:
    """Report counts and examples of the names that were not attached."""
    for names, what in (
        (match.unmatched, "name no video of the store"),
        (match.ambiguous, "fit several videos, or are listed with different labels; nothing is attached to them"),
        (match.comments, "begin with # and name no video, so they count as comments"),
    ):
        if names:
            progress.say(f"{len(names)} entries {what}, such as {_some(names)}")


def match_videos(annotations: Sequence[Annotation], video_ids: Collection[str]) -> Match:
    """Match names to ids: by path, else by the end of the path, else by a file name that occurs only once.

    Only the first step compares suffixes, so a transcoded file is found.
    """
    finder = _Finder(annotations, video_ids)
    claims: dict[str, list[tuple[str, dict[str, str | None]]]] = defaultdict(list)
    unmatched: list[str] = []
    ambiguous: list[str] = []
    comments: list[str] = []
    for annotation in annotations:
        name, values, found = _reading_with_video(annotation, finder)
        if len(found) == 1:
            claims[found[0]].append((name, values))
        elif found:
            ambiguous.append(name)
        else:
            (comments if annotation.is_optional else unmatched).append(name)
    values_of_video: dict[str, dict[str, str | None]] = {}
    for video_id, said in claims.items():
        merged = {key: value for _, one in said for key, value in one.items()}
        if all(merged[key] == value for _, one in said for key, value in one.items()):
            values_of_video[video_id] = merged
        else:
            ambiguous.append(said[0][0])
    return Match(values=values_of_video, unmatched=unmatched, ambiguous=ambiguous, comments=comments)


def _reading_with_video(annotation: Annotation, finder: "_Finder") -> tuple[str, dict[str, str | None], list[str]]:
    """Name, values and videos of the first reading that names a video; of the most likely one when none does."""
    for reading in annotation.readings:
        for name in reading.names:
            find = finder.find_marked if annotation.is_optional else finder.find
            if found := find(text_of(name)):
                return text_of(reading.names[0]), reading.values, found
    return annotation.shown, annotation.values, []


class _Finder:
    """The videos of a store, by path and by file name."""

    def __init__(self, annotations: Iterable[Annotation], video_ids: Collection[str]) -> None:
        self._ids = frozenset(video_ids)
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for video_id in sorted(video_ids):
            path = _without_suffix(video_id)
            self._by_path[path].append(video_id)
            self._by_stem[_last(path)].append(video_id)
        names = {_without_suffix(text_of(name)) for annotation in annotations for name in annotation.names}
        self._listed = Counter(map(_last, names))

    def find(self, name: str) -> list[str]:
        """The ids that a name may mean: one when it is certain."""
        # As it is, with Windows' separators, and with its suffix: `transcode` calls the copy of b.avi b.avi.mp4 where
        # there is a b.mp4 too.
        paths = dict.fromkeys((_without_suffix(name), _without_suffix(name.replace("\\", "/")), name))
        return next((found for path in paths if (found := self._find(name, path))), [])

    def find_marked(self, name: str) -> list[str]:
        """As `find`, for a name that begins with `#`: only videos whose own name has the `#` too.

        `#a/b.mp4` may be the line of `a/b.mp4`, commented out.
        """
        first = {path.partition("/")[0] for path in (name, _without_suffix(name))}
        return [found for found in self.find(name) if first & {*_without_suffix(found).split("/")}]

    def _find(self, name: str, path: str) -> list[str]:
        if name in self._ids:
            return [name]
        for tail in _tails(path):
            if tail in self._by_path:
                return self._by_path[tail]
        same_stem = self._by_stem.get(_last(path), [])
        ending = [video_id for video_id in same_stem if f"/{_without_suffix(video_id)}".endswith(f"/{path}")]
        if ending:
            return ending
        # A path that fits no other may still be the same file in another tree, if nothing else has its name.
        return same_stem if len(same_stem) == 1 and self._listed[_last(path)] == 1 else []


def _tails(path: str) -> Iterable[str]:
    """`a/b/c`, `b/c`; the name alone is no path."""
    yield path
    parts = PurePosixPath(path).parts
    for start in range(1, len(parts) - 1):
        yield "/".join(parts[start:])


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _without_suffix(name: str) -> str:
    return without_video_suffix(normalized(name))


def _some(names: Iterable[str]) -> str:
    shown = [name for name, _ in zip(names, range(NUM_EXAMPLES), strict=False)]
    return ", ".join(shown) or "nothing"

"""Attach labels and splits to the videos of a store, and segments with labels. No frame is read or written.

Parts never change, so attached labels are stored beside them in labels.jsonl. The index prefers them to those of the
part.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from mgm_prep.config import SegmentSettings
from mgm_prep.extraction.failures import read_failures
from mgm_prep.extraction.matching import Match, match_videos
from mgm_prep.extraction.plan import read_plan
from mgm_prep.extraction.segments import (
    PlacedSegments,
    check_segments,
    check_shared_videos,
    place_segments,
    save_segments,
    shared_videos,
)
from mgm_prep.runtime.lock import locked
from mgm_prep.sources.annotations import Annotation, is_annotation_folder, read_annotations
from mgm_prep.sources.discover import find_sources
from mgm_prep.sources.segment_files import read_segment_files
from mgm_shared.errors import UserError
from mgm_shared.index import codes, read_index, read_labels, write_index
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import num_segments, read_segments
from mgm_shared.schema import INDEX_FILE, LABELS_FILE
from mgm_shared.storage import PathLike, StorePath, remove, store_path, write_rows
from mgm_shared.store import check_schema

NUM_EXAMPLES = 3


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
    segments: int = 0
    """Segments of the store, with those of these files."""
    rejected_segments: dict[str, int] = field(default_factory=dict)
    """Rows of these files that are no segments, by kind of reason; STORE/rejected_segments.jsonl lists them."""
    cut_segments: int = 0
    """Segments that were cut at the end of their video."""
    shared_videos: int = 0
    """Videos that have segments in several splits."""


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
    segments: SegmentSettings | None = None,
    is_dry_run: bool = False,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Give the videos that the files name their labels and splits, and the store the segments that the files have.

    Labels and splits that no file states stay. Segments replace all that were attached before.

    Args:
        store: The store.
        files: CSV or JSON files, `path label` lists, official split files, LeRobot datasets, or folders
            (`sources/annotations.py`, `sources/segment_files.py`).
        fold: Which official split of UCF101 or HMDB51, from 1 to 3.
        segments: How to read segments.
        is_dry_run: Match the names, and write nothing.
        progress: Hears of names that fit no video or several, and of rows that are no segments.

    UserError for files that cannot be understood, or that name no video of the store.
    """
    store, settings = store_path(store), segments or SegmentSettings()
    check_schema(store)
    found = read_segment_files(_paths(files), read_as=settings.read_as, label=settings.label, fold=fold)
    annotations = read_label_files(found.others, fold)
    match = Match(values={}, unmatched=[], ambiguous=[], comments=[])
    placed: PlacedSegments | None = None
    with locked(store, progress):
        table = read_index(store)
        if found.others or not found.segments:
            match = _matched(store, annotations, table)
            say_unattached(match, progress)
        if found.segments:
            placed = place_segments(store, _with_splits(table, match), found.segments, settings)
            check_segments(placed, settings, progress)
            if num_before := num_segments(store):
                progress.say(f"the {num_before} segments that were attached before are replaced")
        elif any("split" in values for values in match.values.values()):
            shared = shared_videos(read_segments(store), _with_splits(table, match))
            check_shared_videos(shared, settings, progress)
        if not is_dry_run:
            merge_labels(store, match)
            table = write_index(store)
            if placed:
                save_segments(store, placed)
    return _summary(store, table, match, placed, len(annotations) + len(found.segments))


def _matched(store: StorePath, annotations: Sequence[Annotation], table: pa.Table) -> Match:
    """The video of each annotation. UserError when the files name none."""
    # Videos that are planned or rejected get their labels now, too.
    planned = {video_id for part in read_plan(store) for video_id in part.videos}
    video_ids = planned | set(table["video_id"].to_pylist()) | read_failures(store).keys()
    match = match_videos(annotations, video_ids)
    if not match.values and video_ids:
        raise UserError(
            f"the files name no video of {store}: they list {_some(a.names[0] for a in annotations)}, "
            f"the store holds {_some(sorted(video_ids))}"
        )
    return match


def _with_splits(table: pa.Table, match: Match) -> pa.Table:
    """The index with the splits that the files of the same call attach."""
    stated = {video_id: values["split"] for video_id, values in match.values.items() if "split" in values}
    pairs = zip(table["video_id"].to_pylist(), table["split"].to_pylist(), strict=True)
    splits = pa.array([stated.get(video_id, split) for video_id, split in pairs], pa.string())
    return table.set_column(table.column_names.index("split"), "split", splits)


def _summary(
    store: StorePath, table: pa.Table, match: Match, placed: PlacedSegments | None, num_listed: int
) -> LabelSummary:
    return LabelSummary(
        store=str(store),
        listed=num_listed,
        attached=len(match.values.keys() & set(table["video_id"].to_pylist())),
        unmatched=len(match.unmatched),
        ambiguous=len(match.ambiguous),
        comments=len(match.comments),
        videos=len(table),
        without_label=table["label"].null_count,
        labels=sum(name is not None for name in codes(table, "label")[1]),
        splits=dict(Counter(split or "none" for split in table["split"].to_pylist()).most_common()),
        segments=len(placed.table) if placed else num_segments(store),
        rejected_segments=placed.counts if placed else {},
        cut_segments=placed.num_cut if placed else 0,
        shared_videos=len(placed.shared_videos) if placed else 0,
    )


def _paths(files: Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [Path(file) for file in files]


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


def _some(names: Iterable[str]) -> str:
    shown = [name for name, _ in zip(names, range(NUM_EXAMPLES), strict=False)]
    return ", ".join(shown) or "nothing"

"""Extract a data set: find videos, plan parts, write parts and index. A second call does only what is missing."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mgm_prep.config import ExtractSettings, SegmentSettings
from mgm_prep.decoding.image import is_image_codec
from mgm_prep.extraction.changes import Changes, find_changes, refreshed_plan, replace_parts, say_changes
from mgm_prep.extraction.failures import Failure, read_failures, write_failures
from mgm_prep.extraction.labels import merge_labels, read_label_files, say_unattached
from mgm_prep.extraction.matching import match_videos
from mgm_prep.extraction.part import extract_part
from mgm_prep.extraction.plan import MOTION_WITHOUT_VECTORS, PlannedPart, all_failures, extended_plan, known_videos
from mgm_prep.extraction.segments import check_segments, place_segments, save_segments
from mgm_prep.extraction.store_root import check_place, clear_unfinished, open_or_create
from mgm_prep.extraction.tasks import Job
from mgm_prep.motion.x264 import VECTOR_CODECS
from mgm_prep.runtime.cluster import open_cluster
from mgm_prep.runtime.execution import Execution
from mgm_prep.runtime.lock import locked
from mgm_prep.sources.annotations import Annotation
from mgm_prep.sources.discover import (
    ONLY_IMAGES,
    ONLY_VIDEOS,
    Found,
    Source,
    describe_ignored,
    find_sources,
)
from mgm_prep.sources.segment_files import read_segment_files
from mgm_prep.sources.segments import Segment
from mgm_shared.cli import move_aside
from mgm_shared.index import codes, committed_parts, numbers, write_index
from mgm_shared.progress import Progress
from mgm_shared.samples import num_segments
from mgm_shared.signals import stop_after_block
from mgm_shared.storage import PathLike, StorePath, store_path

FAILURES_EVERY_S = 10


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """The state of a data set in its store after a call."""

    store: str
    listed: int
    """Videos of the data set."""
    done: int
    """Videos that the store has, from this call or an earlier one."""
    failed: int
    """Videos that were rejected."""
    extracted_now: int
    """Videos that this call extracted."""
    frames: int
    parts: int
    ignored_files: int
    """Files that are not videos, and hidden files and folders."""
    ignored_lines: int
    """Lines of a list that begin with `#` and name no file."""
    changed: int
    """Videos whose file changed since they were extracted, and that were not extracted again."""
    vanished: int
    """Videos of the store that are not in the data set any more."""
    segments: int = 0
    """Segments of the store; see `Store.samples`."""
    rejected_segments: int = 0
    """Rows of the files with labels that are no segments; STORE/rejected_segments.jsonl lists them."""
    without_vectors: dict[str, int] = field(default_factory=dict)
    """Number of videos for each codec that has no motion vectors."""
    without_b_vectors: dict[str, int] = field(default_factory=dict)
    """The same for videos whose B pictures alone have none. Their motion is filled unless `no_vectors` is skip."""


def extract(
    videos: str | os.PathLike[str],
    store: PathLike,
    settings: ExtractSettings | None = None,
    execution: Execution | None = None,
    *,
    labels: Sequence[str | os.PathLike[str]] = (),
    fold: int = 1,
    cameras: Sequence[str] = (),
    images: bool = False,
    refresh: bool = False,
    retry_failed: bool = False,
    force: bool = False,
) -> ExtractSummary:
    """Extract all videos that the store does not have yet.

    Frames are stored as uint8 RGB with the short side at `settings.short_side` px, motion as (dx, dy) px a frame for
    each cell of 8×8 px. The store is the same, byte for byte, for any number of workers and interruptions.

    Args:
        videos: A folder with `[train|val|test/][label/]video` files, or a list file.
        store: The store to create or to extend, a path or a URL.
        settings: Options that decide the bytes of the store.
        execution: Workers and progress. By default everything runs silently in this process.
        labels: Files with labels or segments, as in `attach_labels`.
        fold: Official split in a folder of several, as in `attach_labels`.
        cameras: Names of the cameras of a LeRobot dataset; by default all.
        images: Take image files (JPEG, PNG, WebP, GIF) instead of videos; each is a video of one frame without motion.
        refresh: Extract videos again whose file changed.
        retry_failed: Try rejected videos again.
        force: Move an existing store aside and start over.

    Raises:
        UserError: The data set has no videos, the labels cannot be read, another command writes to the store, or the
            store was made with other settings or by another version.

    A video that cannot be decoded is no error: it is counted as failed, and its reason is in STORE/failures.jsonl.
    """
    settings, execution = settings or ExtractSettings(), execution or Execution()
    kinds = ONLY_IMAGES if images else ONLY_VIDEOS
    found, place = find_sources(Path(videos), cameras, kinds), store_path(store)
    files = read_segment_files([Path(file) for file in labels], fold=fold)
    annotations = read_label_files(files.others, fold)
    if force and (aside := move_aside(place)):
        execution.progress.say(f"moved the old {place} to {aside}")
    check_place(place)
    if found.ignored or found.comments:
        execution.progress.say(f"skipped: {describe_ignored(found)}")
    with locked(place, execution.progress) as check_lock:
        open_or_create(place, settings)
        clear_unfinished(place)
        try:
            with open_cluster(execution) as cluster:
                job = Job(
                    place=place,
                    settings=settings,
                    cluster=cluster,
                    progress=execution.progress,
                    check_lock=check_lock,
                )
                changes, num_extracted = _extract_missing(job, found, annotations, refresh, retry_failed)
        finally:
            with stop_after_block():
                check_lock()
                # After the cluster is closed, since its workers may write there until then.
                clear_unfinished(place)
                table = write_index(place)
                write_failures(place, all_failures(place).values())
        num_rejected = _attach_segments(place, files.segments, table, execution.progress) if files.segments else 0
        if refresh and changes.changed and num_segments(place) and not files.segments:
            execution.progress.say(
                "the store has segments, whose frames were found in the old files; attach them again"
            )
    changes = Changes(vanished=changes.vanished) if refresh else changes
    summary = _summary(place, table, found, changes, num_extracted)
    summary = replace(summary, segments=num_segments(place), rejected_segments=num_rejected)
    if num_extracted:
        _say_without_b_vectors(summary, settings, execution.progress)
    return summary


def _attach_segments(store: StorePath, segments: Sequence[Segment], table: pa.Table, progress: Progress) -> int:
    """Attach the segments of the files with labels; the number of rejected rows. UserError where no segment fits."""
    settings = SegmentSettings()
    placed = place_segments(store, table, segments, settings)
    check_segments(placed, settings, progress)
    save_segments(store, placed)
    return len(placed.rejected)


def _extract_missing(
    job: Job[StorePath, ExtractSettings],
    found: Found,
    annotations: Sequence[Annotation],
    is_refresh: bool,
    is_retry: bool,
) -> tuple[Changes, int]:
    """Do what the store lacks. Returns the changes since the last call, and how many videos were extracted."""
    sources = {source.video_id: source for source in found.sources}
    changes = find_changes(job.place, sources)
    say_changes(changes, is_refresh, job.progress)
    plan = refreshed_plan(job.place, sources, changes, is_refresh=is_refresh, is_retry=is_retry)
    plan = replace_parts(job, plan)
    plan = extended_plan(job, plan, found.sources)
    if annotations:
        match = match_videos(annotations, known_videos(job.place, plan))
        say_unattached(match, job.progress)
        merge_labels(job.place, match)
    return changes, _extract_parts(job, plan, sources)


def _summary(store: StorePath, table: pa.Table, found: Found, changes: Changes, num_extracted: int) -> ExtractSummary:
    ids = {source.video_id for source in found.sources}
    is_listed = np.array([video_id in ids for video_id in table["video_id"].to_pylist()], bool)
    codec_of_row, codec_names = codes(table, "codec")
    codecs = Counter(codec_names[code] or "" for code in codec_of_row[is_listed])
    return ExtractSummary(
        store=str(store),
        listed=len(ids),
        done=int(is_listed.sum()),
        failed=len(read_failures(store).keys() & ids),
        extracted_now=num_extracted,
        frames=int(numbers(table, "num_frames")[is_listed].sum()),
        parts=len(committed_parts(store)),
        ignored_files=found.ignored.total(),
        ignored_lines=len(found.comments),
        changed=len(changes.changed),
        vanished=len(changes.vanished),
        without_vectors={codec: n for codec, n in sorted(codecs.items()) if _lacks_vectors(codec)},
        without_b_vectors=_without_b_vectors(table, is_listed),
    )


def _lacks_vectors(codec: str) -> bool:
    return codec not in VECTOR_CODECS and not is_image_codec(codec)


def _without_b_vectors(table: pa.Table, is_listed_N: NDArray[np.bool_]) -> dict[str, int]:
    codec_of_row, codec_names = codes(table, "codec")
    source_of_row, source_names = codes(table, "motion_source")
    is_mixed_N = np.array([(source_names[code] or "").startswith("codec+") for code in source_of_row], bool)
    found = Counter(codec_names[code] or "" for code in codec_of_row[is_listed_N & is_mixed_N])
    return dict(sorted(found.items()))


def _say_without_b_vectors(summary: ExtractSummary, settings: ExtractSettings, progress: Progress) -> None:
    if codecs := summary.without_b_vectors:
        kinds = ", ".join(f"{codec} {count}" for codec, count in codecs.items())
        instead = MOTION_WITHOUT_VECTORS[settings.no_vectors]
        progress.say(f"{sum(codecs.values())} videos have B pictures without motion vectors ({kinds}); {instead}")


def _extract_parts(
    job: Job[StorePath, ExtractSettings], plan: Iterable[PlannedPart], sources: Mapping[str, Source]
) -> int:
    """Extract the parts of the plan that are missing. Returns the number of videos."""
    store, progress = job.place, job.progress
    failures = read_failures(store)
    missing = _missing_parts(plan, set(committed_parts(store)), failures, sources)
    progress.start("extracting", sum(len(row.videos) for row in missing), "video")
    num_videos = num_failed = num_frames = 0
    started_s = written_s = time.monotonic()
    for result in job.map(extract_part, (row.part(sources, failures) for row in missing)):
        failures |= {failure.video_id: failure for failure in result.failures}
        # Not after each part, since the list may be long. What a killed run loses is recorded in the parts as well.
        if result.failures and time.monotonic() - written_s > FAILURES_EVERY_S:
            write_failures(store, failures.values())
            written_s = time.monotonic()
        num_videos += result.num_videos
        num_failed += len(result.failures)
        num_frames += result.num_frames
        speed = f"{num_frames / max(1e-9, time.monotonic() - started_s):.0f} frames/s"
        count = result.num_videos + len(result.failures)
        progress.advance(count, frames=num_frames, speed=speed, failed=num_failed)
    write_failures(store, failures.values())
    return num_videos


def _missing_parts(
    plan: Iterable[PlannedPart],
    committed: set[str],
    failures: Mapping[str, Failure],
    sources: Mapping[str, Source],
) -> list[PlannedPart]:
    """The planned parts that are not there and that have a readable video in this data set.

    Parts without a video of this data set were planned by a run of the same command on another folder.
    """
    return [
        row
        for row in plan
        if row.name not in committed
        and not failures.keys() >= set(row.videos)
        and not sources.keys().isdisjoint(row.videos)
    ]

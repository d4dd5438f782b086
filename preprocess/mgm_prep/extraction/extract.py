"""The first stage: sources → plan → parts → index. The same call again does only what is missing."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import av
import cv2
import numpy as np

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.changes import Changes, find_changes, refreshed_plan, replace_parts, say_changes
from mgm_prep.extraction.failures import Failure, read_failures, write_failures
from mgm_prep.extraction.labels import match_videos, merge_labels, read_label_files, say_unattached
from mgm_prep.extraction.part import extract_part
from mgm_prep.extraction.plan import PlannedPart, extended_plan, known_videos, read_plan
from mgm_prep.extraction.tasks import after_deaths
from mgm_prep.motion.x264 import VECTOR_CODECS
from mgm_prep.runtime.cluster import Cluster, open_cluster
from mgm_prep.runtime.lock import LOCK_FILE, locked
from mgm_prep.runtime.signals import noting_signals
from mgm_prep.sources.discover import Source, describe_ignored, find_sources
from mgm_shared.errors import UserError
from mgm_shared.index import all_attributes, codes, committed_parts, extracted_ids, numbers, write_index
from mgm_shared.schema import PARTS_DIR, SCHEMA_VERSION, UNFINISHED_DIR, group_metadata
from mgm_shared.storage import StorePath, file_names, folder_names, is_file, remove, write_bytes
from mgm_shared.store import check_schema
from mgm_shared.store_files import METADATA_FILE

FAILURES_EVERY_S = 10


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `extract` reports as it goes: videos to do, done and failed, frames written, in this call and step."""

    step: str = "videos"
    """First `headers`, then `videos`."""
    num_to_do: int
    num_done: int = 0
    num_failed: int = 0
    num_frames: int = 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a data set's extraction came to, this call and earlier ones together."""

    store: str
    listed: int
    done: int
    failed: int
    extracted_now: int
    frames: int
    parts: int
    ignored_files: int
    """Files that are not videos; hidden files and folders are among them."""
    ignored_lines: int
    """Lines of a list that begin with `#` and name no file."""
    changed: int
    """Files that are others now than those that were extracted, and were not refreshed."""
    vanished: int
    """Videos of the store that are not in the data set any more."""
    without_vectors: dict[str, int] = field(default_factory=dict)
    """Videos by codec, of those whose codec exports no motion vectors."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What `extract` would do: for --dry-run."""

    store: str
    listed: int
    done: int
    failed: int
    changed: int
    vanished: int
    to_do: int
    new: int


Report = Callable[[Progress], None]


def outlook(videos: Path, store: StorePath) -> Outlook:
    """Compare a data set with its store without opening a video. UserError as `extract`."""
    found = find_sources(videos)
    if is_file(store / METADATA_FILE):
        check_schema(store)
        changes = find_changes(store, {source.video_id: source for source in found.sources})
        done = extracted_ids(store)
    else:
        changes, done = Changes(), set()
    planned = {video_id for part in read_plan(store) for video_id in part.videos}
    failed = read_failures(store).keys()
    listed = {source.video_id for source in found.sources}
    return Outlook(
        store=str(store),
        listed=len(listed),
        done=len(listed & done),
        failed=len(listed & failed),
        changed=len(changes.changed),
        vanished=len(changes.vanished),
        to_do=len(listed - done - failed),
        new=len(listed - planned - failed),
    )


def extract(
    videos: Path,
    store: StorePath,
    settings: ExtractSettings,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    labels: Sequence[Path] = (),
    fold: int = 1,
    refresh: bool = False,
    retry_failed: bool = False,
    report: Report = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Extract all videos that the store does not have yet; `labels` and `fold` as in `attach_labels`.

    `refresh` takes those anew whose files changed since, `retry_failed` those that were rejected.
    UserError for a data set without videos, labels that cannot be read, or a store that other settings or another
    schema made.
    """
    found = find_sources(videos)
    annotations = read_label_files(labels, fold)
    sources = {source.video_id: source for source in found.sources}
    _check_place(store)
    if found.ignored or found.comments:
        say(f"skipped: {describe_ignored(found)}")
    with locked(store, say) as still_ours:

        def guarded_report(progress: Progress) -> None:
            still_ours()
            report(progress)

        def headers_report(num_to_do: int, num_done: int, num_failed: int) -> None:
            guarded_report(Progress(step="headers", num_to_do=num_to_do, num_done=num_done, num_failed=num_failed))

        _open_or_create(store, settings)
        _clear_unfinished(store)
        try:
            with open_cluster(workers, scheduler, say) as cluster:
                changes = find_changes(store, sources)
                say_changes(changes, refresh, say)
                plan = refreshed_plan(store, sources, changes, is_refresh=refresh, is_retry=retry_failed)
                plan = replace_parts(store, plan, settings, cluster)
                plan = extended_plan(store, plan, found.sources, settings, cluster, headers_report, say)
                if annotations:
                    match = match_videos(annotations, known_videos(store, plan))
                    say_unattached(match, say)
                    merge_labels(store, match)
                progress = _extract_parts(store, plan, sources, settings, cluster, guarded_report)
        finally:
            with noting_signals():
                still_ours()
                # Only after the workers are gone: they may still write there.
                _clear_unfinished(store)
                table = write_index(store)
                failures = _all_failures(store)
                write_failures(store, failures.values())
    is_listed = np.array([video_id in sources for video_id in table["video_id"].to_pylist()], bool)
    codec_of_row, codec_names = codes(table, "codec")
    codecs = Counter(codec_names[code] or "" for code in codec_of_row[is_listed])
    return Summary(
        store=str(store),
        listed=len(sources),
        done=int(is_listed.sum()),
        failed=len(failures.keys() & sources.keys()),
        extracted_now=progress.num_done,
        frames=int(numbers(table, "num_frames")[is_listed].sum()),
        parts=len(committed_parts(store)),
        ignored_files=found.ignored.total(),
        ignored_lines=len(found.comments),
        changed=0 if refresh else len(changes.changed),
        vanished=len(changes.vanished),
        without_vectors={codec: n for codec, n in sorted(codecs.items()) if codec not in VECTOR_CODECS},
    )


def _check_place(store: StorePath) -> None:
    """UserError where something is that is neither a store nor the beginning of one, from a run that was killed."""
    if is_file(store / METADATA_FILE):
        return
    foreign = {*folder_names(store), *file_names(store)} - {PARTS_DIR, UNFINISHED_DIR, LOCK_FILE}
    if is_file(store) or foreign or committed_parts(store):
        raise UserError(f"{store} exists and is not an mgm store; choose another place for the store")


def _open_or_create(store: StorePath, settings: ExtractSettings) -> None:
    """Write the root group of a new store, or make sure that an old one was made with the same settings."""
    if not is_file(store / METADATA_FILE):
        names = ["mgm", "av", "zarr", "numcodecs"]
        names += ["motion-vector-extractor"] if settings.decoder == "mv-extractor" else []
        libraries = {name: version(name) for name in names}
        ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
        attributes = {
            "mgm_schema_version": SCHEMA_VERSION,
            "settings": settings.recorded(),
            # OpenCV comes under several names (headless, contrib), and may come under none.
            "libraries": libraries | {"opencv": cv2.__version__, "ffmpeg": ffmpeg},
        }
        write_bytes(store / PARTS_DIR / METADATA_FILE, group_metadata())
        # Last, since its presence says that this is a store.
        write_bytes(store / METADATA_FILE, group_metadata(attributes))
        return
    recorded = check_schema(store)["settings"]
    differing = [name for name, value in settings.recorded().items() if recorded.get(name) != value]
    if differing:
        was = ", ".join(f"{name} = {recorded.get(name)}" for name in differing)
        raise UserError(f"{store} was extracted with {was}; use the same settings, or another store, or --force")


def _clear_unfinished(store: StorePath) -> None:
    """Delete what is half-done."""
    remove(store / UNFINISHED_DIR)
    parts = store / PARTS_DIR
    for name in set(folder_names(parts)) - set(committed_parts(store)):
        remove(parts / name)


def _extract_parts(
    store: StorePath,
    plan: Iterable[PlannedPart],
    sources: Mapping[str, Source],
    settings: ExtractSettings,
    cluster: Cluster,
    report: Report,
) -> Progress:
    """Extract the parts of the plan that are neither committed nor known to hold nothing readable."""
    committed, failures = set(committed_parts(store)), read_failures(store)
    missing = [
        row
        for row in plan
        if row.name not in committed
        and not failures.keys() >= set(row.videos)
        # The others' files are elsewhere: another run of this command planned them.
        and not sources.keys().isdisjoint(row.videos)
    ]
    parts = (row.part(sources, failures) for row in missing)
    progress = Progress(num_to_do=sum(len(row.videos) for row in missing))
    report(progress)
    written_s = time.monotonic()
    for result in cluster.map(extract_part, parts, store, settings, after_deaths=after_deaths(store)):
        failures |= {failure.video_id: failure for failure in result.failures}
        # Not after each: the list may be long. What is lost with a killed run is in the parts, or found out again.
        if result.failures and time.monotonic() - written_s > FAILURES_EVERY_S:
            write_failures(store, failures.values())
            written_s = time.monotonic()
        progress = replace(
            progress,
            num_done=progress.num_done + result.num_videos,
            num_failed=progress.num_failed + len(result.failures),
            num_frames=progress.num_frames + result.num_frames,
        )
        report(progress)
    write_failures(store, failures.values())
    return progress


def _all_failures(store: StorePath) -> dict[str, Failure]:
    """Those of the list and those that the parts recorded, should a run have been killed between the two."""
    failures = read_failures(store)
    planned = {row.name: row.videos for row in read_plan(store)}
    for part, attributes in all_attributes(store):
        for row in attributes["failures"]:
            # Without a place in the plan it has been tried again.
            if row["video_id"] in planned.get(part, ()):
                failures.setdefault(row["video_id"], Failure(**row))
    return failures

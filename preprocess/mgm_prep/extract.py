"""The first stage: sources → plan → parts → index. The same call again does only what is missing."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import zarr

from mgm_prep.cluster import Cluster, open_cluster
from mgm_prep.config import ExtractSettings
from mgm_prep.labels import match_videos, merge_labels, read_label_files, say_unattached
from mgm_prep.part import AnyTask, Failure, Task, extract_part, without_killer
from mgm_prep.plan import (
    PlannedPart,
    Probe,
    locked,
    plan_parts,
    probe_all,
    read_failures,
    read_plan,
    write_failures,
    write_plan,
)
from mgm_prep.reencode import VECTOR_CODECS
from mgm_prep.sources import Source, find_sources
from mgm_shared.errors import UserError
from mgm_shared.index import codes, committed_parts, numbers, part_attributes, read_index, write_index
from mgm_shared.schema import PARTS_DIR, SCHEMA_VERSION, UNFINISHED_DIR
from mgm_shared.store import check_schema

PROBES_PER_TASK = 32
INSTEAD = {
    "transcode": "their motion is taken from an H.264 transcode",
    "estimate": "their motion is estimated by block matching",
    "skip": "their motion is left missing",
}
# Of this many pairs of dead workers a task may be the cause before something else must be wrong.
MAX_DEATHS = 20


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `extract` reports as it goes: videos to do, done and failed, frames written, in this call."""

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
    without_vectors: dict[str, int] = field(default_factory=dict)
    """Videos by codec, of those whose codec exports no motion vectors."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What `extract` would do: for --dry-run."""

    store: str
    listed: int
    done: int
    failed: int
    to_do: int
    new: int


Report = Callable[[Progress], None]


def outlook(videos: Path, store: Path) -> Outlook:
    """Compare a data set with its store without opening a video. UserError as `extract`."""
    found = find_sources(videos)
    if (store / "zarr.json").exists():
        check_schema(store)
    planned = {video_id for part in read_plan(store) for video_id in part.videos}
    failed = {failure.video_id for failure in read_failures(store)}
    listed = {source.video_id for source in found.sources}
    done = set(read_index(store)["video_id"].to_pylist())
    return Outlook(
        store=str(store),
        listed=len(listed),
        done=len(listed & done),
        failed=len(listed & failed),
        to_do=len(listed - done - failed),
        new=len(listed - planned - failed),
    )


def extract(
    videos: Path,
    store: Path,
    settings: ExtractSettings,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    labels: Sequence[Path] = (),
    fold: int = 1,
    report: Report = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Extract all videos that the store does not have yet; `labels` and `fold` as in `attach_labels`.

    UserError for a data set without videos, labels that cannot be read, or a store that other settings or another
    schema made.
    """
    found = find_sources(videos)
    annotations = read_label_files(labels, fold)
    sources = {source.video_id: source for source in found.sources}
    _open_or_create(store, settings)
    if found.ignored:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(found.ignored.items()))
        say(f"{found.ignored.total()} files without a video's suffix are left alone ({kinds})")
    with locked(store):
        shutil.rmtree(store / UNFINISHED_DIR, ignore_errors=True)
        try:
            with open_cluster(workers, scheduler) as cluster:
                if cluster.dashboard:
                    say(f"dask dashboard: {cluster.dashboard}")
                plan = _completed_plan(store, found.sources, settings, cluster, say)
                if annotations:
                    match = match_videos(annotations, _known(store, plan))
                    say_unattached(match, say)
                    merge_labels(store, match)
                progress = _extract_parts(store, plan, sources, settings, cluster, report)
        finally:
            # Only after the workers are gone: they may still write there.
            shutil.rmtree(store / UNFINISHED_DIR, ignore_errors=True)
            table = write_index(store)
            failures = _all_failures(store)
            write_failures(store, failures)
    is_listed = np.array([video_id in sources for video_id in table["video_id"].to_pylist()], bool)
    codec_of_row, codec_names = codes(table, "codec")
    codecs = Counter(codec_names[code] or "" for code in codec_of_row[is_listed])
    return Summary(
        store=str(store),
        listed=len(sources),
        done=int(is_listed.sum()),
        failed=len({failure.video_id for failure in failures} & sources.keys()),
        extracted_now=progress.num_done,
        frames=int(numbers(table, "num_frames")[is_listed].sum()),
        parts=len(committed_parts(store)),
        ignored_files=sum(found.ignored.values()),
        without_vectors={codec: n for codec, n in sorted(codecs.items()) if codec not in VECTOR_CODECS},
    )


def _open_or_create(store: Path, settings: ExtractSettings) -> None:
    """Write the root group of a new store, or make sure that an old one was made with the same settings."""
    if not (store / "zarr.json").exists():
        if store.exists() and (not store.is_dir() or any(store.iterdir())):
            raise UserError(f"{store} exists and is not an mgm store; choose another place for the store")
        store.mkdir(parents=True, exist_ok=True)
        libraries = {name: version(name) for name in ("mgm", "av", "opencv-python", "zarr", "numcodecs")}
        attributes = {
            "mgm_schema_version": SCHEMA_VERSION,
            "settings": settings.recorded(),
            "libraries": libraries | {"ffmpeg": ".".join(map(str, av.library_versions["libavcodec"]))},
        }
        zarr.create_group(str(store / PARTS_DIR))
        # Last, since its presence says that this is a store.
        zarr.create_group(str(store), attributes=attributes)
        return
    recorded = check_schema(store)["settings"]
    differing = [name for name, value in settings.recorded().items() if recorded.get(name) != value]
    if differing:
        was = ", ".join(f"{name} = {recorded.get(name)}" for name in differing)
        raise UserError(f"{store} was extracted with {was}; use the same settings, or another store, or --force")


def _completed_plan(
    store: Path, sources: Sequence[Source], settings: ExtractSettings, cluster: Cluster, say: Callable[[str], None]
) -> list[PlannedPart]:
    """The store's plan, extended by the sources that it does not know yet."""
    plan = read_plan(store)
    known = _known(store, plan)
    new = [source for source in sources if source.video_id not in known]
    if not new:
        return plan
    say(f"reading the headers of {len(new)} videos")
    starts = range(0, len(new), PROBES_PER_TASK)
    batches = [Task(name=f"headers-{start}", sources=tuple(new[start : start + PROBES_PER_TASK])) for start in starts]
    probed = cluster.map(probe_all, batches, store, settings, after_deaths=_after_deaths(store))
    found = [probe for batch in probed for probe in batch]
    plan += plan_parts((probe for probe in found if isinstance(probe, Probe)), num_planned=len(plan))
    failures = [probe for probe in found if isinstance(probe, Failure)]
    write_failures(store, [*read_failures(store), *failures])
    write_plan(store, plan)
    _say_without_vectors(found, settings, say)
    return plan


def _known(store: Path, plan: Sequence[PlannedPart]) -> set[str]:
    """The videos that have a place in the plan, or none because they were rejected."""
    rejected = {failure.video_id for failure in read_failures(store)}
    return rejected | {video_id for part in plan for video_id in part.videos}


def _say_without_vectors(
    found: Sequence[Probe | Failure], settings: ExtractSettings, say: Callable[[str], None]
) -> None:
    codecs = Counter(probe.codec for probe in found if isinstance(probe, Probe) and probe.codec not in VECTOR_CODECS)
    if codecs:
        kinds = ", ".join(f"{codec} {count}" for codec, count in sorted(codecs.items()))
        say(f"{codecs.total()} videos have a codec without motion vectors ({kinds}); {INSTEAD[settings.no_vectors]}")


def _extract_parts(
    store: Path,
    plan: Sequence[PlannedPart],
    sources: dict[str, Source],
    settings: ExtractSettings,
    cluster: Cluster,
    report: Report,
) -> Progress:
    """Extract the parts of the plan that are neither committed nor known to hold nothing readable."""
    committed = set(committed_parts(store))
    failures = {failure.video_id: failure for failure in read_failures(store)}
    missing = [part for part in plan if part.name not in committed and not failures.keys() >= set(part.videos)]
    parts = [part.part(sources, failures) for part in missing]
    progress = Progress(num_to_do=sum(len(part.sources) for part in parts))
    report(progress)
    for result in cluster.map(extract_part, parts, store, settings, after_deaths=_after_deaths(store)):
        if result.failures:
            failures |= {failure.video_id: failure for failure in result.failures}
            write_failures(store, failures.values())
        progress = replace(
            progress,
            num_done=progress.num_done + result.num_videos,
            num_failed=progress.num_failed + len(result.failures),
            num_frames=progress.num_frames + result.num_frames,
        )
        report(progress)
    return progress


def _after_deaths(store: Path) -> Callable[[AnyTask], AnyTask]:
    """What to try instead of a task that ended two workers. RuntimeError when that goes on and on."""
    deaths: Counter[str] = Counter()

    def after_deaths(task: AnyTask) -> AnyTask:
        deaths[task.name] += 1
        if deaths[task.name] > MAX_DEATHS:
            raise RuntimeError(
                f"workers keep dying at {task.name}; the rest is done, and the same command goes on from there"
            )
        return without_killer(task, store)

    return after_deaths


def _all_failures(store: Path) -> list[Failure]:
    """Those of the list and those that the parts recorded, should a run have been killed between the two."""
    failures = {failure.video_id: failure for failure in read_failures(store)}
    for part in committed_parts(store):
        for row in part_attributes(store, part)["failures"]:
            failures.setdefault(row["video_id"], Failure(**row))
    return list(failures.values())

"""Differences between a data set and its store: files that changed or are gone, rejected videos to try again.

Parts never change. A part that holds a video whose file changed is replaced by a part with another name. The new part
has the bytes of the other videos as they are, and the changed video counts as new.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.failures import read_failures, write_failures
from mgm_prep.extraction.part import PartWriter, file_version
from mgm_prep.extraction.plan import PlannedPart, next_number, part_name, read_plan, write_plan
from mgm_prep.extraction.tasks import Job
from mgm_prep.sources.discover import Source
from mgm_shared.errors import UserError
from mgm_shared.index import committed_parts, open_index, part_attributes
from mgm_shared.progress import Progress
from mgm_shared.schema import PARTS_DIR, UNFINISHED_DIR, VideoRecord
from mgm_shared.shard_reader import DamagedChunk, ShardedArray
from mgm_shared.storage import StorePath, publish, scratch_folder, withdraw
from mgm_shared.store import Video


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Ids of videos in the store that are not in the data set as they were."""

    changed: frozenset[str] = frozenset()
    """The file has another size or modification time."""
    vanished: frozenset[str] = frozenset()
    """There is no such file any more."""


def find_changes(store: StorePath, sources: Mapping[str, Source]) -> Changes:
    """Compare the size and modification time of the file of each extracted video with those recorded."""
    changed, vanished = set(), set()
    table = open_index(store).select(["video_id", "size", "mtime"])
    for video_id, size, mtime in zip(*(column.to_pylist() for column in table.columns), strict=True):
        try:
            version = file_version(sources[video_id].path)
        except (KeyError, OSError):
            vanished.add(video_id)
        else:
            changed.update([video_id] if version != (size, mtime) else [])
    return Changes(changed=frozenset(changed), vanished=frozenset(vanished))


def say_changes(changes: Changes, is_refresh: bool, progress: Progress) -> None:
    """Report the changes to the user."""
    if changes.changed:
        what = "they are extracted again" if is_refresh else "--refresh extracts them again"
        files = f"{len(changes.changed)} files changed since they were extracted ({_some(changes.changed)})"
        progress.say(f"{files}; {what}")
    if changes.vanished:
        videos = f"{len(changes.vanished)} videos of the store are not in VIDEOS ({_some(changes.vanished)})"
        progress.say(f"{videos}; they are kept")


def _some(video_ids: Iterable[str]) -> str:
    """The first three ids, for messages."""
    first, *rest = sorted(video_ids)
    return ", ".join([first, *rest[:2]]) + (" …" if len(rest) > 2 else "")


def refreshed_plan(
    store: StorePath, sources: Mapping[str, Source], changes: Changes, *, is_refresh: bool, is_retry: bool
) -> list[PlannedPart]:
    """The plan of the store, without the videos that are to be extracted again."""
    plan, failures = _whole_plan(store), read_failures(store)
    again = set(changes.changed) if is_refresh else set()
    again |= failures.keys() & sources.keys() if is_retry else set()
    if again:
        plan = plan_without(plan, again, extracted=changes.changed)
        # The plan first: after a run that is killed in between, the same command does the rest.
        write_plan(store, plan)
        write_failures(store, (failure for failure in failures.values() if failure.video_id not in again))
    return plan


def _whole_plan(store: StorePath) -> list[PlannedPart]:
    """The plan, and parts that it lacks because plan.jsonl was lost."""
    plan = read_plan(store)
    named = {row.name for row in plan} | {row.replaces for row in plan}
    for name in committed_parts(store):
        if name not in named:
            attributes = part_attributes(store, name)
            videos = tuple(record["video_id"] for key in ("videos", "failures") for record in attributes[key])
            plan.append(PlannedPart(name=name, height=attributes["height"], width=attributes["width"], videos=videos))
    return plan


def plan_without(plan: Sequence[PlannedPart], videos: Collection[str], extracted: Collection[str]) -> list[PlannedPart]:
    """The plan without `videos`, so that they count as new. A part that holds one of them is planned to be replaced.

    `extracted` are the videos that are in a part; the others were rejected.
    """
    number = next_number(plan)
    rows = []
    for row in plan:
        kept = tuple(video_id for video_id in row.videos if video_id not in videos)
        if any(video_id in videos and video_id in extracted for video_id in row.videos):
            row = replace(row, name=part_name(row.height, row.width, number), replaces=row.name)
            number += 1
        if kept or row.replaces:
            rows.append(replace(row, videos=kept))
    return rows


def to_replace(plan: Sequence[PlannedPart], store: StorePath) -> list[PlannedPart]:
    """The rows of the plan whose old part still exists."""
    committed = set(committed_parts(store))
    return [row for row in plan if row.replaces in committed]


def replace_parts(job: Job[StorePath, ExtractSettings], plan: list[PlannedPart]) -> list[PlannedPart]:
    """Replace the parts that hold changed videos, also those that an interrupted run left. Returns the new plan."""
    rows = to_replace(plan, job.place)
    for _ in job.cluster.map(replace_part, rows, job.place, job.settings):
        job.check_lock()
    kept = [row for row in plan if row.videos]
    if kept != plan:
        write_plan(job.place, kept)
    return kept


def replace_part(row: PlannedPart, store: StorePath, settings: ExtractSettings) -> str:
    """Write a part with the videos that the plan keeps of an old part, and delete the old part. Returns the new name.

    UserError when the old part is damaged.
    """
    committed = committed_parts(store)
    if row.replaces is None or row.replaces not in committed:
        # Dask may run a task twice.
        return row.name
    if row.videos and row.name not in committed:
        try:
            _write_replacement(row, row.replaces, store, settings)
        except DamagedChunk as error:
            raise UserError(
                f"{error}; a damaged part cannot be copied: `mgm-prep verify {store} --repair` first"
            ) from None
    withdraw(store / PARTS_DIR / row.replaces, store / UNFINISHED_DIR / f"{row.replaces}-withdrawn")
    return row.name


def _write_replacement(row: PlannedPart, old_name: str, store: StorePath, settings: ExtractSettings) -> None:
    old, attributes = store / PARTS_DIR / old_name, part_attributes(store, old_name)
    frames, motion = ShardedArray.open(old / "frames"), ShardedArray.open(old / "motion")
    with scratch_folder(store / UNFINISHED_DIR / f"{row.name}-{uuid.uuid4().hex}") as folder:
        writer = PartWriter(folder, row.height, row.width, settings)
        for record in attributes["videos"]:
            if record["video_id"] in row.videos:
                video = Video(old, record["video_id"], record)
                span = range(record["start"], record["start"] + record["num_frames"])
                packed_TYX2 = motion.read(np.array(span))
                writer.copy_video(
                    VideoRecord(**record), frames.encoded(span), packed_TYX2, video.time_s, video.picture_type
                )
        failures = [failure for failure in attributes["failures"] if failure["video_id"] in row.videos]
        # For a moment both parts exist; the index ignores a part that another one replaces.
        writer.finish({"failures": failures, "replaces": old_name})
        publish(folder, store / PARTS_DIR / row.name)

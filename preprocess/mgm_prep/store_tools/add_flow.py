"""Optical flow for the videos of a store, as another array of each part; the same call again does what is missing.

Axes: T frames · H,W pixels · C = RGB.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgm_prep.config import FlowSettings
from mgm_prep.motion.optical_flow import FRAMES_PER_BATCH, cell_motion, described, estimator
from mgm_prep.runtime.cluster import open_cluster
from mgm_prep.runtime.lock import locked
from mgm_shared.errors import UserError
from mgm_shared.files import flush
from mgm_shared.index import committed_parts, part_attributes
from mgm_shared.schema import PARTS_DIR, UNFINISHED_DIR, flow_spec, pack_motion
from mgm_shared.shard_reader import DamagedChunk, ShardedArray
from mgm_shared.shard_writer import ShardWriter
from mgm_shared.storage import StorePath, is_file, publish, read_bytes, remove, scratch_folder, withdraw
from mgm_shared.store import check_schema
from mgm_shared.store_files import METADATA_FILE


@dataclass(frozen=True, kw_only=True)
class FlowSummary:
    """What a call came to; `frames` are those of the parts that have flow now."""

    store: str
    method: str
    parts: int
    computed_now: int
    frames: int
    damaged: tuple[str, ...] = ()
    """Parts whose frames cannot be read: where, and why."""


@dataclass(frozen=True, kw_only=True)
class PartFlow:
    """What a worker sends back."""

    part: str
    num_frames: int = 0
    problem: str = ""


Report = Callable[[int, int], None]


def add_flow(
    store: StorePath,
    settings: FlowSettings,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    is_forced: bool = False,
    report: Report = lambda done, total: None,
) -> FlowSummary:
    """Compute the flow of each part that has none; `report` is told frames done and to do.

    UserError for a store with flow by another method or other weights, which `is_forced` replaces part by part.
    """
    check_schema(store)
    recorded = described(settings)
    with locked(store) as still_ours:
        names = committed_parts(store)
        outdated = [name for name in names if _recorded(store, name) not in (None, recorded)]
        if outdated and not is_forced:
            was = ", ".join(str(value) for value in (_recorded(store, outdated[0]) or {}).values())
            raise UserError(f"{store} has flow by {was}; --force replaces it")
        todo = [name for name in names if _recorded(store, name) != recorded]
        num_frames = {name: _num_frames(store, name) for name in names}
        total = sum(num_frames[name] for name in todo)
        report(0, total)
        results: list[PartFlow] = []
        try:
            with open_cluster(workers, scheduler) as cluster:
                for result in cluster.map(flow_part, todo, store, settings, recorded, after_deaths=_give_up):
                    still_ours()
                    results.append(result)
                    report(sum(num_frames[result.part] for result in results), total)
        finally:
            # Only after the workers are gone: they may still write there.
            remove(store / UNFINISHED_DIR)
    damaged = {result.part: result.problem for result in results if result.problem}
    return FlowSummary(
        store=str(store),
        method=settings.method,
        parts=len(names) - len(damaged),
        computed_now=len(results) - len(damaged),
        frames=sum(num_frames[name] for name in names if name not in damaged),
        damaged=tuple(f"{part}: {problem}" for part, problem in sorted(damaged.items())),
    )


def flow_part(name: str, store: StorePath, settings: FlowSettings, recorded: dict[str, Any]) -> PartFlow:
    """Compute one part's flow, and show it when all of it is on the disk: one task of the cluster."""
    part = store / PARTS_DIR / name
    attributes = part_attributes(store, name)
    estimate = estimator(settings)
    frames = ShardedArray.open(part / "frames")
    # A name of its own: Dask may start a task again while the first try is still running somewhere.
    scratch = store / UNFINISHED_DIR / f"flow-{name}-{uuid.uuid4().hex}"
    with scratch_folder(scratch) as folder:
        writer = ShardWriter(folder, flow_spec(attributes["height"], attributes["width"], recorded))
        try:
            for video in attributes["videos"]:
                for motion_YX2 in cell_motion(_stretches(frames, video), estimate):
                    writer.append(pack_motion(motion_YX2))
        except DamagedChunk as error:
            return PartFlow(part=name, problem=str(error))
        writer.close()
        for path in [*(folder / "flow").rglob("*"), folder / "flow"]:
            flush(path)
        if is_file(part / "flow" / METADATA_FILE):
            withdraw(part / "flow", store / UNFINISHED_DIR / f"{scratch.name}.old")
        publish(folder / "flow", part / "flow")
    return PartFlow(part=name, num_frames=writer.num_frames)


def _stretches(frames: ShardedArray, video: dict[str, Any]) -> Iterator[NDArray[np.uint8]]:
    """A video's frames, a batch at a time."""
    first, last = video["start"], video["start"] + video["num_frames"]
    for start in range(first, last, FRAMES_PER_BATCH - 1):
        yield frames.read(np.arange(start, min(start + FRAMES_PER_BATCH - 1, last)))


def _recorded(store: StorePath, name: str) -> dict[str, Any] | None:
    """How a part's flow was made; None where it has none."""
    try:
        metadata = json.loads(read_bytes(store / PARTS_DIR / name / "flow" / METADATA_FILE))
        made_by: dict[str, Any] = metadata["attributes"]["made_by"]
        return made_by
    except FileNotFoundError:
        return None


def _num_frames(store: StorePath, name: str) -> int:
    return sum(video["num_frames"] for video in part_attributes(store, name)["videos"])


def _give_up(name: str) -> str:
    raise UserError(f"two workers died at part {name}, perhaps of too little memory; try again with fewer --workers")

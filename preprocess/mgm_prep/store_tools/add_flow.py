"""Add optical flow to a store, as another array of each part. A second call computes only what is missing.

Axes: T frames · H,W pixels · C = RGB.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgm_prep.config import FlowSettings
from mgm_prep.motion.optical_flow import FRAMES_PER_BATCH, cell_motion, described, estimator
from mgm_prep.runtime.cluster import open_cluster
from mgm_prep.runtime.execution import Execution
from mgm_prep.runtime.lock import locked
from mgm_shared.errors import UserError
from mgm_shared.files import flush
from mgm_shared.index import committed_parts, part_attributes
from mgm_shared.pack import pack_motion
from mgm_shared.schema import PARTS_DIR, UNFINISHED_DIR, flow_spec
from mgm_shared.shard_reader import DamagedChunk, ShardedArray
from mgm_shared.shard_writer import ShardWriter
from mgm_shared.storage import (
    PathLike,
    StorePath,
    is_file,
    publish,
    read_bytes,
    remove,
    scratch_folder,
    store_path,
    withdraw,
)
from mgm_shared.store import check_schema
from mgm_shared.store_files import METADATA_FILE


@dataclass(frozen=True, kw_only=True)
class FlowSummary:
    """The optical flow of a store after a call."""

    store: str
    method: str
    parts: int
    """Parts that have flow now."""
    computed_now: int
    """Parts that this call computed."""
    frames: int
    """Frames of the parts that have flow now."""
    damaged: tuple[str, ...] = ()
    """Parts whose frames cannot be read, with the reason."""


@dataclass(frozen=True, kw_only=True)
class PartFlow:
    """What a worker returns."""

    part: str
    num_frames: int = 0
    problem: str = ""


def add_flow(
    store: PathLike, settings: FlowSettings | None = None, execution: Execution | None = None, *, force: bool = False
) -> FlowSummary:
    """Compute the optical flow of each part that has none; `video.flow` reads it: float32 (T, Y, X, 2) px a frame.

    Args:
        store: A store made by `extract`.
        settings: The method and its weights.
        execution: Workers and progress. By default everything runs silently in this process.
        force: Replace flow of another method or of other weights, part by part. UserError without it.
    """
    settings, execution, place = settings or FlowSettings(), execution or Execution(), store_path(store)
    check_schema(place)
    with locked(place, execution.progress) as check_lock:
        names = committed_parts(place)
        recorded = described(settings)
        todo = _parts_without_flow(place, names, recorded, force)
        num_frames = {name: _num_frames(place, name) for name in names}
        execution.progress.start("optical flow", sum(num_frames[name] for name in todo), "frame")
        results: list[PartFlow] = []
        try:
            with open_cluster(execution) as cluster:
                for result in cluster.map(flow_part, todo, place, settings, recorded, after_deaths=_give_up):
                    check_lock()
                    results.append(result)
                    execution.progress.advance(num_frames[result.part])
        finally:
            # After the cluster is closed, since its workers may write there until then.
            remove(place / UNFINISHED_DIR)
    damaged = {result.part: result.problem for result in results if result.problem}
    return FlowSummary(
        store=str(place),
        method=settings.method,
        parts=len(names) - len(damaged),
        computed_now=len(results) - len(damaged),
        frames=sum(num_frames[name] for name in names if name not in damaged),
        damaged=tuple(f"{part}: {problem}" for part, problem in sorted(damaged.items())),
    )


def _parts_without_flow(store: StorePath, names: list[str], recorded: dict[str, Any], force: bool) -> list[str]:
    """The parts to compute. UserError when one has other flow that `force` does not replace."""
    outdated = [name for name in names if _recorded(store, name) not in (None, recorded)]
    if outdated and not force:
        was = ", ".join(str(value) for value in (_recorded(store, outdated[0]) or {}).values())
        raise UserError(f"{store} has flow by {was}; --force replaces it")
    return [name for name in names if _recorded(store, name) != recorded]


def flow_part(name: str, store: StorePath, settings: FlowSettings, recorded: dict[str, Any]) -> PartFlow:
    """Compute the flow of one part, and publish it when all of it is on disk: one task of the cluster."""
    part = store / PARTS_DIR / name
    attributes = part_attributes(store, name)
    estimate = estimator(settings)
    frames = ShardedArray.open(part / "frames")
    # A unique name: Dask may start a task again while the first try is still running elsewhere.
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
    """The frames of a video in batches (T, H, W, C)."""
    first, last = video["start"], video["start"] + video["num_frames"]
    for start in range(first, last, FRAMES_PER_BATCH - 1):
        yield frames.read(np.arange(start, min(start + FRAMES_PER_BATCH - 1, last)))


def _recorded(store: StorePath, name: str) -> dict[str, Any] | None:
    """How the flow of a part was made; None when it has none."""
    try:
        metadata = json.loads(read_bytes(store / PARTS_DIR / name / "flow" / METADATA_FILE))
        made_by: dict[str, Any] = metadata["attributes"]["made_by"]
        return made_by
    except FileNotFoundError:
        return None


def _num_frames(store: StorePath, name: str) -> int:
    return sum(video["num_frames"] for video in part_attributes(store, name)["videos"])


def _give_up(name: str) -> str:
    raise UserError(f"two workers died at part {name}, perhaps for lack of memory; try again with fewer --workers")

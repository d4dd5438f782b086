"""Is a store what it says: every chunk's checksum, every array's length, every video's place, the index."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import zarr

from mgm_shared.index import committed_parts, part_attributes, read_index
from mgm_shared.schema import INDEX_FILE, PARTS_DIR
from mgm_shared.shards import ShardedArray
from mgm_shared.storage import METADATA_FILE, StorePath, is_file
from mgm_shared.store import open_store

SHARDED, OPTIONAL, TRACKS = ("frames", "motion"), ("flow",), ("time", "picture_type")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verification found."""

    store: str
    parts: int
    videos: int
    chunks: int
    problems: list[str] = field(default_factory=list)
    """One line each: where, and what is wrong."""


def verify(store: StorePath) -> Verdict:
    """Read every byte of a store. UserError when it is none."""
    open_store(store)
    names = committed_parts(store)
    problems: list[str] = []
    num_videos = num_chunks = 0
    for name in names:
        try:
            num_videos += len(part_attributes(store, name)["videos"])
            for problem in _part_problems(store, name):
                problems.append(f"{name}: {problem}")
            part = store / PARTS_DIR / name
            num_chunks += sum(ShardedArray.open(part / array).num_chunks for array in _sharded(part))
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{name}: its metadata cannot be read ({type(error).__name__}: {error})")
    if not problems:
        problems += _index_problems(store)
    return Verdict(store=str(store), parts=len(names), videos=num_videos, chunks=num_chunks, problems=problems)


def _sharded(part: StorePath) -> list[str]:
    return [*SHARDED, *(name for name in OPTIONAL if is_file(part / name / METADATA_FILE))]


def _part_problems(store: StorePath, name: str) -> Iterator[str]:
    part = store / PARTS_DIR / name
    num_frames = 0
    for video in part_attributes(store, name)["videos"]:
        if video["start"] != num_frames:
            yield f"{video['video_id']} starts at frame {video['start']}, and the one before ends at {num_frames}"
        num_frames = video["start"] + video["num_frames"]
    for array_name in _sharded(part):
        array = ShardedArray.open(part / array_name)
        if array.shape[0] != num_frames:
            yield f"{array_name} has {array.shape[0]} frames, its videos {num_frames}"
        for chunk, error in array.damage():
            yield f"{array_name}, frames {chunk * array.chunk_frames} and on: {error}"
    for array_name in TRACKS:
        try:
            # zarr-python checks the crc32c of these two, which are one chunk each.
            length = np.size(zarr.open_array(str(part / array_name), mode="r")[:])
            is_there = is_file(part / array_name / "c.0")
        except (ValueError, OSError) as error:
            yield f"{array_name}: {error}"
            continue
        if length != num_frames or not is_there:
            yield f"{array_name} has {length if is_there else 0} values, its videos {num_frames} frames"


def _index_problems(store: StorePath) -> Iterator[str]:
    if not is_file(store / INDEX_FILE):
        yield f"{INDEX_FILE} is missing; `mgm-prep index {store}` makes it"
    elif not open_store(store).table.equals(read_index(store)):
        yield f"{INDEX_FILE} differs from the parts; `mgm-prep index {store}` makes it anew"

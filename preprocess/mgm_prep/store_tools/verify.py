"""Verify a store: the checksum of every chunk, the length of every array, the place of every video, the index.

Some videos can also be decoded again and compared with what is stored.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import zarr

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.image import is_image_codec
from mgm_prep.extraction.part import PartWriter, file_version
from mgm_prep.sources.discover import ANY_KIND, Source, find_sources
from mgm_shared.index import codes, committed_parts, part_attributes, read_index
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import segment_problem
from mgm_shared.schema import INDEX_FILE, PARTS_DIR, SEGMENTS_FILE
from mgm_shared.shard_reader import DamagedChunk, ShardedArray
from mgm_shared.storage import PathLike, StorePath, is_file, store_path
from mgm_shared.store import Store, Video, open_store
from mgm_shared.store_files import METADATA_FILE

# Limits for a video that is decoded again: mean difference in grey levels, and share of cells with other motion.
MAX_LEVELS, MAX_MOVED = 1.0, 0.01
SHARDED, OPTIONAL, TRACKS = ("frames", "motion"), ("flow",), ("time", "picture_type")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a verification."""

    store: str
    parts: int
    videos: int
    chunks: int
    problems: list[str] = field(default_factory=list)
    """One line for each: the place, and what is wrong."""
    broken_parts: list[str] = field(default_factory=list)
    """Parts that must be extracted again."""
    repaired_parts: list[str] = field(default_factory=list)
    """Parts that `repair` extracted again."""
    compared: int = 0
    """Videos that were decoded again and compared with their source."""


def verify(
    store: PathLike,
    videos: str | os.PathLike[str] | None = None,
    *,
    num_compared: int = 8,
    progress: Progress = SILENT,
) -> Verdict:
    """Read every byte of a store, and compare some of its videos with their files.

    Args:
        store: The store.
        videos: The data set that it was made from. Without it no video is decoded again.
        num_compared: How many videos to decode again.
        progress: Hears of the parts that are read.

    UserError when `store` is no store, or `videos` no data set. A damaged store is no error: see `Verdict.problems`.
    """
    place = store_path(store)
    opened = open_store(place)
    names = committed_parts(place)
    progress.start("verifying", len(names), "part")
    problems: list[str] = []
    broken: list[str] = []
    num_videos = num_chunks = 0
    for name in names:
        num_before = len(problems)
        try:
            num_videos += len(part_attributes(place, name)["videos"])
            for problem in _part_problems(place, name):
                problems.append(f"{name}: {problem}")
            part = place / PARTS_DIR / name
            num_chunks += sum(ShardedArray.open(part / array).num_chunks for array in _sharded(part))
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{name}: its metadata cannot be read ({type(error).__name__}: {error})")
        if len(problems) > num_before:
            broken.append(name)
        progress.advance(problems=len(problems))
    if not problems:
        problems += _index_problems(place)
    compared = _to_compare(opened, Path(videos), num_compared) if videos is not None and not broken else []
    for source in compared:
        problems += [f"{source.video_id}: {problem}" for problem in _differences(opened, source)]
    return Verdict(
        store=str(place),
        parts=len(names),
        videos=num_videos,
        chunks=num_chunks,
        problems=problems,
        broken_parts=broken,
        compared=len(compared),
    )


def stored_sources(store: Store, videos: Path) -> list[Source]:
    """The files of a data set that the store has, images as such. UserError when `videos` is no data set."""
    # In the table, since the metadata of a part may be broken.
    codec_of_row, codec_names = codes(store.table, "codec")
    ids = store.table["video_id"].to_pylist()
    images = {video_id for video_id, code in zip(ids, codec_of_row, strict=True) if is_image_codec(codec_names[code])}
    found = find_sources(videos, kinds=ANY_KIND).sources
    return [replace(source, is_image=source.video_id in images) for source in found if source.video_id in store]


def _to_compare(store: Store, videos: Path, count: int) -> list[Source]:
    """Videos whose file has not changed since it was extracted; the same choice in every call."""
    sources = stored_sources(store, videos)
    Random(0).shuffle(sources)
    chosen: list[Source] = []
    for source in sources:
        if len(chosen) == count:
            break
        record = store[source.video_id].record
        if source.path.is_file() and file_version(source.path) == (record["size"], record["mtime"]):
            chosen.append(source)
    return chosen


def _differences(store: Store, source: Source) -> Iterator[str]:
    """Differences from the file, decoded again. Other versions of the libraries may differ by a grey level."""
    settings, video = ExtractSettings(**store.attributes["settings"]), store[source.video_id]
    with tempfile.TemporaryDirectory(prefix="mgm-") as folder:
        writer = PartWriter(Path(folder), video.height, video.width, settings)
        try:
            writer.add_video(source)
        except Unreadable as error:
            yield f"its file cannot be decoded any more: {error}"
            return
        writer.finish({})
        again = Video(Path(folder), video.video_id, video.record | {"start": 0, "num_frames": len(writer)})
        if len(again) != len(video):
            yield f"it has {len(video)} frames and its file has {len(again)}"
            return
        try:
            levels = np.abs(again.frames[:].astype(np.int16) - video.frames[:]).mean()
            share_moved = np.mean(~np.isclose(again.motion[:], video.motion[:], atol=1 / 8, equal_nan=True))
        except DamagedChunk as error:
            yield str(error)
            return
        if levels > MAX_LEVELS:
            yield f"its frames differ from those of its file by {levels:.1f} grey levels"
        if share_moved > MAX_MOVED:
            yield f"{share_moved:.1%} of its motion differs from that of its file"


def _sharded(part: StorePath) -> list[str]:
    return [*SHARDED, *(name for name in OPTIONAL if is_file(part / name / METADATA_FILE))]


def _part_problems(store: StorePath, name: str) -> Iterator[str]:
    part = store / PARTS_DIR / name
    num_frames = 0
    for video in part_attributes(store, name)["videos"]:
        if video["start"] != num_frames:
            yield f"{video['video_id']} starts at frame {video['start']}, the video before it ends at {num_frames}"
        num_frames = video["start"] + video["num_frames"]
    for array_name in _sharded(part):
        array = ShardedArray.open(part / array_name)
        if array.shape[0] != num_frames:
            yield f"{array_name} has {array.shape[0]} frames, its videos have {num_frames}"
        for chunk, error in array.damage():
            yield f"{array_name}, frames {chunk * array.chunk_frames} and on: {error}"
    for array_name in TRACKS:
        try:
            # Each of these two is one chunk, and zarr-python checks its crc32c.
            length = np.size(zarr.open_array(str(part / array_name), mode="r")[:])
            is_there = is_file(part / array_name / "c.0")
        except (ValueError, OSError) as error:
            yield f"{array_name}: {error}"
            continue
        if length != num_frames or not is_there:
            yield f"{array_name} has {length if is_there else 0} values, its videos have {num_frames} frames"


def _index_problems(store: StorePath) -> Iterator[str]:
    if not is_file(store / INDEX_FILE):
        yield f"{INDEX_FILE} is missing; `mgm-prep index {store}` builds it"
    elif not open_store(store).table.equals(read_index(store)):
        yield f"{INDEX_FILE} differs from the parts; `mgm-prep index {store}` rebuilds it"
    elif problem := segment_problem(open_store(store)):
        yield f"{SEGMENTS_FILE}: {problem}; `mgm-prep labels {store} FILE` attaches segments again"

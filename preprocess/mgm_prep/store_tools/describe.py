"""Describe a store, or one video of it, in numbers and in a figure."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mgm_shared.errors import UserError
from mgm_shared.figures import motion_figure, motion_movie, save, save_gif
from mgm_shared.mp4 import save_mp4
from mgm_shared.samples import num_segments
from mgm_shared.schema import PICTURE_TYPES
from mgm_shared.storage import PathLike, file_sizes
from mgm_shared.store import Store, Video, open_store

NUM_IN_FIGURE, NUM_IN_MOVIE = 8, 50
SAVE_MOVIE = {".gif": save_gif, ".mp4": save_mp4}
LISTED = ["video_id", "split", "label", "num_frames", "fps", "height", "width"]
MAX_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class StoreDescription:
    """A store in numbers. The dictionaries count videos."""

    store: str
    videos: int
    frames: int
    megabytes: float
    parts: int
    sizes: dict[str, int]
    """By stored size, height x width in pixels."""
    labels: int
    splits: dict[str, int]
    segments: int
    """Labelled places in the videos; see `Store.samples`."""
    codecs: dict[str, int]
    motion_from: dict[str, int]
    """By source of the motion, see `VideoRecord.motion_source`."""
    damaged_videos: int
    settings: dict[str, Any]
    libraries: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class VideoDescription:
    """A video in numbers."""

    video_id: str
    record: dict[str, Any]
    """The row of the video in `Store.videos`."""
    picture_types: dict[str, int]
    """Frames by picture type: I, P, B, …"""
    pictures_with_motion: float
    """Share of the frames that have a motion vector in some cell."""
    cells_with_motion: dict[str, float]
    """By picture type: share of the cells of 8×8 px that have a motion vector."""
    cells_without_vector: float
    """Share of the cells of 8×8 px, over all frames, that have no motion vector."""
    speed_p50_px: float | None
    speed_p90_px: float | None
    speed_p99_px: float | None
    """Percentiles of the speed of the other cells, in stored pixels a frame; None when there are none."""

    def flat(self) -> dict[str, Any]:
        """All values in one dictionary."""
        values = asdict(self)
        return {"video_id": values.pop("video_id"), **values.pop("record"), **values}


def find_video(store: Store, wanted: str | None) -> Video:
    """The video that `wanted` names, as in `store[wanted]`: an id, a path, a part of one id. The first one for None.

    UserError when no id or several ids contain it.
    """
    if not len(store):
        raise UserError(f"{store.path} holds no video")
    return store[0 if wanted is None else wanted]


def list_videos(
    store: Store | PathLike, *, label: str | None = None, split: str | None = None
) -> list[dict[str, str | int | float | None]]:
    """The videos of a store, sorted by id: video_id, split, label, num_frames, fps, height, width of each.

    Args:
        store: A store, or its path or URL.
        label: Only videos with this label.
        split: Only videos of this split.

    Raises:
        UserError: No video has the label or the split; the message names some that there are.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    table = opened.table.select(LISTED)
    for column, wanted in (("label", label), ("split", split)):
        if wanted is not None:
            chosen = table.filter(pc.equal(table[column], wanted))
            if not len(chosen):
                there = sorted(filter(None, table[column].unique().to_pylist()))
                raise UserError(f"{opened.path} has no such video with {column} {wanted!r}; {_some(there)}")
            table = chosen
    rows: list[dict[str, str | int | float | None]] = table.to_pylist()
    return rows


def _some(names: list[str]) -> str:
    """Some names, for a message."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"there are: {', '.join(names[:MAX_NAMED])}{more}" if names else "none is set; `mgm-prep labels` sets them"


def describe_store(store: Store) -> StoreDescription:
    """Counts, sizes, labels and settings of a store."""
    videos = store.videos
    num_bytes = sum(file_sizes(store.path).values())
    return StoreDescription(
        store=str(store.path),
        videos=len(videos),
        frames=int(videos["num_frames"].sum()),
        megabytes=round(num_bytes / 1e6, 1),
        parts=int(videos["part"].nunique()),
        sizes=_counts(videos["height"].astype(str) + "x" + videos["width"].astype(str)),
        labels=int(videos["label"].nunique()),
        splits=_counts(videos["split"].fillna("none")),
        segments=num_segments(store.path),
        codecs=_counts(videos["codec"]),
        motion_from=_counts(videos["motion_source"]),
        damaged_videos=int((videos["num_corrupt"] > 0).sum()),
        settings=store.attributes["settings"],
        libraries=store.attributes["libraries"],
    )


def _counts(column: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in column.value_counts().items()}


def describe_video(video: Video) -> VideoDescription:
    """The record of a video, its picture types, and the speed of its cells. Reads all of its motion."""
    motion_TYX2 = video.motion[:]
    speed_TYX = np.hypot(motion_TYX2[..., 0], motion_TYX2[..., 1])
    is_known_TYX = ~np.isnan(speed_TYX)
    known = speed_TYX[is_known_TYX]
    p50, p90, p99 = [round(float(p), 3) for p in np.percentile(known, (50, 90, 99))] if known.size else [None] * 3
    types = np.bincount(video.picture_type, minlength=len(PICTURE_TYPES))
    share_of_type = {
        name: round(float(is_known_TYX[video.picture_type == type_].mean()), 4)
        for type_, name in enumerate(PICTURE_TYPES)
        if types[type_]
    }
    return VideoDescription(
        video_id=video.video_id,
        record={key: _plain(value) for key, value in video.record.items()},
        picture_types={name: int(count) for name, count in zip(PICTURE_TYPES, types, strict=True) if count},
        pictures_with_motion=round(float(is_known_TYX.any((1, 2)).mean()), 4),
        cells_with_motion=share_of_type,
        cells_without_vector=round(float(np.isnan(speed_TYX).mean()), 4),
        speed_p50_px=p50,
        speed_p90_px=p90,
        speed_p99_px=p99,
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def draw_video(video: Video, file: Path, num_frames: int | None = None) -> None:
    """Draw frames of a video with their motion, as arrows and colours, into a PNG, GIF or MP4 file.

    Where the store has optical flow, it is drawn below. A PNG has frames from the whole video, 8 by default; a GIF or
    an MP4 has consecutive frames from its middle, 50 by default.
    """
    if save_movie := SAVE_MOVIE.get(file.suffix.lower()):
        num_shown = min(num_frames or NUM_IN_MOVIE, video.num_frames)
        first = (video.num_frames - num_shown) // 2
        save_movie(motion_movie(video, np.arange(first, first + num_shown)), file, video.fps)
        return
    num_shown = min(num_frames or NUM_IN_FIGURE, video.num_frames)
    # The middle of each of `num_shown` equal parts, because the first frame of a video has no motion.
    save(motion_figure(video, ((np.arange(num_shown) + 0.5) * video.num_frames / num_shown).astype(np.int64)), file)

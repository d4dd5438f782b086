"""What a store, or one video of it, looks like in numbers and in a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from mgm_shared.errors import UserError
from mgm_shared.figures import motion_figure, motion_movie, save, save_gif
from mgm_shared.schema import PICTURE_TYPES
from mgm_shared.storage import file_sizes
from mgm_shared.store import Store, Video

NUM_IN_FIGURE, NUM_IN_GIF = 8, 50


def find_video(store: Store, wanted: str | None) -> Video:
    """The video of that id, or the only one whose id contains the text; the first one for None."""
    if not len(store):
        raise UserError(f"{store.path} holds no video")
    if wanted is None or wanted in store:
        return store.video_at(0) if wanted is None else store[wanted]
    matches = [video_id for video_id in store.table["video_id"].to_pylist() if wanted in video_id]
    if len(matches) != 1:
        found = f"{len(matches)} ids contain it, such as {', '.join(matches[:3])}" if matches else "no id contains it"
        raise UserError(f"{store.path} has no video {wanted!r}; {found}")
    return store[matches[0]]


def describe_store(store: Store) -> dict[str, Any]:
    """Counts, sizes, labels and settings."""
    videos = store.videos
    num_bytes = sum(file_sizes(store.path).values())
    return {
        "store": str(store.path),
        "videos": len(videos),
        "frames": int(videos["num_frames"].sum()),
        "megabytes": round(num_bytes / 1e6, 1),
        "parts": int(videos["part"].nunique()),
        "sizes": _counts(videos["height"].astype(str) + "x" + videos["width"].astype(str)),
        "labels": int(videos["label"].nunique()),
        "splits": _counts(videos["split"].fillna("none")),
        "codecs": _counts(videos["codec"]),
        "motion_from": _counts(videos["motion_source"]),
        "damaged_videos": int((videos["num_corrupt"] > 0).sum()),
        "settings": store.attributes["settings"],
        "libraries": store.attributes["libraries"],
    }


def _counts(column: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in column.value_counts().items()}


def describe_video(video: Video) -> dict[str, Any]:
    """Its record, its picture types, and how its cells move."""
    motion_TYX2 = video.motion[:]
    speed_TYX = np.hypot(motion_TYX2[..., 0], motion_TYX2[..., 1])
    known = speed_TYX[~np.isnan(speed_TYX)]
    types = np.bincount(video.picture_type, minlength=len(PICTURE_TYPES))
    quantile = {
        f"speed_p{q}_px": round(float(np.percentile(known, q)), 3) if known.size else None for q in (50, 90, 99)
    }
    return {
        "video_id": video.video_id,
        **{key: _plain(value) for key, value in video.record.items()},
        "picture_types": {name: int(count) for name, count in zip(PICTURE_TYPES, types, strict=True) if count},
        "cells_without_vector": round(float(np.isnan(speed_TYX).mean()), 4),
        **quantile,
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def draw_video(video: Video, file: Path, num_frames: int | None = None) -> None:
    """Draw frames with their motion: evenly spread ones, or into a .gif those of the middle, one after the other."""
    if file.suffix.lower() == ".gif":
        num_shown = min(num_frames or NUM_IN_GIF, video.num_frames)
        first = (video.num_frames - num_shown) // 2
        save_gif(motion_movie(video, np.arange(first, first + num_shown)), file, video.fps)
        return
    num_shown = min(num_frames or NUM_IN_FIGURE, video.num_frames)
    # The middles of equal parts: the first frame of a video has no motion.
    save(motion_figure(video, ((np.arange(num_shown) + 0.5) * video.num_frames / num_shown).astype(np.int64)), file)

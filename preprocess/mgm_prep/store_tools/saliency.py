"""Measure how well the motion guides masks: is it larger inside labelled boxes than outside, and where is its peak?

Axes: T frames · Y,X cells of 8×8 px · K sums of a tally · U units that the bootstrap resamples · B its draws.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_prep.store_tools.describe import find_video
from mgm_shared.boxes import (
    CHALLENGE_FILE,
    Boxes,
    box_file,
    box_files,
    cells_in_boxes,
    challenge_sequence,
    read_boxes,
)
from mgm_shared.errors import UserError
from mgm_shared.storage import PathLike
from mgm_shared.store import Store, Video, open_store

MotionArray = Literal["motion", "flow"]
# The frames of a second resemble each other, so the bootstrap resamples whole seconds; from so many videos on, videos.
STRETCH_S = 1.0
MIN_VIDEOS = 20
NUM_DRAWS = 2000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """Motion inside the boxes compared with motion outside. A value is None where nothing moves outside.

    Intervals are 95 % intervals (low, high) of a bootstrap.
    """

    videos: int
    frames: int
    """Frames with both a box and a motion vector."""
    speed_in_boxes_px: float | None
    """Mean length of the vectors in cells that touch a box, in stored pixels a frame."""
    speed_outside_px: float | None
    """The same in all other cells."""
    ratio: float | None
    """`speed_in_boxes_px` / `speed_outside_px`."""
    ratio_interval: tuple[float | None, ...]
    peak_in_box: float | None
    """Share of the frames whose fastest cell touches a box."""
    peak_in_box_interval: tuple[float | None, ...]
    box_area: float | None
    """Share of the cells that touch a box: what `peak_in_box` is for a peak at random."""
    intra: float | None
    """Share of the cells without a vector, in frames that have vectors; see `mgm-train pretrain --missing-motion`."""
    intra_in_box: float | None
    """Share of these cells that touch a box. If this is far above `box_area`, cells without a vector mark motion."""
    bootstrap_over: str
    """What the bootstrap resamples: whole videos, or with few videos stretches of one second."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over the frames of a stretch of video that have both a box and a vector."""

    inside: float
    num_inside: float
    outside: float
    num_outside: float
    peaks_in_box: float
    box_area: float
    num_cells: float
    num_intra: float
    num_intra_in_box: float
    num_frames: float


def labelled_videos(store: Store, place: Path, wanted: str | None = None) -> list[tuple[Video, Boxes]]:
    """The videos and their boxes: of a file one video, of a folder every video that has a file there (`boxes.py`).

    A single file is of the video `wanted`, else of the only video of the store, else of the video named like its
    MOTChallenge sequence. UserError when that is no video, and for a folder without a file for any video.
    """
    if place.is_dir() and (place / CHALLENGE_FILE).is_file():
        place = place / CHALLENGE_FILE
    if not place.is_dir():
        is_told = wanted is not None or len(store) == 1
        return [(find_video(store, wanted if is_told else _video_named_in(place, store)), read_boxes(place))]
    video_ids = store.table["video_id"].to_pylist()
    found = box_files(place, video_ids)
    if wanted is not None:
        video = find_video(store, wanted)
        return [(video, read_boxes(found.get(video.video_id) or box_file(place, video.video_id)))]
    if not found:
        example = box_file(place, video_ids[0]) if video_ids else place
        raise UserError(f"{place} has no file for a video of {store.path}, such as {example} or SEQUENCE/gt/gt.txt")
    return [(store[video_id], read_boxes(file)) for video_id, file in found.items()]


def _video_named_in(file: Path, store: Store) -> str:
    """The sequence of a MOTChallenge file, for `find_video`. UserError for any other file."""
    if sequence := challenge_sequence(file):
        return sequence
    raise UserError(f"{file} is one video's, and {store.path} has {len(store)}; name the video with --video")


def saliency(
    store: PathLike,
    boxes: str | os.PathLike[str],
    *,
    video: str | None = None,
    array: MotionArray = "motion",
    samples: Literal["videos", "segments"] = "videos",
) -> Saliency:
    """Compare the motion of a store inside labelled boxes with the motion outside (paper §1).

    Args:
        store: A store made by `extract`.
        boxes: A MOT file, or a folder with one for each video, named like the video or as in MOTChallenge.
        video: The video of a single file: an id, or text that only one id contains.
        array: The codec's motion vectors, or the optical flow that `add_flow` adds.
        samples: Measure whole videos, or only the segments of the store; a frame counts once in each of its segments.

    UserError when no video has boxes, or no frame has both a box and a vector.
    """
    opened = open_store(store)
    labelled = labelled_videos(opened, Path(boxes), video)
    return measure_saliency(_segments(opened, labelled) if samples == "segments" else labelled, array)


def _segments(store: Store, labelled: Iterable[tuple[Video, Boxes]]) -> Iterator[tuple[Video, Boxes]]:
    """The segments of the videos, each with the boxes of its video."""
    boxes_of_video = {video.video_id: boxes for video, boxes in labelled}
    for sample in store.select("segments"):
        if sample.video_id in boxes_of_video:
            yield sample, boxes_of_video[sample.video_id]


def measure_saliency(labelled: Iterable[tuple[Video, Boxes]], array: MotionArray = "motion", seed: int = 0) -> Saliency:
    """As `saliency`, for videos with their boxes; `seed` is that of the bootstrap."""
    tallies_of: dict[str | int, list[Tally]] = {}
    for number, (video, boxes) in enumerate(labelled):
        if tallies := list(_tallies(video, boxes, array)):
            # The segments of one video are no independent units of the bootstrap.
            unit = number if video.sample_id == video.video_id else video.video_id
            tallies_of.setdefault(unit, []).extend(tallies)
    by_video = list(tallies_of.values())
    if not by_video:
        raise UserError("no frame has both a box and a motion vector; there is nothing to measure")
    is_by_video = len(by_video) >= MIN_VIDEOS
    units = [[tally] for tallies in by_video for tally in tallies] if not is_by_video else by_video
    sums_UK = np.array([np.sum([astuple(tally) for tally in unit], axis=0) for unit in units])
    times_BU = _draws(len(units), np.random.default_rng(seed))
    resampled = _measures(times_BU @ sums_UK)
    interval = {name: tuple(map(_rounded, np.percentile(resampled[name], INTERVAL))) for name in resampled}
    return Saliency(
        videos=len(by_video),
        frames=int(sums_UK.sum(0)[-1]),
        **{name: _rounded(value) for name, value in _measures(sums_UK.sum(0)).items()},
        ratio_interval=interval["ratio"],
        peak_in_box_interval=interval["peak_in_box"],
        bootstrap_over=f"{len(units)} {'videos' if is_by_video else 'stretches of one second'}",
    )


def _tallies(video: Video, boxes: Boxes, array: MotionArray) -> Iterator[Tally]:
    """A tally for each second of the video in which some frame has both a box and a vector."""
    is_inside_TYX = cells_in_boxes(boxes, video)
    view = video.flow if array == "flow" else video.motion
    length = max(1, round(video.fps * STRETCH_S))
    for start in range(0, video.num_frames, length):
        motion_TYX2 = view[start : start + length]
        tally = _tally(np.hypot(motion_TYX2[..., 0], motion_TYX2[..., 1]), is_inside_TYX[start : start + length])
        if tally.num_frames:
            yield tally


def _tally(speed_TYX: NDArray[np.float32], is_inside_TYX: NDArray[np.bool_]) -> Tally:
    is_known_TYX = ~np.isnan(speed_TYX)
    is_used_T = is_inside_TYX.any((1, 2)) & is_known_TYX.any((1, 2))
    speed_TYX, is_known_TYX, is_inside_TYX = speed_TYX[is_used_T], is_known_TYX[is_used_T], is_inside_TYX[is_used_T]
    known_TYX = np.where(is_known_TYX, speed_TYX, -1)
    # When several cells are equally fast, each counts for its share.
    is_peak_TYX = known_TYX == known_TYX.max((1, 2), keepdims=True, initial=-1)
    peaks_in_box_T = (is_peak_TYX & is_inside_TYX).sum((1, 2)) / is_peak_TYX.sum((1, 2))
    return Tally(
        inside=float(speed_TYX[is_known_TYX & is_inside_TYX].sum(dtype=np.float64)),
        num_inside=float((is_known_TYX & is_inside_TYX).sum()),
        outside=float(speed_TYX[is_known_TYX & ~is_inside_TYX].sum(dtype=np.float64)),
        num_outside=float((is_known_TYX & ~is_inside_TYX).sum()),
        peaks_in_box=float(peaks_in_box_T.sum()),
        box_area=float(is_inside_TYX.mean((1, 2)).sum()),
        num_cells=float(is_known_TYX.size),
        num_intra=float((~is_known_TYX).sum()),
        num_intra_in_box=float((~is_known_TYX & is_inside_TYX).sum()),
        num_frames=float(is_used_T.sum()),
    )


def _measures(sums_K: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The measures that follow from the sums of a tally, (K,), or of many, (B, K)."""
    sums = np.moveaxis(sums_K, -1, 0)
    inside, num_inside, outside, num_outside, peaks_in_box, box_area = sums[:6]
    num_cells, num_intra, num_intra_in_box, num_frames = sums[6:]
    with np.errstate(divide="ignore", invalid="ignore"):
        speed_in_boxes, speed_outside = inside / num_inside, outside / num_outside
        return {
            "speed_in_boxes_px": speed_in_boxes,
            "speed_outside_px": speed_outside,
            "ratio": speed_in_boxes / speed_outside,
            "peak_in_box": peaks_in_box / num_frames,
            "box_area": box_area / num_frames,
            "intra": num_intra / num_cells,
            "intra_in_box": num_intra_in_box / num_intra,
        }


def _draws(num_units: int, rng: Generator) -> NDArray[np.int64]:
    """How often the bootstrap draws each unit in each resample, (B, U)."""
    return rng.multinomial(num_units, np.full(num_units, 1 / num_units), NUM_DRAWS)


def _rounded(value: NDArray[np.float64]) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None

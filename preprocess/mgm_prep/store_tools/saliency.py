"""How good the motion is as a guide: is it larger inside labelled boxes than outside (paper §1), and where is its peak?

Axes: T frames · Y,X cells of 8×8 px · U units of the bootstrap · B its draws.
"""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_prep.store_tools.describe import find_video
from mgm_shared.boxes import Boxes, box_file, cells_in_boxes, read_boxes
from mgm_shared.errors import UserError
from mgm_shared.store import Store, Video

# The frames of a second resemble each other, so a second is drawn as one; with this many videos, a video is.
STRETCH_S = 1.0
MIN_VIDEOS = 20
NUM_DRAWS = 2000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """`ratio` = r_in / r_out: the mean length of the vectors in cells that touch a box, over that of the other cells.

    `peak_in_box`: in how many frames the cell of strongest motion touches a box, beside the share of the picture that
    does. Intervals are 95 % of a bootstrap over `drawn`: so many seconds or videos. None where nothing moves outside.
    """

    videos: int
    frames: int
    r_in: float | None
    r_out: float | None
    ratio: float | None
    ratio_interval: tuple[float | None, ...]
    peak_in_box: float | None
    peak_in_box_interval: tuple[float | None, ...]
    box_share: float | None
    drawn: str


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over the frames of a stretch that have a box and a vector."""

    inside: float
    num_inside: float
    outside: float
    num_outside: float
    peaks_in_box: float
    box_share: float
    num_frames: float


def labelled_videos(store: Store, place: Path, wanted: str | None) -> list[tuple[Video, Boxes]]:
    """The videos and their boxes: of a file the wanted or only video, of a folder each that has a file there."""
    if wanted is not None or not place.is_dir():
        if wanted is None and len(store) > 1:
            raise UserError(f"{place} is one video's, and {store.path} has {len(store)}; say which with --video")
        video = find_video(store, wanted)
        return [(video, read_boxes(box_file(place, video.video_id)))]
    videos = [store.video_at(row) for row in range(len(store))]
    found = [video for video in videos if box_file(place, video.video_id).is_file()]
    if not found:
        raise UserError(
            f"{place} has no file for a video of {store.path}, such as {box_file(place, videos[0].video_id)}"
        )
    return [(video, read_boxes(box_file(place, video.video_id))) for video in found]


def saliency(labelled: Iterable[tuple[Video, Boxes]], array: str = "motion", seed: int = 0) -> Saliency:
    """Measure `array` (motion or flow) against boxes. UserError where no frame has both a box and a vector."""
    by_video = [tallies for video, boxes in labelled if (tallies := list(_tallies(video, boxes, array)))]
    if not by_video:
        raise UserError("no frame has both a box and a motion vector; there is nothing to measure")
    is_by_video = len(by_video) >= MIN_VIDEOS
    units = [[tally] for tallies in by_video for tally in tallies] if not is_by_video else by_video
    sums_UK = np.array([np.sum([astuple(tally) for tally in unit], axis=0) for unit in units])
    times_BU = _draws(len(units), np.random.default_rng(seed))
    drawn = _figures(times_BU @ sums_UK)
    interval = {name: tuple(map(_rounded, np.percentile(drawn[name], INTERVAL))) for name in drawn}
    return Saliency(
        videos=len(by_video),
        frames=int(sums_UK.sum(0)[-1]),
        **{name: _rounded(value) for name, value in _figures(sums_UK.sum(0)).items()},
        ratio_interval=interval["ratio"],
        peak_in_box_interval=interval["peak_in_box"],
        drawn=f"{len(units)} {'videos' if is_by_video else 'seconds'}",
    )


def _tallies(video: Video, boxes: Boxes, array: str) -> Iterator[Tally]:
    """One for each second of the video in which a frame has a box and a vector."""
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
    # Of several equally strong cells each counts for its share.
    is_peak_TYX = known_TYX == known_TYX.max((1, 2), keepdims=True, initial=-1)
    peaks_in_box_T = (is_peak_TYX & is_inside_TYX).sum((1, 2)) / is_peak_TYX.sum((1, 2))
    return Tally(
        inside=float(speed_TYX[is_known_TYX & is_inside_TYX].sum(dtype=np.float64)),
        num_inside=float((is_known_TYX & is_inside_TYX).sum()),
        outside=float(speed_TYX[is_known_TYX & ~is_inside_TYX].sum(dtype=np.float64)),
        num_outside=float((is_known_TYX & ~is_inside_TYX).sum()),
        peaks_in_box=float(peaks_in_box_T.sum()),
        box_share=float(is_inside_TYX.mean((1, 2)).sum()),
        num_frames=float(is_used_T.sum()),
    )


def _figures(sums_K: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The measures that the sums of a tally make: of one (K,) or of many (B, K)."""
    inside, num_inside, outside, num_outside, peaks_in_box, box_share, num_frames = np.moveaxis(sums_K, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r_in, r_out = inside / num_inside, outside / num_outside
        return {
            "r_in": r_in,
            "r_out": r_out,
            "ratio": r_in / r_out,
            "peak_in_box": peaks_in_box / num_frames,
            "box_share": box_share / num_frames,
        }


def _draws(num_units: int, rng: Generator) -> NDArray[np.int64]:
    """How often each unit is drawn in each draw, (B, U)."""
    return rng.multinomial(num_units, np.full(num_units, 1 / num_units), NUM_DRAWS)


def _rounded(value: NDArray[np.float64]) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None

"""Boxes round what moves, frame by frame: MOT files, and the cells of a video that the boxes touch.

A MOT file has a line a box, `frame,id,left,top,width,height,confidence,…`: frames and pixels count from 1, pixels are
those of the source as it is shown. A box of confidence 0 is one that the benchmark tells to ignore.

Axes: K boxes · T frames · Y,X cells of 8×8 px · 4 = left, top, width, height in source px from 0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.geometry import CELL_PX, Box
from mgm_shared.store import Video
from mgm_shared.text_files import read_lines

MIN_COLUMNS = 6
CONFIDENCE_COLUMN = 6
MAX_FRAME = 2**31
# Where MOTChallenge keeps the boxes of a sequence, below the sequence's folder.
CHALLENGE_FILE = Path("gt", "gt.txt")
# What MOTChallenge adds to a sequence's name in the name of its video.
CHALLENGE_VIDEO_ENDING = "-raw"


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The boxes of a video: `frame_K` counts from 0."""

    file: Path
    frame_K: NDArray[np.int64]
    box_K4: NDArray[np.float64]


def box_file(place: Path, video_id: str) -> Path:
    """The MOT file of a video; `place` itself when it is a file.

    In a folder it is, for train/wave/17.mp4: train/wave/17.txt, train/wave/17.mp4.txt, or as MOTChallenge has it
    train/wave/17/gt/gt.txt. `place` may be the folder train/wave, too. The first of these when there is none.
    """
    if not place.is_dir():
        return place
    candidates = _candidates(place, video_id)
    return next((file for file in candidates if file.is_file()), candidates[0])


def box_files(place: Path, video_ids: Sequence[str]) -> dict[str, Path]:
    """The MOT file of each video that has one in the folder `place`.

    Beside the places of `box_file`, a video's name alone finds its file when no other video of these has the name.
    """
    by_name = Counter(_sequence(video_id) for video_id in video_ids)
    found: dict[str, Path] = {}
    for video_id in video_ids:
        name = _sequence(video_id)
        alone = _in_folder(place, Path(name)) if by_name[name] == 1 else []
        file = next((file for file in [*_candidates(place, video_id), *alone] if file.is_file()), None)
        if file is not None:
            found[video_id] = file
    return found


def challenge_sequence(file: Path) -> str | None:
    """The sequence whose boxes MOTChallenge keeps in this file, SEQUENCE/gt/gt.txt; None for any other file."""
    place = file.absolute()
    return place.parents[1].name if Path(*place.parts[-2:]) == CHALLENGE_FILE else None


def _candidates(place: Path, video_id: str) -> list[Path]:
    """Where the boxes of a video may lie below the folder `place`, the most exact place first."""
    path = PurePosixPath(video_id)
    folders, below = list(path.parts[:-1]), place.absolute().parts
    # An id of a list may begin with / or .., and lead out of `place`.
    ways = [path] if not path.is_absolute() and ".." not in folders else []
    # `place` may be one of the folders of the id.
    ways += [
        PurePosixPath(*path.parts[count:])
        for count in range(1, len(path.parts))
        if tuple(folders[:count]) == below[-count:]
    ]
    ways = ways or [PurePosixPath(path.name)]
    return [file for way in ways for file in _in_folder(place, Path(way))]


def _in_folder(place: Path, way: Path) -> list[Path]:
    sequence = way.with_name(_sequence(way.name))
    names = dict.fromkeys((way.with_suffix(""), sequence))
    return [
        *(place / name.with_name(f"{name.name}.txt") for name in names),
        place / way.with_name(f"{way.name}.txt"),
        *(place / name / CHALLENGE_FILE for name in names),
    ]


def _sequence(video_id: str) -> str:
    """The name of the sequence that a video shows: its file name without suffix and without MOTChallenge's ending."""
    return PurePosixPath(video_id).stem.removesuffix(CHALLENGE_VIDEO_ENDING)


def read_boxes(file: Path) -> Boxes:
    """Read a MOT file. UserError when it cannot be read, or a line is none of a box."""
    rows = [_row(file, number, line) for number, line in read_lines(file).items()]
    kept = [row for row in rows if row[CONFIDENCE_COLUMN] != 0]
    box_K4 = np.array([row[2:6] for row in kept]).reshape(-1, 4) - (1, 1, 0, 0)
    return Boxes(file=file, frame_K=np.array([row[0] for row in kept], np.int64) - 1, box_K4=box_K4)


def _row(file: Path, number: int, line: str) -> list[float]:
    """The first seven columns of a line."""
    try:
        values = [float(text) for text in line.split(",")[: CONFIDENCE_COLUMN + 1]]
    except ValueError:
        values = []
    if len(values) < MIN_COLUMNS or not np.isfinite(values).all() or not 1 <= values[0] < MAX_FRAME or values[0] % 1:
        raise UserError(f"{file}, line {number}: not `frame,id,left,top,width,height,…` with frames from 1")
    return [*values, 1.0][: CONFIDENCE_COLUMN + 1]


def boxes_of(boxes: Boxes, video: Video) -> Boxes:
    """The boxes of a video whose file counts its frames; of a segment those in it, by the segment's own frames."""
    if video.sample_id == video.video_id:
        return boxes
    frame_K = boxes.frame_K - video.first_frame
    is_in_K = (frame_K >= 0) & (frame_K < video.num_frames)
    return replace(boxes, frame_K=frame_K[is_in_K], box_K4=boxes.box_K4[is_in_K])


def _edges(boxes: Boxes, video: Video) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last corner of each box in cells of the stored picture, two (K, 2) of (x, y).

    UserError when a box lies behind the video's last frame: it is not this video's.
    """
    if len(boxes.frame_K) and boxes.frame_K.max() >= video.num_frames:
        last = boxes.frame_K.max() + 1
        raise UserError(f"{boxes.file} has boxes for frame {last}; {video.video_id} has {video.num_frames} frames")
    source_2 = np.array([video.record["source_width"], video.record["source_height"]], np.float64)
    if video.record["rotation"] % 180:
        source_2 = source_2[::-1]
    scale_2 = np.array([video.width, video.height]) / source_2 / CELL_PX
    first_K2 = boxes.box_K4[:, :2] * scale_2
    return first_K2, first_K2 + boxes.box_K4[:, 2:] * scale_2


def boxes_at(boxes: Boxes, video: Video, frame: int) -> list[Box]:
    """The boxes of one frame, in pixels of the stored picture."""
    boxes = boxes_of(boxes, video)
    corners = zip(boxes.frame_K, *_edges(boxes, video), strict=True)
    sides = [(first_2 * CELL_PX, (last_2 - first_2) * CELL_PX) for k, first_2, last_2 in corners if k == frame]
    return [Box(x=x, y=y, width=width, height=height) for (x, y), (width, height) in sides]


def cells_in_boxes(boxes: Boxes, video: Video) -> NDArray[np.bool_]:
    """Which cells touch a box, (T, Y, X)."""
    boxes = boxes_of(boxes, video)
    is_inside_TYX = np.zeros((video.num_frames, video.height // CELL_PX, video.width // CELL_PX), np.bool_)
    for t, first_2, last_2 in zip(boxes.frame_K, *_edges(boxes, video), strict=True):
        left, top = np.maximum(np.floor(first_2), 0).astype(int)
        right, bottom = np.maximum(np.ceil(last_2), 0).astype(int)
        is_inside_TYX[t, top:bottom, left:right] = True
    return is_inside_TYX


def box_peaks(boxes: Boxes, video: Video, frames: slice) -> NDArray[np.float32]:
    """A tent over each box of some frames, (T, Y, X): 0 outside, and in its middle as high as its area in cells.

    So the highest cell is the middle of the largest box. NaN in frames without a box.
    """
    boxes = boxes_of(boxes, video)
    start, stop, _ = frames.indices(video.num_frames)
    num_rows, num_columns = video.height // CELL_PX, video.width // CELL_PX
    peaks_TYX = np.full((stop - start, num_rows, num_columns), np.nan, np.float32)
    middle_X, middle_Y = np.arange(num_columns) + 0.5, np.arange(num_rows) + 0.5
    for frame, (left, top), (right, bottom) in zip(boxes.frame_K, *_edges(boxes, video), strict=True):
        if start <= frame < stop:
            tent_X = 2 * np.minimum(middle_X - left, right - middle_X).clip(0)
            tent_Y = 2 * np.minimum(middle_Y - top, bottom - middle_Y).clip(0)
            peaks_TYX[frame - start] = np.fmax(peaks_TYX[frame - start], tent_Y[:, None] * tent_X)
    return peaks_TYX

"""Boxes round what moves, frame by frame: MOT files, and the cells of a video that the boxes touch.

A MOT file has a line a box, `frame,id,left,top,width,height,confidence,…`: frames and pixels count from 1, pixels are
those of the source as it is shown. A box of confidence 0 is one that the benchmark tells to ignore.

Axes: K boxes · T frames · Y,X cells of 8×8 px · 4 = left, top, width, height in source px from 0.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.geometry import CELL_PX, Box
from mgm_shared.store import Video

MIN_COLUMNS = 6
CONFIDENCE_COLUMN = 6


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The boxes of a video: `frame_K` counts from 0."""

    file: Path
    frame_K: NDArray[np.int64]
    box_K4: NDArray[np.float64]


def box_file(place: Path, video_id: str) -> Path:
    """The MOT file of a video: `place` itself, or in a folder the file with the id's path and the suffix .txt."""
    return place / Path(video_id).with_suffix(".txt") if place.is_dir() else place


def read_boxes(file: Path) -> Boxes:
    """Read a MOT file. UserError when it cannot be read, or a line is none of a box."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as a MOT file: {error}") from None
    rows = [_row(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    kept = [row for row in rows if row[CONFIDENCE_COLUMN] != 0]
    box_K4 = np.array([row[2:6] for row in kept]).reshape(-1, 4) - (1, 1, 0, 0)
    return Boxes(file=file, frame_K=np.array([row[0] for row in kept], np.int64) - 1, box_K4=box_K4)


def _row(file: Path, number: int, line: str) -> list[float]:
    """The first seven columns of a line."""
    try:
        values = [float(text) for text in line.split(",")[: CONFIDENCE_COLUMN + 1]]
    except ValueError:
        values = []
    if len(values) < MIN_COLUMNS or values[0] < 1 or values[0] % 1:
        raise UserError(f"{file}, line {number}: not `frame,id,left,top,width,height,…` with frames from 1")
    return [*values, 1.0][: CONFIDENCE_COLUMN + 1]


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
    corners = zip(boxes.frame_K, *_edges(boxes, video), strict=True)
    sides = [(first_2 * CELL_PX, (last_2 - first_2) * CELL_PX) for k, first_2, last_2 in corners if k == frame]
    return [Box(x=x, y=y, width=width, height=height) for (x, y), (width, height) in sides]


def cells_in_boxes(boxes: Boxes, video: Video) -> NDArray[np.bool_]:
    """Which cells touch a box, (T, Y, X)."""
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

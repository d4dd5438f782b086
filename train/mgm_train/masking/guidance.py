"""What draws the mask of a clip: how strongly each cell moves, by the codec's vectors or by something better.

vectors   the length of the codec's vectors (paper §3.3)
clean     the same, of what is left of them without the camera's motion, and as far as the picture backs them
flow      the length of an optical flow that `mgm-prep flow` has put into the store (Table 4b)
boxes     how near the cell is to the middle of a box, for data sets that come with boxes

A source is read in place of the vectors, so that a crop and a flip treat all of them alike.

Axes: T frames · S stored frames · Y,X cells of 8×8 px · P,Q samples of a picture, SAMPLE_PX apart · 2 = (dx, dy).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.boxes import box_file, box_peaks, read_boxes
from mgm_shared.geometry import CELL_PX
from mgm_shared.kernel import kernel
from mgm_shared.store import Video
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import Clip, vectors

# The texture of a cell is measured between pixels half a cell apart.
SAMPLE_PX = CELL_PX // 2


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """A source of guidance; `boxes` is the folder of its MOT files."""

    source: str = "vectors"
    boxes: str = ""

    @classmethod
    def of(cls, config: PretrainConfig) -> "Guidance":
        """What the configuration says."""
        return cls(source=config.guidance, boxes=config.boxes)

    def read(self, video: Video, frames: slice) -> NDArray[np.float32]:
        """The source's field at some stored frames, (S, Y, X, 2), NaN = missing: for vectors and flow, the motion.

        UserError when the store has no flow, or the folder no boxes for the video.
        """
        if self.source == "flow":
            return video.flow[frames]
        if self.source == "boxes":
            boxes = read_boxes(box_file(Path(self.boxes), video.video_id))
            peaks_SYX = box_peaks(boxes, video, frames)
            return np.stack([peaks_SYX, np.zeros_like(peaks_SYX)], axis=-1)
        return vectors(video, frames)

    def strength(self, clip: Clip) -> NDArray[np.float32]:
        """How strongly each cell of a clip draws the mask, (T, Y, X), never missing."""
        if self.source == "clean":
            return filled(clean(clip.motion_TYX2, clip.frames_THWC))
        return filled(magnitude(clip.motion_TYX2))


def magnitude(motion_TYX2: NDArray[np.float32]) -> NDArray[np.float32]:
    """|motion| (eq. 6), NaN where it is missing."""
    length_TYX = np.empty(motion_TYX2.shape[:3], np.float32)
    _lengths(np.ascontiguousarray(motion_TYX2).reshape(-1), length_TYX.reshape(-1))
    return length_TYX


@kernel
def _lengths(components: NDArray[np.float32], lengths: NDArray[np.float32]) -> None:
    # Over flat memory, which the compiler turns into vector instructions: a sixth of the time of three nested loops.
    for k in range(len(lengths)):
        dx, dy = components[2 * k], components[2 * k + 1]
        lengths[k] = np.sqrt(dx * dx + dy * dy)


def filled(strength_TYX: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each missing cell has its nearest frame's value, or 0 where the clip has none at all.

    I frames and intra blocks have no vector (the paper does not mention them), and missing is not static. Of two frames
    equally near, the earlier one.
    """
    filled_TYX = strength_TYX.copy()
    _fill(strength_TYX.reshape(len(strength_TYX), -1), filled_TYX.reshape(len(strength_TYX), -1))
    return filled_TYX


@kernel
def _fill(strength_TC: NDArray[np.float32], filled_TC: NDArray[np.float32]) -> None:
    for t in range(strength_TC.shape[0]):
        for cell in range(strength_TC.shape[1]):
            # NaN is the one number that differs from itself.
            if strength_TC[t, cell] != strength_TC[t, cell]:
                filled_TC[t, cell] = _nearest(strength_TC[:, cell], t)


@kernel
def _nearest(strength_T: NDArray[np.float32], t: int) -> np.float32:
    """A cell's value in the frame nearest to t that has one."""
    for distance in range(1, len(strength_T)):
        for near in (t - distance, t + distance):
            if 0 <= near < len(strength_T) and strength_T[near] == strength_T[near]:
                strength: np.float32 = strength_T[near]
                return strength
    return np.float32(0)


def clean(motion_TYX2: NDArray[np.float32], frames_THWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How much of the picture's change a cell's motion against the camera explains, (T, Y, X), NaN = missing.

    The paper names the limits of codec vectors: camera motion, and vectors that are cheap rather than true. A moving
    pixel changes by its motion times the picture's gradient, so the length of a vector counts times the texture of its
    cell: in a flat cell every vector predicts equally well and means nothing. Before that the camera's motion is taken
    out, the affine field that fits the vectors of the picture best. The 3×3 mean quietens single cells, since the mask
    is centred on one. `pipelines/bench/saliency.py` measures what it is good for.
    """
    samples_TPQ = np.ascontiguousarray(frames_THWC[:, ::SAMPLE_PX, ::SAMPLE_PX, 1])
    strength_TYX = np.empty(motion_TYX2.shape[:3], np.float32)
    _clean(np.ascontiguousarray(motion_TYX2, np.float32), samples_TPQ, strength_TYX)
    return strength_TYX


@kernel
def _clean(motion_TYX2: NDArray[np.float32], samples_TPQ: NDArray[np.uint8], strength_TYX: NDArray[np.float32]) -> None:
    num_rows, num_columns = strength_TYX.shape[1:]
    texture_YX = np.empty((num_rows, num_columns), np.float32)
    # With a border, so that the mean needs no case for the picture's edge.
    change_YX = np.full((num_rows + 2, num_columns + 2), np.float32(np.nan))
    for t in range(strength_TYX.shape[0]):
        _texture(samples_TPQ[t], texture_YX)
        camera_32 = _camera(motion_TYX2[t], texture_YX)
        _explained_change(motion_TYX2[t], camera_32, texture_YX, change_YX[1:-1, 1:-1])
        _mean_of_nine(change_YX, strength_TYX[t])


@kernel
def _texture(samples_PQ: NDArray[np.uint8], texture_YX: NDArray[np.float32]) -> None:
    """The mean difference of a cell's samples from their right and lower neighbours, in grey levels."""
    last_p, last_q = samples_PQ.shape[0] - 1, samples_PQ.shape[1] - 1
    per_cell = CELL_PX // SAMPLE_PX
    for y in range(texture_YX.shape[0]):
        for x in range(texture_YX.shape[1]):
            # Signed, for a difference of the samples as they are would wrap around.
            total = np.int64(0)
            for p in range(per_cell * y, per_cell * (y + 1)):
                for q in range(per_cell * x, per_cell * (x + 1)):
                    here = np.int64(samples_PQ[p, q])
                    total += abs(here - np.int64(samples_PQ[p, min(q + 1, last_q)]))
                    total += abs(here - np.int64(samples_PQ[min(p + 1, last_p), q]))
            texture_YX[y, x] = np.float32(total) / np.float32(2 * per_cell * per_cell)


@kernel
def _camera(motion_YX2: NDArray[np.float32], texture_YX: NDArray[np.float32]) -> NDArray[np.float64]:
    """The affine field that fits the vectors best: rows (1, x, y) of coefficients of (dx, dy).

    By least squares, where a cell has as much say as it has texture.
    """
    moments_35 = np.zeros((3, 5))
    for y in range(motion_YX2.shape[0]):
        for x in range(motion_YX2.shape[1]):
            dx, dy = np.float64(motion_YX2[y, x, 0]), np.float64(motion_YX2[y, x, 1])
            # NaN is the one number that differs from itself.
            if dx == dx:
                terms = (1.0, np.float64(x), np.float64(y), dx, dy)
                for i in range(3):
                    weighted = texture_YX[y, x] * terms[i]
                    for j in range(5):
                        moments_35[i, j] += weighted * terms[j]
    weight = max(moments_35[0, 0], 1e-9)
    mean_5 = moments_35[0] / weight
    xx, xy = moments_35[1, 1] / weight - mean_5[1] * mean_5[1], moments_35[1, 2] / weight - mean_5[1] * mean_5[2]
    yy = moments_35[2, 2] / weight - mean_5[2] * mean_5[2]
    determinant = xx * yy - xy * xy
    camera_32 = np.zeros((3, 2))
    for k in range(2):
        with_x = moments_35[1, 3 + k] / weight - mean_5[1] * mean_5[3 + k]
        with_y = moments_35[2, 3 + k] / weight - mean_5[2] * mean_5[3 + k]
        # Cells that lie on one line tell no slope across it.
        if determinant > 1e-3:
            camera_32[1, k] = (yy * with_x - xy * with_y) / determinant
            camera_32[2, k] = (xx * with_y - xy * with_x) / determinant
        camera_32[0, k] = mean_5[3 + k] - camera_32[1, k] * mean_5[1] - camera_32[2, k] * mean_5[2]
    return camera_32


@kernel
def _explained_change(
    motion_YX2: NDArray[np.float32],
    camera_32: NDArray[np.float64],
    texture_YX: NDArray[np.float32],
    change_YX: NDArray[np.float32],
) -> None:
    """|motion − camera| · texture, NaN where there is no vector."""
    for y in range(change_YX.shape[0]):
        for x in range(change_YX.shape[1]):
            dx = motion_YX2[y, x, 0] - np.float32(camera_32[0, 0] + camera_32[1, 0] * x + camera_32[2, 0] * y)
            dy = motion_YX2[y, x, 1] - np.float32(camera_32[0, 1] + camera_32[1, 1] * x + camera_32[2, 1] * y)
            change_YX[y, x] = np.sqrt(dx * dx + dy * dy) * texture_YX[y, x]


@kernel
def _mean_of_nine(change_YX: NDArray[np.float32], strength_YX: NDArray[np.float32]) -> None:
    """The mean of what is known of each cell and its eight neighbours; NaN where nothing is."""
    for y in range(strength_YX.shape[0]):
        for x in range(strength_YX.shape[1]):
            total, num = np.float32(0), 0
            for j in range(3):
                for i in range(3):
                    value = change_YX[y + j, x + i]
                    if value == value:
                        total += value
                        num += 1
            strength_YX[y, x] = total / np.float32(num) if num else np.float32(np.nan)

"""Guidance: the strength of each motion cell of a clip, by which the motion-guided strategies place the mask.

vectors   length of the codec's motion vector (paper §3.3)
clean     length of the vector without the camera's motion, times the texture of the cell
flow      length of the optical flow that `mgm-prep flow` added to the store (Table 4b)
boxes     closeness of the cell to the centre of a labelled box, for data sets with boxes

Each source is read in place of the vectors, so crops and flips apply to all of them in the same way. `intra.py` has the
rules for intra blocks, which have no vectors.

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
from mgm_train.masking import intra

# The texture of a cell is measured between pixels half a cell apart.
SAMPLE_PX = CELL_PX // 2


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """A source of guidance. `boxes` is the folder of MOT files for the source `boxes`.

    `missing_motion` is the rule for intra blocks (see `intra.py`) of the sources `vectors` and `clean`.
    """

    source: str = "vectors"
    boxes: str = ""
    missing_motion: str = "nearest"

    @classmethod
    def of(cls, config: PretrainConfig) -> "Guidance":
        """The guidance that a configuration asks for."""
        return cls(source=config.guidance, boxes=config.boxes, missing_motion=config.missing_motion)

    def read(self, video: Video, frames: slice) -> NDArray[np.float32]:
        """Read the source at some stored frames: (S, Y, X, 2), NaN = missing. For vectors and flow this is the motion.

        With the rule `change` there is a third component, see `intra.with_intra`. UserError if the store has no flow,
        or the folder has no boxes for the video.
        """
        if self.source == "flow":
            return video.flow[frames]
        if self.source == "boxes":
            boxes = read_boxes(box_file(Path(self.boxes), video.video_id))
            peaks_SYX = box_peaks(boxes, video, frames)
            return np.stack([peaks_SYX, np.zeros_like(peaks_SYX)], axis=-1)
        return _RULES[self.missing_motion](vectors(video, frames))

    def strength(self, clip: Clip) -> NDArray[np.float32]:
        """The strength of each cell of a clip, (T, Y, X), with missing values filled in."""
        if self.source == "clean":
            strength_TYX = clean(clip.motion_TYX2, clip.frames_THWC)
        else:
            strength_TYX = magnitude(clip.motion_TYX2)
        if clip.intra_TYX is not None:
            strength_TYX = intra.by_change(strength_TYX, clip.intra_TYX, clip.frames_THWC)
        return filled(strength_TYX)


def _as_they_are(motion_SYX2: NDArray[np.float32]) -> NDArray[np.float32]:
    return motion_SYX2


# What is done to the vectors before a clip's frames are chosen from them.
_RULES = {
    "nearest": _as_they_are,
    "strong": intra.strong,
    "spread": intra.spread,
    "change": intra.with_intra,
}


def magnitude(motion_TYX2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Length of the motion vectors (eq. 6), (T, Y, X); NaN where a vector is missing."""
    length_TYX = np.empty(motion_TYX2.shape[:3], np.float32)
    _lengths(np.ascontiguousarray(motion_TYX2).reshape(-1), length_TYX.reshape(-1))
    return length_TYX


@kernel
def _lengths(components: NDArray[np.float32], lengths: NDArray[np.float32]) -> None:
    # One loop over flat memory, which the compiler vectorizes: a sixth of the time of three nested loops.
    for k in range(len(lengths)):
        dx, dy = components[2 * k], components[2 * k + 1]
        lengths[k] = np.sqrt(dx * dx + dy * dy)


def filled(strength_TYX: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill each missing cell with its value in the nearest frame that has one, or with 0 if no frame of the clip does.

    I frames and intra blocks have no vectors, which the paper does not mention; a missing vector does not mean that
    nothing moves. Of two frames at the same distance, the earlier one is taken.
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
    """Strength of the motion relative to the camera, weighted by texture: (T, Y, X), NaN = missing.

    The paper names two limits of codec vectors: they contain the camera's motion, and the encoder chooses them for a
    low bit rate, not for the true motion. First, the affine field that fits the vectors of a frame best, the camera's
    motion, is subtracted. The length of what remains is multiplied by the texture of the cell, because a moving pixel
    changes by its motion times the image gradient; in a flat cell every vector predicts equally well and means nothing.
    Last, a 3×3 mean suppresses single cells, since the mask is centred on one cell. `pipelines/bench/saliency.py`
    measures the effect.
    """
    samples_TPQ = np.ascontiguousarray(frames_THWC[:, ::SAMPLE_PX, ::SAMPLE_PX, 1])
    strength_TYX = np.empty(motion_TYX2.shape[:3], np.float32)
    _clean(np.ascontiguousarray(motion_TYX2, np.float32), samples_TPQ, strength_TYX)
    return strength_TYX


@kernel
def _clean(motion_TYX2: NDArray[np.float32], samples_TPQ: NDArray[np.uint8], strength_TYX: NDArray[np.float32]) -> None:
    num_rows, num_columns = strength_TYX.shape[1:]
    texture_YX = np.empty((num_rows, num_columns), np.float32)
    # Padded by one cell, so that the mean needs no special case at the edges.
    change_YX = np.full((num_rows + 2, num_columns + 2), np.float32(np.nan))
    for t in range(strength_TYX.shape[0]):
        _texture(samples_TPQ[t], texture_YX)
        camera_32 = _camera(motion_TYX2[t], texture_YX)
        _explained_change(motion_TYX2[t], camera_32, texture_YX, change_YX[1:-1, 1:-1])
        _mean_of_nine(change_YX, strength_TYX[t])


@kernel
def _texture(samples_PQ: NDArray[np.uint8], texture_YX: NDArray[np.float32]) -> None:
    """Mean absolute difference between a cell's samples and their right and lower neighbours, in grey levels."""
    last_p, last_q = samples_PQ.shape[0] - 1, samples_PQ.shape[1] - 1
    per_cell = CELL_PX // SAMPLE_PX
    for y in range(texture_YX.shape[0]):
        for x in range(texture_YX.shape[1]):
            # Signed integers, because differences of uint8 samples would wrap around.
            total = np.int64(0)
            for p in range(per_cell * y, per_cell * (y + 1)):
                for q in range(per_cell * x, per_cell * (x + 1)):
                    here = np.int64(samples_PQ[p, q])
                    total += abs(here - np.int64(samples_PQ[p, min(q + 1, last_q)]))
                    total += abs(here - np.int64(samples_PQ[min(p + 1, last_p), q]))
            texture_YX[y, x] = np.float32(total) / np.float32(2 * per_cell * per_cell)


@kernel
def _camera(motion_YX2: NDArray[np.float32], texture_YX: NDArray[np.float32]) -> NDArray[np.float64]:
    """The affine motion field that fits the vectors best, (3, 2): rows are the coefficients of 1, x and y for (dx, dy).

    Least squares, weighted by the texture of the cells.
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
        # If all cells with vectors lie on one line, the slope across it is not determined.
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
    """|motion − camera| · texture, NaN where the vector is missing."""
    for y in range(change_YX.shape[0]):
        for x in range(change_YX.shape[1]):
            dx = motion_YX2[y, x, 0] - np.float32(camera_32[0, 0] + camera_32[1, 0] * x + camera_32[2, 0] * y)
            dy = motion_YX2[y, x, 1] - np.float32(camera_32[0, 1] + camera_32[1, 1] * x + camera_32[2, 1] * y)
            change_YX[y, x] = np.sqrt(dx * dx + dy * dy) * texture_YX[y, x]


@kernel
def _mean_of_nine(change_YX: NDArray[np.float32], strength_YX: NDArray[np.float32]) -> None:
    """Mean over each cell and its eight neighbours, ignoring missing values; NaN if all nine are missing."""
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

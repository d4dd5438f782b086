"""Clips of a store that play in its report, with their motion vectors and the rectangle that motion would mask.

Axes: T frames · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame.
"""

from collections.abc import Iterable, Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX, PAPER_PATCH, Box
from mgm_shared.report.blocks import Reel
from mgm_shared.report.video_reel import video_reel
from mgm_shared.store import Store

MASK_RATIO = 0.75


def varied_rows(store: Store, rows: Sequence[int], num_wanted: int) -> list[int]:
    """Some of the rows: one of each label first, then the others, in their order."""
    labels = store.table["label"]
    seen: set[str | None] = set()
    first: list[int] = []
    later: list[int] = []
    for row in rows:
        label = labels[row].as_py()
        (later if label in seen else first).append(row)
        seen.add(label)
    # Evenly spaced, so that they come from all of the store.
    spaced = [first[place] for place in np.linspace(0, len(first) - 1, min(num_wanted, len(first))).astype(int)]
    return sorted((spaced + later)[:num_wanted])


def reels(store: Store, rows: Iterable[int]) -> list[Reel]:
    """The clips in these rows. One that cannot be read is left out: `sample_motion` has noted what is damaged."""
    made: list[Reel] = []
    for row in rows:
        try:
            video = store.video_at(row)
            seconds = f"{video.num_frames / max(video.fps, 1e-9):.1f} s"
            remark = " · ".join(filter(None, (video.label, video.split, seconds)))
            made.append(video_reel(video, remark, masked_boxes))
        except OSError:
            continue
    return made


def masked_boxes(motion_TYX2: NDArray[np.float32], ratio: float = MASK_RATIO) -> list[Box]:
    """The rectangle that motion-guided masking places on each frame (paper §3.3), in stored pixels, without jitter.

    Its sides are √ratio of the frame's. Its centre is the fastest cell of the two frames of a tubelet, shifted inside
    the frame. Missing cells are filled from the nearest frame in time; without any motion it is in the middle. Training
    draws the masks of its own crops, with jitter; see `mgm-train visualize`.
    """
    num_rows, num_columns = motion_TYX2.shape[1:3]
    strength_TYX = _filled(np.hypot(motion_TYX2[..., 0], motion_TYX2[..., 1]))
    boxes: list[Box] = []
    for start in range(0, len(strength_TYX), PAPER_PATCH.frames):
        pair_YX = strength_TYX[start : start + PAPER_PATCH.frames]
        row, column = np.unravel_index(int(pair_YX.sum(0).argmax()), (num_rows, num_columns))
        y, x = (row + 0.5, column + 0.5) if pair_YX.any() else (num_rows / 2, num_columns / 2)
        boxes += [_rectangle(float(x), float(y), num_columns, num_rows, ratio)] * len(pair_YX)
    return boxes


def _rectangle(x: float, y: float, num_columns: int, num_rows: int, ratio: float) -> Box:
    width, height = num_columns * sqrt(ratio), num_rows * sqrt(ratio)
    left = min(max(x - width / 2, 0.0), num_columns - width)
    top = min(max(y - height / 2, 0.0), num_rows - height)
    return Box(x=left * CELL_PX, y=top * CELL_PX, width=width * CELL_PX, height=height * CELL_PX)


def _filled(strength_TYX: NDArray[np.float32]) -> NDArray[np.float32]:
    """Missing values from the nearest frame that has one, the earlier of two; 0 where no frame has one."""
    filled_TYX = strength_TYX.copy()
    num_frames = len(strength_TYX)
    for distance in range(1, num_frames):
        for into, source in ((slice(distance, None), slice(-distance)), (slice(-distance), slice(distance, None))):
            target_TYX = filled_TYX[into]
            is_missing_TYX = np.isnan(target_TYX)
            target_TYX[is_missing_TYX] = strength_TYX[source][is_missing_TYX]
    return np.nan_to_num(filled_TYX)

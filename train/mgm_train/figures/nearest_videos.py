"""A video or segment and those with the nearest features, a frame of each.

Axes: H,W pixels · C = RGB.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_shared.figures import panels, save
from mgm_shared.samples import Samples
from mgm_shared.store import Video

SIDE_PX = 192
COLUMNS = 5
MAX_LETTERS = 26


def draw_nearest(samples: Samples, sample_id: str, found: Sequence[tuple[str, float]], file: Path) -> None:
    """Write a picture: the sample first, then `found`, (sample_id, cosine similarity), with their labels."""
    shown = [(sample_id, 1.0), *found]
    columns = min(COLUMNS, len(shown))
    figure, axes = panels(-(-len(shown) // columns), columns, (SIDE_PX, SIDE_PX), gap_inches=0.06)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for number, (axis, (name, similarity)) in enumerate(zip(axes.flat, shown, strict=False)):
        video = samples.find(name)
        if video is None:
            continue
        axis.imshow(_middle(video))
        about = "this one" if not number else f"cosine {similarity:.3f}"
        axis.set_title(f"{about}\n{_start(video.label or 'no label')}", fontsize=6)
        axis.set_xlabel(_short(name), fontsize=5)
    save(figure, file)


def _middle(video: Video) -> NDArray[np.uint8]:
    """The middle frame, whole, on a white square."""
    frame_HWC = video.frames[video.num_frames // 2]
    scale = SIDE_PX / max(frame_HWC.shape[:2])
    size = [max(1, round(side * scale)) for side in frame_HWC.shape[1::-1]]
    small_HWC = np.asarray(cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA), np.uint8)
    square_HWC = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    top, left = ((SIDE_PX - side) // 2 for side in small_HWC.shape[:2])
    square_HWC[top : top + small_HWC.shape[0], left : left + small_HWC.shape[1]] = small_HWC
    return square_HWC


def _start(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}…"


def _short(text: str) -> str:
    """The end of an id, where the ids of a data set differ."""
    return text if len(text) <= MAX_LETTERS else f"…{text[1 - MAX_LETTERS :]}"

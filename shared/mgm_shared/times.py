"""Frames of a video by presentation time: the one place where seconds become frame numbers.

`time_T` are the presentation times of a video, `Video.time_s`: seconds on the container's clock, strictly ascending, at
constant or variable frame rate. Frame k is shown from `time_T[k]` until `time_T[k + 1]`.

Axes: T frames of a video · N places in it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Annotation files round times to milliseconds; half of one is the largest error of that.
ROUNDING_S = 0.0005


def frames_between(
    time_T: NDArray[np.float64], start_s_N: ArrayLike, end_s_N: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The frames whose time is in [start, end), for each place: first frame and the frame after the last, (N,) int64.

    A time within half a millisecond of a frame's time means that frame. A place in which no frame begins has first =
    stop. Scalars give arrays of shape ().
    """
    first_N = np.searchsorted(time_T, np.asarray(start_s_N, np.float64) - ROUNDING_S)
    stop_N = np.searchsorted(time_T, np.asarray(end_s_N, np.float64) - ROUNDING_S)
    return np.asarray(first_N, np.int64), np.maximum(first_N, stop_N).astype(np.int64)


def nearest_frames(time_T: NDArray[np.float64], at_s_N: ArrayLike) -> NDArray[np.int64]:
    """The frame whose time is nearest to each of some times, (N,) int64; of two that are equally near, the earlier.

    Times before the first frame give the first, times after the last frame the last. A video needs at least one frame.
    """
    at_N = np.asarray(at_s_N, np.float64)
    after_N = np.searchsorted(time_T, at_N).clip(1, max(1, len(time_T) - 1))
    before_N = after_N - 1
    is_after_N = time_T[after_N.clip(max=len(time_T) - 1)] - at_N < at_N - time_T[before_N]
    return np.asarray(np.where(is_after_N, after_N, before_N).clip(max=len(time_T) - 1), np.int64)


def interval_s(fps: float) -> float:
    """The mean interval of the frames of a video; 0 where its rate is not known."""
    return 1 / fps if fps > 0 else 0.0


def end_s(time_T: NDArray[np.float64], fps: float) -> float:
    """When the last frame of a video ends. It counts as one mean interval: containers do not say it reliably."""
    return float(time_T[-1]) + interval_s(fps)

"""Which frames of a video make up a clip.

A dense clip of T frames at a stride spans (T − 1) · stride + 1 frames. In a video with fewer, `short_videos` decides:
"stride" lowers the stride until the clip fits, and repeats the last frame where even stride 1 is too long; "repeat"
keeps the stride, so that speeds stay as they are, and repeats the last frame, as VideoMAE does.

Axes: T sampled frames · V views.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def fitting_stride(num_frames_in_video: int, num_frames: int, stride: int) -> int:
    """The largest stride up to `stride` at which the clip fits into the video; 1 when none does."""
    return min(stride, max(1, (num_frames_in_video - 1) // max(1, num_frames - 1)))


def _dense_indices(start: int, num_frames_in_video: int, num_frames: int, stride: int) -> NDArray[np.int64]:
    return np.minimum(start + stride * np.arange(num_frames), num_frames_in_video - 1)


def _num_starts(num_frames_in_video: int, num_frames: int, stride: int) -> int:
    return max(1, num_frames_in_video - (num_frames - 1) * stride)


def sample_indices(
    num_frames_in_video: int, num_frames: int, stride: int, rng: Generator, short_videos: str = "stride"
) -> NDArray[np.int64]:
    """A run of frames at `stride` from a random start, (T,), for training."""
    if short_videos == "stride":
        stride = fitting_stride(num_frames_in_video, num_frames, stride)
    start = int(rng.integers(_num_starts(num_frames_in_video, num_frames, stride)))
    return _dense_indices(start, num_frames_in_video, num_frames, stride)


def segment_indices(num_frames_in_video: int, num_frames: int, rng: Generator | None) -> NDArray[np.int64]:
    """One frame of each of `num_frames` equal parts of the video, (T,) (TSN): at random, or the middle without `rng`.

    Frames repeat in place, spread over the clip, when the video has fewer.
    """
    offset_T = np.full(num_frames, 0.5) if rng is None else rng.random(num_frames)
    return ((np.arange(num_frames) + offset_T) * num_frames_in_video / num_frames).astype(np.int64)


def view_indices(
    num_frames_in_video: int,
    num_frames: int,
    stride: int,
    num_views: int,
    sampling: str,
    short_videos: str = "stride",
) -> NDArray[np.int64]:
    """The frames of each view of a test, (V, T), without chance.

    dense: runs at `stride`, evenly spread from the first frame to the last; one view takes the middle. segment: the
    middles of V·T equal parts, dealt out in turn, so that every view spans the video.
    """
    if sampling == "segment":
        return segment_indices(num_frames_in_video, num_frames * num_views, None).reshape(num_frames, num_views).T
    if short_videos == "stride":
        stride = fitting_stride(num_frames_in_video, num_frames, stride)
    last_start = _num_starts(num_frames_in_video, num_frames, stride) - 1
    starts = np.linspace(0, last_start, num_views) if num_views > 1 else np.array([last_start // 2])
    rows = [_dense_indices(round(start), num_frames_in_video, num_frames, stride) for start in starts.tolist()]
    return np.stack(rows)

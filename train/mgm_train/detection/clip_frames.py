"""The clip round a key frame: which frames of the video by time, the whole frame for a test, and jitter of its colours.

Axes: T frames · H,W pixels · C = RGB.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.geometry import Box
from mgm_shared.store import Store, Video
from mgm_shared.times import nearest_frames
from mgm_train.data.views import View, even, read_views

# Largest change of hue, in OpenCV's half degrees, and of saturation and value, of 255.
HUE_SHIFT, VALUE_SHIFT = 10, 26
# ImageNet's mean colour: normalised it is zero, as near as whole numbers come.
PADDING_RGB = (124, 116, 104)


def clip_times(key_s: float, num_frames: int, stride: int, clip_fps: float) -> NDArray[np.float64]:
    """When the frames of the clip are shown, (T,) seconds.

    They are every `stride`-th of num_frames × stride frames of a video of `clip_fps`, of which the key frame is the
    first of the second half. For 16 frames, stride 4 and 25 fps: key_s + (4k − 31) / 25 for k = 0 … 15, so the key
    frame itself is not among them (VideoMAE, AlphAction).
    """
    place_T = stride * np.arange(num_frames) + (stride - 1) // 2 - num_frames * stride // 2
    return np.asarray(key_s + place_T / clip_fps)


@dataclass(eq=False)
class ClipReader:
    """Reads the frames round a key frame as a view shows them. It keeps the times of the videos that it has read."""

    store: Store
    num_frames: int
    stride: int
    clip_fps: float
    _times: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def read(self, row: int, time_ms: int, view: View) -> NDArray[np.uint8]:
        """The clip round a time of the video in a row of the store, (3, T, H, W). OSError for damaged data.

        Frames before the first of the video, or after its last, are that one.
        """
        video = self.store.video_at(row)
        at_s_T = clip_times(time_ms / 1000, self.num_frames, self.stride, self.clip_fps)
        (frames_CTHW,) = read_views(video, nearest_frames(self._times_of(row, video), at_s_T), [view])
        return frames_CTHW

    def _times_of(self, row: int, video: Video) -> NDArray[np.float64]:
        if row not in self._times:
            self._times[row] = video_times(video)
        return self._times[row]


def video_times(video: Video) -> NDArray[np.float64]:
    """The times of a video's frames. OSError when they do not ascend, or their checksum is wrong."""
    try:
        time_T = video.time_s
    except (ValueError, RuntimeError) as error:
        # zarr's own errors for a damaged chunk.
        raise OSError(f"the times of {video.video_id} cannot be read: {error}") from error
    # zarr reads a missing chunk as zeros.
    if not (np.diff(time_T) > 0).all():
        raise OSError(f"the times of {video.video_id} do not ascend; run `mgm-prep verify`")
    return time_T


def whole_frame(height: int, width: int, short_px: int) -> View:
    """The whole picture, its short side scaled to `short_px`; both sides are even."""
    scale = short_px / min(height, width)
    size_px = tuple(max(2, even(round(side * scale, 6))) for side in (height, width))
    return View(box=Box(x=0, y=0, width=width, height=height), size_px=(size_px[0], size_px[1]))


def padded(frames_CTHW: NDArray[np.uint8], multiple_px: int) -> NDArray[np.uint8]:
    """Frames with ImageNet's mean colour on the right and at the bottom, so that both sides divide by `multiple_px`."""
    num_colours, num_frames, height, width = frames_CTHW.shape
    sides = [-(-side // multiple_px) * multiple_px for side in (height, width)]
    out_CTHW = np.empty((num_colours, num_frames, *sides), np.uint8)
    out_CTHW[:] = np.array(PADDING_RGB, np.uint8)[:, None, None, None]
    out_CTHW[:, :, :height, :width] = frames_CTHW
    return out_CTHW


def jitter_colours(frames_CTHW: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """Shift hue, saturation and value by one draw each, the same in all frames."""
    hue, saturation, value = (int(rng.integers(-limit, limit + 1)) for limit in (HUE_SHIFT, VALUE_SHIFT, VALUE_SHIFT))
    levels = np.arange(256)
    # OpenCV's hue runs from 0 to 179 and is circular.
    shifted = [(levels + hue) % 180, (levels + saturation).clip(0, 255), (levels + value).clip(0, 255)]
    table_1LC = np.stack(shifted, axis=-1).astype(np.uint8)[None]
    out_CTHW = np.empty_like(frames_CTHW)
    for t in range(frames_CTHW.shape[1]):
        hsv_HWC = cv2.cvtColor(cv2.merge(list(frames_CTHW[:, t])), cv2.COLOR_RGB2HSV)
        cv2.split(cv2.cvtColor(cv2.LUT(hsv_HWC, table_1LC), cv2.COLOR_HSV2RGB), list(out_CTHW[:, t]))
    return out_CTHW

"""A clip from the middle of a stored video, to play in a report with its motion vectors.

Axes: T frames · H,W pixels · C = RGB · 2 = (dx, dy) px a frame.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import Box
from mgm_shared.overlays import full_speed
from mgm_shared.report.blocks import Reel
from mgm_shared.report.reels import arrows_path, boxes_path, data_url, missing_path, shrunk
from mgm_shared.store import Video

NUM_FRAMES, SIDE_PX = 24, 224
# A second of film has about as many frames.
FRAMES_PER_S = 12.5

MaskedBoxes = Callable[[NDArray[np.float32]], Sequence[Box]]
"""motion_TYX2 → the rectangle to shade on each frame, in stored pixels."""


def video_reel(video: Video, remark: str, masked_boxes: MaskedBoxes | None = None) -> Reel:
    """About two seconds from the middle of a video, about 12 frames for a second. OSError where it cannot be read."""
    stride = max(1, round(video.fps / FRAMES_PER_S))
    num_frames = max(1, min(NUM_FRAMES, video.num_frames // stride))
    first = (video.num_frames - (num_frames - 1) * stride) // 2
    indices_T = np.minimum(first + stride * np.arange(num_frames), video.num_frames - 1)
    motion_TYX2 = video.motion[indices_T]
    scale = min(1.0, SIDE_PX / max(video.height, video.width))
    frames_THWC = shrunk(video.frames[indices_T], max(1, round(video.width * scale)))
    height, width = frames_THWC.shape[1:3]
    scale, full_px = width / video.width, full_speed(motion_TYX2)
    return Reel(
        title=video.video_id,
        remark=remark,
        legend=f"frames {indices_T[0]}–{indices_T[-1]} · up to {full_px:.1f} px/frame",
        picture=data_url(list(frames_THWC)),
        num_frames=num_frames,
        width=width,
        height=height,
        frames_per_s=max(video.fps, 1.0) / stride,
        arrows=arrows_path(motion_TYX2, full_px, scale, width),
        missing=missing_path(motion_TYX2, scale, width),
        mask=boxes_path(masked_boxes(motion_TYX2), scale, width) if masked_boxes else "",
    )

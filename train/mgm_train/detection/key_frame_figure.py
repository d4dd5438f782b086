"""A figure of key frames: boxes with the three best classes and their probabilities, and the labels beside them.

Axes: R boxes of a key frame · K classes · 4 = left, top, right, bottom, as shares of the picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.figures import FONT_POINTS, panels
from mgm_shared.overlays import BOX_COLOUR, RING_COLOUR
from mgm_shared.times import nearest_frames
from mgm_train.detection.annotations import ActionClasses
from mgm_train.detection.clip_frames import video_times
from mgm_train.detection.datasets import ScoredFrames, WholeClips
from mgm_train.detection.key_frames import frame_id
from mgm_train.detection.scoring import logits_of_clips
from mgm_train.models.action_detector import ActionDetector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_FRAMES = 4
NUM_BEST = 3


def detections_figure(
    model: ActionDetector, dataset: WholeClips, classes: ActionClasses, video: str | None = None
) -> "Figure":
    """Key frames, evenly chosen, a row for each: what the model says of the boxes, and the labels.

    The boxes are the proposals, or the labelled ones where there are none. UserError when no key frame of the video
    `video` can be shown.
    """
    frames = dataset.frames
    chosen = [index for index, place in enumerate(frames.readable) if _is_shown(frames, place, video, dataset)]
    if not chosen:
        raise UserError(f"no key frame of {video or 'the split'} has a label and is in the store")
    chosen = [chosen[k] for k in np.unique(np.linspace(0, len(chosen) - 1, MAX_FRAMES).round().astype(int)).tolist()]
    pictures = [_picture(dataset, frames.readable[index]) for index in chosen]
    figure, axes = panels(len(chosen), 2, max((p.shape[:2] for p in pictures), key=lambda size: size[0] / size[1]))
    model.eval()
    for (left, right), index, picture_HWC in zip(axes, chosen, pictures, strict=True):
        clip = dataset[index]
        name = frame_id(frames.moments[clip.place])
        of_proposals, of_labels = frames.slices(clip.place)
        labelled_B4, is_action_BK = frames.labelled.box_B4[of_labels], frames.labelled.is_action_BK[of_labels]
        if clip.frames_CTHW is None:
            raise UserError(f"{name} cannot be read: {clip.reason}")
        probability_RK = logits_of_clips(model, [clip])[0].sigmoid().numpy()
        num_proposals = of_proposals.stop - of_proposals.start
        shown_R = slice(0, num_proposals) if num_proposals else slice(None)
        texts = [_best(score_K, classes) for score_K in probability_RK[shown_R]]
        _draw(left, picture_HWC, frames.boxes(clip.place)[shown_R], texts, BOX_COLOUR)
        labels = [[classes.names[k] for k in np.flatnonzero(is_action_K)] for is_action_K in is_action_BK]
        _draw(right, picture_HWC, labelled_B4, ["\n".join(names) for names in labels], RING_COLOUR)
        left.set_title(f"{name}: {'proposals' if num_proposals else 'labelled boxes'}", fontsize=FONT_POINTS, pad=3)
        right.set_title("labels", fontsize=FONT_POINTS, pad=3)
    return figure


def _is_shown(frames: ScoredFrames, place: int, video: str | None, dataset: WholeClips) -> bool:
    of_labels = frames.slices(place)[1]
    name = frames.moments[place][0]
    video_id = dataset.reader.store.video_at(frames.row_of[name]).video_id
    return of_labels.start < of_labels.stop and video in (None, name, video_id)


def _picture(dataset: WholeClips, place: int) -> NDArray[np.uint8]:
    """The frame of the store that is shown at the time of a key frame."""
    name, time_ms = dataset.frames.moments[place]
    video = dataset.reader.store.video_at(dataset.frames.row_of[name])
    return video.frames[int(nearest_frames(video_times(video), time_ms / 1000))]


def _best(score_K: NDArray[np.float32], classes: ActionClasses) -> str:
    """The best scored classes, a line for each."""
    scored = np.array(classes.scored) - 1
    best = scored[np.argsort(-score_K[scored], kind="stable")[:NUM_BEST]]
    return "\n".join(f"{classes.names[k]} {score_K[k]:.2f}" for k in best)


def _draw(
    axis: "Axes", picture_HWC: NDArray[np.uint8], box_R4: NDArray[np.float64], texts: Sequence[str], colour: str
) -> None:
    from matplotlib.patches import Rectangle

    height, width = picture_HWC.shape[:2]
    axis.imshow(picture_HWC)
    for box_4, text in zip(box_R4 * (width, height, width, height), texts, strict=True):
        left, top, right, bottom = box_4.tolist()
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.2))
        # Inside the box, at its upper side, which may lie above the picture.
        axis.text(
            max(0, left) + 1, max(0, top) + 1, text, fontsize=FONT_POINTS - 2.5, color="white", va="top", clip_on=True,
            bbox={"facecolor": "black", "alpha": 0.55, "pad": 0.8, "linewidth": 0},
        )  # fmt: skip

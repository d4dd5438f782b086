"""How well a pretrained model predicts the masked patches of one video, for the table of `make demo`.

Axes: T frames · N tokens, flattened t,h,w.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from mgm_shared.store import open_store
from mgm_train.checkpoint.run_folder import read_config
from mgm_train.config import PretrainConfig
from mgm_train.data.augmentation.augment import view_boxes
from mgm_train.data.clips import read_clips
from mgm_train.data.sampling import view_indices
from mgm_train.data.views import View
from mgm_train.figures.pretrained import pretrained
from mgm_train.figures.reconstruct import Rebuilt, reconstruct
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import MaskGenerator

# Clips of the video, evenly spread from its start to its end.
NUM_CLIPS = 12


@dataclass(frozen=True, kw_only=True)
class ReconstructionScore:
    """How far a prediction is from the truth, over the masked patches of the clips of a video.

    `error` is its mean squared error, divided by that of the mean colour of the clip's visible patches.
    `error_by_neighbours` is the same, divided by that of the mean of the visible patches around each masked one. The
    prediction has seen no ground truth.
    """

    error: float
    error_by_neighbours: float


def score_reconstruction(store: Path, run: Path, video_id: str) -> ReconstructionScore:
    """Mask clips of a video as in the pretraining `run`, and compare their reconstructions with the truth."""
    rebuilt = reconstructions(store, run, video_id)

    def error(guess: Callable[[Rebuilt], NDArray[np.uint8]]) -> float:
        return float(np.mean([one.squared_error(guess(one)) for one in rebuilt]))

    predicted = error(lambda one: one.shown_frames())
    return ReconstructionScore(
        error=predicted / error(mean_colour_frames),
        error_by_neighbours=predicted / error(lambda one: one.visible_mean_frames()),
    )


def mean_colour_frames(rebuilt: Rebuilt) -> NDArray[np.uint8]:
    """The clip (T, H, W, 3) with the mean colour of its visible patches in its masked patches."""
    mean_13 = rebuilt.patches_N3Q[rebuilt.visible_V].mean(dim=(0, 2))[None]
    return rebuilt.with_patches(mean_13[..., None].expand_as(rebuilt.predicted_M3Q))


def reconstructions(store: Path, run: Path, video_id: str) -> list[Rebuilt]:
    """Reconstructions of clips that are evenly spread over a video, masked as in the pretraining `run`."""
    config, model, video = read_config(run, "pretrain", PretrainConfig), pretrained(run), open_store(store)[video_id]
    maker, guidance, rng = MaskGenerator.of(config), Guidance.of(config), default_rng(config.seed)
    (square,) = view_boxes(video.height, video.width, 1)
    views = [View(box=square, size_px=config.image_px)]
    sampling = (config.num_frames, config.stride, NUM_CLIPS, "dense", config.short_videos)
    rebuilt: list[Rebuilt] = []
    for indices_T in view_indices(video.num_frames, *sampling):
        (clip,) = read_clips(video, indices_T, views, read_field=guidance.read)
        rebuilt.append(reconstruct(model, clip.frames_CTHW, maker(clip, rng)))
    return rebuilt

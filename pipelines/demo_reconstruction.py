"""How well a pretrained model predicts the masked patches of one video, for the table of `make demo`.

Axes: T frames · N tokens, flattened t,h,w.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import default_rng

from mgm_shared.store import open_store
from mgm_train.checkpoint.run_folder import read_config
from mgm_train.config import PretrainConfig
from mgm_train.data.augmentation.augment import view_boxes
from mgm_train.data.clips import read_clips
from mgm_train.data.sampling import view_indices
from mgm_train.data.views import View
from mgm_train.figures.pretrained import pretrained
from mgm_train.figures.reconstruct import Reconstruction, reconstruct
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import MaskGenerator

# Clips of the video, evenly spread from its start to its end.
NUM_CLIPS = 12


@dataclass(frozen=True, kw_only=True)
class ReconstructionScore:
    """Means over the clips of a video.

    `error` is the loss of pretraining; predicting the true mean of each masked patch has an error of 1. The others are
    the PSNR in dB of the masked patches, with mean and contrast interpolated from the visible patches: with the
    prediction, and without it.
    """

    error: float
    psnr_db: float
    visible_mean_psnr_db: float


def score_reconstruction(store: Path, run: Path, video_id: str) -> ReconstructionScore:
    """Mask clips of a video as in the pretraining `run`, and compare their reconstructions with the truth."""
    rebuilt = _reconstructions(store, run, video_id)
    frames = [one.frames(one.visible_statistics()) for one in rebuilt]
    means = [one.frames(one.visible_statistics(), is_predicted=False) for one in rebuilt]
    return ReconstructionScore(
        error=float(np.mean([one.loss for one in rebuilt])),
        psnr_db=_mean_psnr(rebuilt, frames),
        visible_mean_psnr_db=_mean_psnr(rebuilt, means),
    )


def _reconstructions(store: Path, run: Path, video_id: str) -> list[Reconstruction]:
    config, model, video = read_config(run, "pretrain", PretrainConfig), pretrained(run), open_store(store)[video_id]
    maker, guidance, rng = MaskGenerator.of(config), Guidance.of(config), default_rng(config.seed)
    (square,) = view_boxes(video.height, video.width, 1)
    views = [View(box=square, size_px=config.image_px)]
    sampling = (config.num_frames, config.stride, NUM_CLIPS, "dense", config.short_videos)
    rebuilt = []
    for indices_T in view_indices(video.num_frames, *sampling):
        (clip,) = read_clips(video, indices_T, views, read_field=guidance.read)
        rebuilt.append(reconstruct(model, clip.frames_CTHW, maker(clip, rng)))
    return rebuilt


def _mean_psnr(rebuilt: list[Reconstruction], frames: list[np.ndarray]) -> float:
    return float(np.mean([one.psnr(frames_THWC) for one, frames_THWC in zip(rebuilt, frames, strict=True)]))

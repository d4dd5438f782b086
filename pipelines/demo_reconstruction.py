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
from mgm_train.figures.reconstruct import Rebuilt, reconstruct
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import MaskGenerator

# Clips of the video, evenly spread from its start to its end.
NUM_CLIPS = 12


@dataclass(frozen=True, kw_only=True)
class ReconstructionScore:
    """Means over the clips of a video, of its masked patches; no ground truth is used.

    `error` is the mean squared error of the prediction, divided by that of `visible_mean_psnr_db`, the mean of the
    visible patches around a masked one. The others are the PSNR in dB: of the prediction, and of that mean.
    """

    error: float
    psnr_db: float
    visible_mean_psnr_db: float


def score_reconstruction(store: Path, run: Path, video_id: str) -> ReconstructionScore:
    """Mask clips of a video as in the pretraining `run`, and compare their reconstructions with the truth."""
    rebuilt = _reconstructions(store, run, video_id)
    error = float(np.mean([one.squared_error(one.shown_frames()) for one in rebuilt]))
    error_of_mean = float(np.mean([one.squared_error(one.visible_mean_frames()) for one in rebuilt]))
    return ReconstructionScore(
        error=error / error_of_mean, psnr_db=_psnr_db(error), visible_mean_psnr_db=_psnr_db(error_of_mean)
    )


def _reconstructions(store: Path, run: Path, video_id: str) -> list[Rebuilt]:
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


def _psnr_db(squared_error: float) -> float:
    return float(10 * np.log10(255**2 / squared_error))

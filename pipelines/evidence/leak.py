"""What a pretrained model reads of a clip, and what of its mask alone.

A mask that is guided by motion tells where something moves, and where to. So the targets of a clip can be predicted in
part without its pixels. The error of a model is compared with its error when all pixels are grey, and when they are
those of another clip.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgm_shared.store import open_store
from mgm_train.checkpoint.run_folder import read_config
from mgm_train.config import PretrainConfig
from mgm_train.data.loader import collate_counted
from mgm_train.figures.pretrained import pretrained
from mgm_train.models.videomae import VideoMAE, split_mask
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.training.targets.choose import make_targets
from mgm_train.training.targets.target import Target

NUM_VIDEOS, BATCH = 160, 16
GREY = 118  # near ImageNet's mean


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Mean errors of a target: with the clip, with grey pixels, with the pixels of another clip; and of zeros."""

    clip: float
    grey: float
    other_clip: float
    zeros: float


@torch.inference_mode()
def read_errors(run: Path, store: Path) -> dict[str, Reading]:
    """The errors of each target of the pretraining `run` on training clips of a store, as it was trained: by name."""
    config, model = read_config(run, "pretrain", PretrainConfig), pretrained(run).eval()
    targets = make_targets(config)
    dataset = pretrain_dataset(open_store(store), config, targets)
    chosen = np.random.default_rng(0).permutation(len(dataset))[:NUM_VIDEOS]
    # A batch of one clip has no other clip.
    parts = [part for part in np.split(chosen, range(BATCH, len(chosen), BATCH)) if len(part) > 1]
    batches = [collate_counted([dataset[0, int(row)] for row in part]) for part in parts]
    return {one.target.name: _reading(model, one.target, batches) for one in targets}


def _reading(model: VideoMAE, target: Target, batches: list[dict[str, Any]]) -> Reading:
    def error(batch: Mapping[str, Any], frames_BCTHW: Tensor | None) -> float:
        _, masked_BM = split_mask(batch["mask_BN"], batch["num_masked"], batch["num_left_out"])
        if frames_BCTHW is None:
            output_BMP = torch.zeros(*masked_BM.shape, target.width)
        else:
            output_BMP = model.by_target(
                model(frames_BCTHW, batch["mask_BN"], batch["num_masked"], batch["num_left_out"])
            )[target.name].float()
        return float(target.error(output_BMP, batch, masked_BM))

    frames = [batch["frames_BCTHW"] for batch in batches]
    others = [frames_BCTHW.roll(1, dims=0) for frames_BCTHW in frames]
    grey = [torch.full_like(frames_BCTHW, GREY) for frames_BCTHW in frames]
    clip_, grey_, other_, zeros_ = (
        float(np.mean([error(batch, pixels) for batch, pixels in zip(batches, shown, strict=True)]))
        for shown in (frames, grey, others, [None] * len(frames))
    )
    return Reading(clip=clip_, grey=grey_, other_clip=other_, zeros=zeros_)

"""Normalised pixels of the masked patches, VideoMAE's target.

Axes: B clips · M masked tokens · Q pixels of a patch (2·16·16) · 3 colours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mgm_shared.geometry import Patch
from mgm_train.models.videomae import patchify, pick
from mgm_train.training.targets.target import PatchTarget


@dataclass(frozen=True, kw_only=True)
class Pixels(PatchTarget):
    """The pixels of a patch, colour fastest, each colour with mean 0 and std 1 over the patch."""

    name: ClassVar[str] = "pixels"

    @property
    def width(self) -> int:
        return self.patch.num_values

    @property
    def blind_loss(self) -> float:
        return 1.0

    def values(self, batch: Mapping[str, Tensor], masked_BM: Tensor) -> tuple[Tensor, None]:
        return target_pixels(batch["frames_BCTHW"], masked_BM, self.patch), None


def target_pixels(frames_BCTHW: Tensor, masked_BM: Tensor, patch: Patch) -> Tensor:
    """Normalised pixels of the masked patches, (B, M, Q, 3) float32, from uint8 frames.

    Each colour of each patch has mean 0 and std 1 over its pixels, as in VideoMAE: unbiased variance,
    1e-6 on the std of values in [0, 1]. Uniform patches become 0.
    """
    return standardised(pick(patchify(frames_BCTHW, patch), masked_BM).float()).transpose(2, 3)


def standardised(pixels_BM3Q: Tensor) -> Tensor:
    """Pixels of 0 … 255 with mean 0 and std 1 over the last axis, in place."""
    variance, mean = torch.var_mean(pixels_BM3Q, dim=3, keepdim=True)
    return pixels_BM3Q.sub_(mean).mul_(1 / (variance.sqrt() + 255e-6))

"""Difference of the two frames of a tubelet at the masked patches.

MotionMAE (Yang et al., BMVC 2024) predicts "the temporal difference of nearby frames" with a second decoder; its code
was never released. The definition here is our own.

Axes: B clips · M masked tokens · 3 colours · Q pixels of a frame of a patch (16·16).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mgm_train.models.videomae import patchify, pick
from mgm_train.training.targets.target import PatchTarget

# Up to this standard deviation, in grey levels, a change is noise of the compression and is not amplified. Of patches
# without motion in five real clips (JPEG, quality 90), 3 to 24 % have more than 2 levels, but 50 to 63 % more than 1.
MIN_STD = 2.0


@dataclass(frozen=True, kw_only=True)
class Difference(PatchTarget):
    """The second frame of a tubelet minus the first, each colour with mean 0 and std 1 over the patch; 0 if static.

    The frames are neighbours among the sampled ones, `stride` stored frames apart. The outputs of a token are in the
    order of its pixels, colour fastest: 16·16·3 = 768.
    """

    name: ClassVar[str] = "difference"

    @property
    def width(self) -> int:
        return 3 * self.patch.px**2

    def values(self, batch: Mapping[str, Tensor], masked_BM: Tensor) -> tuple[Tensor, None]:
        patches_BM3Q = pick(patchify(batch["frames_BCTHW"], self.patch), masked_BM).float()
        first_BM3Q, second_BM3Q = patches_BM3Q.chunk(2, dim=3)
        return normalised_change(second_BM3Q - first_BM3Q).transpose(2, 3), None


def normalised_change(change_BM3Q: Tensor) -> Tensor:
    """Mean 0 and std 1 over the last axis, for changes in grey levels; 0 where the std is at most `MIN_STD`."""
    variance, mean = torch.var_mean(change_BM3Q, dim=3, keepdim=True)
    std = variance.sqrt()
    return (change_BM3Q - mean) / (std + 255e-6) * (std > MIN_STD)

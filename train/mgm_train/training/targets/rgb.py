"""Pixels of the masked patches that are not normalised by patch, MAE's and VideoMAE's target without `norm_pix_loss`.

Axes: B clips · M masked tokens · Q pixels of a patch (2·16·16) · 3 colours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mgm_train.models.videomae import normalise, patchify, pick
from mgm_train.training.targets.target import PatchTarget


@dataclass(frozen=True, kw_only=True)
class Rgb(PatchTarget):
    """The pixels of a patch, colour fastest, normalised as the input is: by ImageNet's mean and std of each colour.

    So the brightness and the contrast of a patch are part of the target, and the noise of a flat patch is a small part
    of the loss. With `pixels`, a patch of one grey level and its noise counts as much as any other.
    """

    name: ClassVar[str] = "rgb"

    @property
    def width(self) -> int:
        return self.patch.num_values

    def values(self, batch: Mapping[str, Tensor], masked_BM: Tensor) -> tuple[Tensor, None]:
        patches_BM3Q = pick(patchify(batch["frames_BCTHW"], self.patch), masked_BM)
        return normalise(patches_BM3Q, colour_axis=2).transpose(2, 3), None

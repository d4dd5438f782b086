"""Codes of the masked patches in a codebook of the data set: a target like BEVT's and MAM²'s, by cross entropy.

BEVT predicts the codes of DALL-E's discrete VAE, MAM² those of a VQGAN. Their weights cannot be shipped, and nobody can
fit them quickly; here the codes are the nearest centres of k-means (`mgm-prep codebook`). As with BEVT, each frame of a
token has a code, of its patch at half the size.

Axes: B clips · M masked tokens · T frames of a token · K codes · Q pixels of a patch · P numbers of a
patch at half size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mgm_shared.codebook import STD_EPSILON, PatchNorm, read_codebook
from mgm_shared.errors import UserError
from mgm_shared.geometry import Patch
from mgm_train.config import PretrainConfig
from mgm_train.models.videomae import patchify, pick
from mgm_train.training.targets.target import Target


@dataclass(frozen=True, kw_only=True)
class KMeans(Target):
    """The code of each frame of a token; the outputs of a token are K for its first frame, then K for the next."""

    name: ClassVar[str] = "kmeans"
    patch: Patch
    norm: PatchNorm
    centres_KP: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, config: PretrainConfig) -> "KMeans":
        """The target with the codebook of a configuration. UserError where it cannot be read or has other patches."""
        codebook = read_codebook(Path(config.codebook))
        if codebook.patch_px != config.patch_px:
            raise UserError(
                f"{config.codebook} has codes of patches of {codebook.patch_px} px, but patch-px is {config.patch_px}; "
                f"fit one by `mgm-prep codebook --patch-px {config.patch_px}`"
            )
        return cls(patch=config.patch, norm=codebook.norm, centres_KP=torch.from_numpy(codebook.centres_KP))

    @property
    def width(self) -> int:
        return len(self.centres_KP) * self.patch.frames

    def values(self, batch: Mapping[str, Tensor], masked_BM: Tensor) -> tuple[Tensor, None]:
        patches_BM3Q = pick(patchify(batch["frames_BCTHW"], self.patch), masked_BM)
        vectors_BMTP = patch_vectors(patches_BM3Q, self.patch, self.norm)
        centres_KP = self.centres_KP.to(vectors_BMTP.device)
        # Half precision would take other centres where two are nearly as near.
        with torch.autocast(vectors_BMTP.device.type, enabled=False):
            distance_BMTK = (centres_KP**2).sum(1) - 2 * vectors_BMTP @ centres_KP.T
        return distance_BMTK.argmin(3), None

    def loss(self, output_BMP: Tensor, values: Tensor, is_valid: Tensor | None) -> Tensor:
        """Mean cross entropy of the codes, of all frames."""
        logits = output_BMP.float().unflatten(2, (self.patch.frames, -1))
        return F.cross_entropy(logits.flatten(0, 2), values.flatten())


def patch_vectors(patches_BM3Q: Tensor, patch: Patch, norm: PatchNorm) -> Tensor:
    """`mgm_shared.codebook.patch_vectors` of each frame of uint8 tokens, (B, M, T, P) float32."""
    half = patch.px // 2
    split = patches_BM3Q.float().unflatten(3, (patch.frames, half, 2, half, 2))
    vectors_BMT3Q = split.mean((5, 7)).flatten(4).transpose(2, 3) / 255
    if norm == "patch":
        variance, mean = torch.var_mean(vectors_BMT3Q, dim=4, keepdim=True)
        vectors_BMT3Q = (vectors_BMT3Q - mean) / (variance.sqrt() + STD_EPSILON)
    vectors_BMTP: Tensor = vectors_BMT3Q.flatten(3)
    return vectors_BMTP

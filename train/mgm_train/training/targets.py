"""Targets of the decoder: normalized pixels of the masked patches (VideoMAE)."""

import torch
from torch import Tensor

from mgm_shared.geometry import Patch
from mgm_train.models.videomae import patchify, pick


def target_pixels(frames_BCTHW: Tensor, masked_BM: Tensor, patch: Patch) -> Tensor:
    """Normalized pixels of the masked patches, (B, M, Q, 3) float32, from uint8 frames.

    Each colour of each patch has mean 0 and std 1 over its pixels, as in VideoMAE: unbiased variance,
    1e-6 on the std of values in [0, 1]. Uniform patches become 0.
    """
    pixels_BM3Q = pick(patchify(frames_BCTHW, patch), masked_BM).float()
    variance, mean = torch.var_mean(pixels_BM3Q, dim=3, keepdim=True)
    return pixels_BM3Q.sub_(mean).mul_(1 / (variance.sqrt() + 255e-6)).transpose(2, 3)

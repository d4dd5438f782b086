"""The error of predicted pixels, by the target of pretraining, for tests that have a mask and no indices of tokens."""

from torch import Tensor

from mgm_shared.geometry import PAPER_PATCH, Patch
from mgm_train.models.videomae import split_mask
from mgm_train.training.targets.pixels import Pixels


def pixel_error(pixels_BMP: Tensor, frames_BCTHW: Tensor, mask_BN: Tensor, patch: Patch = PAPER_PATCH) -> Tensor:
    """`Pixels.error` of the masked tokens of `mask_BN`, as `split_mask` has them."""
    _, masked_BM = split_mask(mask_BN, pixels_BMP.shape[1])
    return Pixels(patch=patch).error(pixels_BMP, {"frames_BCTHW": frames_BCTHW}, masked_BM)

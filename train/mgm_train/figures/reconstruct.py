"""Reconstruct the pixels of masked patches from the decoder's predictions.

The decoder predicts patches that are normalised to mean 0 and std 1 (norm-pix targets). To show them as a picture, they
need a mean and a std. `true_statistics` takes those of the masked patches themselves, so the picture contains ground
truth. `visible_statistics` interpolates those of the visible patches, so the picture contains no ground truth.

Axes: B clips · C = 3 colours · T frames · H,W pixels · N tokens, flattened t,h,w · M masked and V visible tokens ·
Q pixels of a patch (2·16·16). Pixels are float32, 0 … 255.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgm_shared.geometry import Patch, TokenGrid
from mgm_train.models.videomae import VideoMAE, patchify, split_mask
from mgm_train.training.losses import masked_mse

# Exponent of inverse distance weighting (Shepard's interpolation); distances are in patches.
DISTANCE_POWER = 4
# Mean and std to show a prediction by itself: mid grey, and a contrast that seldom exceeds the range of pixels.
NEUTRAL_MEAN, NEUTRAL_STD = 127.5, 45.0


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A clip, its mask, and the normalised prediction of each masked patch; `left_out_L` have none.

    `loss` is the loss of pretraining for this clip. Predicting 0 everywhere has a loss of 1.
    """

    shape_THWC: tuple[int, ...]
    patch: Patch
    patches_N3Q: Tensor
    masked_M: Tensor
    visible_V: Tensor
    left_out_L: Tensor
    predicted_M3Q: Tensor
    loss: float

    @property
    def grid(self) -> TokenGrid:
        num_frames, height, width, _ = self.shape_THWC
        return TokenGrid.of_clip(num_frames, height, width, self.patch)

    def true_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std of each masked patch and colour, (M, 3, 1), from ground truth."""
        variance_M31, mean_M31 = torch.var_mean(self.patches_N3Q[self.masked_M], dim=2, keepdim=True)
        return mean_M31, variance_M31.sqrt()

    def visible_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std interpolated from the visible patches by inverse distance. A slice counts as far as a patch."""
        variance_V31, mean_V31 = torch.var_mean(self.patches_N3Q[self.visible_V], dim=2, keepdim=True)
        sides = (self.grid.t, self.grid.h, self.grid.w)
        place_N3 = torch.cartesian_prod(*(torch.arange(float(side)) for side in sides))
        distance_MV = torch.cdist(place_N3[self.masked_M], place_N3[self.visible_V])
        weight_MV = distance_MV**-DISTANCE_POWER
        weight_MV /= weight_MV.sum(dim=1, keepdim=True)
        mean_M31, std_M31 = ((weight_MV @ known.squeeze(2))[..., None] for known in (mean_V31, variance_V31.sqrt()))
        return mean_M31, std_M31

    def neutral_statistics(self) -> tuple[Tensor, Tensor]:
        """The same mid grey and contrast for all patches, to show the prediction by itself."""
        shape = (len(self.masked_M), 3, 1)
        return torch.full(shape, NEUTRAL_MEAN), torch.full(shape, NEUTRAL_STD)

    def frames(self, statistics: tuple[Tensor, Tensor], *, is_predicted: bool = True) -> NDArray[np.uint8]:
        """The clip (T, H, W, 3) with its masked patches replaced by predictions, or by their means only.

        Patches that were neither seen nor predicted are grey.
        """
        mean_M31, std_M31 = statistics
        patches_N3Q = self.patches_N3Q.clone()
        patches_N3Q[self.masked_M] = mean_M31 + self.predicted_M3Q * std_M31 * is_predicted
        patches_N3Q[self.left_out_L] = NEUTRAL_MEAN
        return unpatchify(patches_N3Q, self.shape_THWC, self.patch).round().clamp(0, 255).to(torch.uint8).numpy()

    def psnr(self, frames_THWC: NDArray[np.uint8]) -> float:
        """Peak signal-to-noise ratio of a reconstructed clip over the masked patches, in dB."""
        frames_1CTHW = torch.from_numpy(frames_THWC.transpose(3, 0, 1, 2).copy())[None]
        patches_N3Q = patchify(frames_1CTHW, self.patch)[0].float()
        error = ((patches_N3Q - self.patches_N3Q)[self.masked_M] ** 2).mean()
        return float(10 * torch.log10(255**2 / error))


@torch.inference_mode()
def reconstruct(
    model: VideoMAE, frames_CTHW: NDArray[np.uint8], mask_N: NDArray[np.bool_] | NDArray[np.int8]
) -> Reconstruction:
    """Predict the masked patches of a clip, uint8, by a model that predicts pixels.

    The mask is one of `MaskGenerator`.
    """
    model.eval()
    frames_BCTHW, mask_BN = torch.from_numpy(frames_CTHW)[None], torch.from_numpy(mask_N)[None]
    visible_BV, masked_BM = split_mask(mask_BN, int((mask_N > 0).sum()), int((mask_N < 0).sum()))
    predicted_BMP, patch = model.by_target(model(frames_BCTHW, mask_BN))["pixels"], model.config.patch
    return Reconstruction(
        shape_THWC=(*frames_CTHW.shape[1:], 3),
        patch=patch,
        patches_N3Q=patchify(frames_BCTHW, patch)[0].float(),
        masked_M=masked_BM[0],
        visible_V=visible_BV[0],
        left_out_L=torch.nonzero(mask_BN[0] < 0).flatten(),
        predicted_M3Q=predicted_BMP[0].unflatten(1, (-1, 3)).transpose(1, 2),
        loss=float(masked_mse(predicted_BMP, frames_BCTHW, mask_BN, patch=patch)),
    )


def unpatchify(patches_N3Q: Tensor, shape_THWC: tuple[int, ...], patch: Patch) -> Tensor:
    """Reassemble frames (T, H, W, C) from patches; the inverse of `patchify`."""
    num_frames, height, width, _ = shape_THWC
    grid = TokenGrid.of_clip(num_frames, height, width, patch)
    split = patches_N3Q.reshape(grid.t, grid.h, grid.w, 3, patch.frames, patch.px, patch.px)
    return split.permute(0, 4, 1, 5, 2, 6, 3).reshape(shape_THWC)

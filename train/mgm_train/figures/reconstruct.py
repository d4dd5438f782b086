"""Reconstruct the pixels of masked patches from the decoder's predictions.

A decoder of the target `pixels` predicts patches that are normalised to mean 0 and std 1 (norm-pix targets). To show
them as a picture, they need a mean and a std. `true_statistics` takes those of the masked patches themselves, so the
picture contains ground truth. `visible_statistics` interpolates those of the visible patches, so the picture contains
no ground truth. A decoder of the target `rgb` predicts the pixels themselves.

Axes: B clips · C = 3 colours · T frames · H,W pixels · N tokens, flattened t,h,w · M masked and V visible tokens ·
Q pixels of a patch (2·16·16). Pixels are float32, 0 … 255.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgm_shared.geometry import Patch, TokenGrid
from mgm_train.models.videomae import VideoMAE, grey_levels, patchify, split_mask
from mgm_train.training.targets.pixels import Pixels
from mgm_train.training.targets.rgb import Rgb
from mgm_train.training.targets.target import Target

# Exponent of inverse distance weighting (Shepard's interpolation); distances are in patches.
DISTANCE_POWER = 4
# Mean and std to show a prediction by itself: mid grey, and a contrast that seldom exceeds the range of pixels.
NEUTRAL_MEAN, NEUTRAL_STD = 127.5, 45.0


@dataclass(frozen=True, kw_only=True)
class Rebuilt(ABC):
    """A clip, its mask, and the prediction of each masked patch; `left_out_L` have none.

    `loss` is the loss of pretraining for this clip, of the target that was rebuilt.
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

    @abstractmethod
    def shown_frames(self) -> NDArray[np.uint8]:
        """The clip (T, H, W, 3) with its masked patches as they are predicted without ground truth."""

    def visible_mean_frames(self) -> NDArray[np.uint8]:
        """The clip with the mean of the visible patches around in its masked patches, and no prediction."""
        mean_M31, _ = self.visible_statistics()
        return self.with_patches(mean_M31.expand_as(self.predicted_M3Q))

    def with_patches(self, patches_M3Q: Tensor) -> NDArray[np.uint8]:
        """The clip (T, H, W, 3) with these masked patches. Patches that were neither seen nor predicted are grey."""
        patches_N3Q = self.patches_N3Q.clone()
        patches_N3Q[self.masked_M] = patches_M3Q
        patches_N3Q[self.left_out_L] = NEUTRAL_MEAN
        return unpatchify(patches_N3Q, self.shape_THWC, self.patch).round().clamp(0, 255).to(torch.uint8).numpy()

    def squared_error(self, frames_THWC: NDArray[np.uint8]) -> float:
        """Mean squared error of a reconstructed clip over the masked patches, in grey levels."""
        frames_1CTHW = torch.from_numpy(frames_THWC.transpose(3, 0, 1, 2).copy())[None]
        patches_N3Q = patchify(frames_1CTHW, self.patch)[0].float()
        return float(((patches_N3Q - self.patches_N3Q)[self.masked_M] ** 2).mean())

    def psnr(self, frames_THWC: NDArray[np.uint8]) -> float:
        """Peak signal-to-noise ratio of a reconstructed clip over the masked patches, in dB."""
        error = self.squared_error(frames_THWC)
        return float(10 * np.log10(255**2 / error)) if error else np.inf


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Rebuilt):
    """A clip with the normalised prediction of each masked patch. Predicting 0 everywhere has a loss of 1."""

    def true_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std of each masked patch and colour, (M, 3, 1), from ground truth."""
        variance_M31, mean_M31 = torch.var_mean(self.patches_N3Q[self.masked_M], dim=2, keepdim=True)
        return mean_M31, variance_M31.sqrt()

    def neutral_statistics(self) -> tuple[Tensor, Tensor]:
        """The same mid grey and contrast for all patches, to show the prediction by itself."""
        shape = (len(self.masked_M), 3, 1)
        return torch.full(shape, NEUTRAL_MEAN), torch.full(shape, NEUTRAL_STD)

    def frames(self, statistics: tuple[Tensor, Tensor], *, is_predicted: bool = True) -> NDArray[np.uint8]:
        """The clip (T, H, W, 3) with its masked patches replaced by predictions, or by their means only."""
        mean_M31, std_M31 = statistics
        return self.with_patches(mean_M31 + self.predicted_M3Q * std_M31 * is_predicted)

    def shown_frames(self) -> NDArray[np.uint8]:
        return self.frames(self.visible_statistics())


@dataclass(frozen=True, kw_only=True)
class RgbReconstruction(Rebuilt):
    """A clip with the predicted grey levels of each masked patch, 0 … 255."""

    def shown_frames(self) -> NDArray[np.uint8]:
        return self.with_patches(self.predicted_M3Q)


def can_reconstruct(model: VideoMAE) -> bool:
    """Whether the model predicts pixels, normalised or not."""
    return not model.config.target_widths.keys().isdisjoint(("pixels", "rgb"))


@torch.inference_mode()
def reconstruct(
    model: VideoMAE, frames_CTHW: NDArray[np.uint8], mask_N: NDArray[np.bool_] | NDArray[np.int8]
) -> Reconstruction | RgbReconstruction:
    """Predict the masked patches of a clip, uint8, by a model that predicts pixels, normalised ones if it has both.

    The mask is one of `MaskGenerator`.
    """
    model.eval()
    frames_BCTHW, mask_BN = torch.from_numpy(frames_CTHW)[None], torch.from_numpy(mask_N)[None]
    visible_BV, masked_BM = split_mask(mask_BN, int((mask_N > 0).sum()), int((mask_N < 0).sum()))
    outputs, patch = model.by_target(model(frames_BCTHW, mask_BN)), model.config.patch
    is_normalised = "pixels" in outputs
    target: Target = Pixels(patch=patch) if is_normalised else Rgb(patch=patch)
    predicted_BMP = outputs[target.name].float()
    predicted_M3Q = predicted_BMP[0].unflatten(1, (-1, 3)).transpose(1, 2)
    kind = Reconstruction if is_normalised else RgbReconstruction
    return kind(
        shape_THWC=(*frames_CTHW.shape[1:], 3),
        patch=patch,
        patches_N3Q=patchify(frames_BCTHW, patch)[0].float(),
        masked_M=masked_BM[0],
        visible_V=visible_BV[0],
        left_out_L=torch.nonzero(mask_BN[0] < 0).flatten(),
        predicted_M3Q=predicted_M3Q if is_normalised else grey_levels(predicted_M3Q),
        loss=float(target.error(predicted_BMP, {"frames_BCTHW": frames_BCTHW}, masked_BM)),
    )


def unpatchify(patches_N3Q: Tensor, shape_THWC: tuple[int, ...], patch: Patch) -> Tensor:
    """Reassemble frames (T, H, W, C) from patches; the inverse of `patchify`."""
    num_frames, height, width, _ = shape_THWC
    grid = TokenGrid.of_clip(num_frames, height, width, patch)
    split = patches_N3Q.reshape(grid.t, grid.h, grid.w, 3, patch.frames, patch.px, patch.px)
    return split.permute(0, 4, 1, 5, 2, 6, 3).reshape(shape_THWC)

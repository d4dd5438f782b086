"""Histograms of oriented gradients (HOG) of the masked patches, MaskFeat's target (Wei et al., CVPR 2022).

Axes: B clips · t slices · C = 3 colours · H,W pixels · N tokens · M masked tokens · c² cells of 8×8 px of a patch, row
by row · K = 64 pixels of a cell · 9 orientations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mgm_shared.geometry import CELL_PX
from mgm_train.models.videomae import pick
from mgm_train.training.targets.target import PatchTarget

NUM_BINS = 9
# The smallest norm by which a histogram is divided, as in MaskFeat: an empty one stays 0.
MIN_NORM = 1e-12


@dataclass(frozen=True, kw_only=True)
class Hog(PatchTarget):
    """HOG of the first frame of each tubelet: 9 orientations of each colour of each cell of 8×8 pixels.

    The outputs of a token are in the order colour, orientation, row and column of the cell, 3·9·2·2 = 108 for a patch
    of 16 pixels.
    """

    name: ClassVar[str] = "hog"

    @property
    def width(self) -> int:
        return 3 * NUM_BINS * self.patch.cells_per_side**2

    def values(self, batch: Mapping[str, Tensor], masked_BM: Tensor) -> tuple[Tensor, None]:
        frames_BCtHW = batch["frames_BCTHW"][:, :, :: self.patch.frames].float()
        right, down = gradients(frames_BCtHW.flatten(0, 2)[None])
        magnitude, bins = votes(right, down)
        cells = [
            pick(self._cells(image.view(frames_BCtHW.shape)), masked_BM).unflatten(3, (-1, CELL_PX**2))
            for image in (magnitude, bins)
        ]
        return histograms(*cells).transpose(3, 4).flatten(2), None

    def _cells(self, image_BCtHW: Tensor) -> Tensor:
        """The pixels of each token by cell, (B, N, 3, c²·K)."""
        side = self.patch.cells_per_side
        split = image_BCtHW.unflatten(4, (-1, side, CELL_PX)).unflatten(3, (-1, side, CELL_PX))
        # b, colour, slice, row, cell row, pixel row, column, cell column, pixel column
        cells_BN3K: Tensor = split.permute(0, 2, 3, 6, 1, 4, 7, 5, 8).flatten(5).flatten(1, 3)
        return cells_BN3K


def gradients(images_1XHW: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's gradients to the left and up, in the shape of the images; their edge is mirrored.

    Sums of slices, because autocast would compute a convolution in 16 bits. Means and contrasts of the colours, by
    which MaskFeat normalises its input, have no effect on normalised histograms.
    """
    padded = F.pad(images_1XHW, (1, 1, 1, 1), mode="reflect")
    smooth_down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth_right = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return smooth_down[..., :-2] - smooth_down[..., 2:], smooth_right[..., :-2, :] - smooth_right[..., 2:, :]


def votes(gradient_x: Tensor, gradient_y: Tensor) -> tuple[Tensor, Tensor]:
    """The magnitude of a gradient, and the number of its orientation as a float: steps of 20° from 0° to 180°.

    The angle is atan2(x, y), as in MaskFeat: 0 is a gradient up or down.
    """
    angle = torch.atan2(gradient_x, gradient_y)
    return torch.hypot(gradient_x, gradient_y), torch.floor(angle * (NUM_BINS / math.pi)).remainder(NUM_BINS)


def histograms(magnitude_BM3cK: Tensor, bins_BM3cK: Tensor) -> Tensor:
    """The magnitudes of a cell summed for each orientation, with a norm of 1 for each colour: (B, M, 3, c², 9).

    A sum for each orientation, because adding at indices is not deterministic on a GPU.
    """
    sums = torch.stack([(magnitude_BM3cK * (bins_BM3cK == k)).sum(4) for k in range(NUM_BINS)], dim=4)
    return F.normalize(sums, dim=4, eps=MIN_NORM)

"""Targets of a model and its predictions of them, as pictures of each slice.

Axes: T frames · t,h,w tubelets, N of them, flattened · M masked tokens · P values of a token · H,W pixels of a picture,
C its colours · S side of a cell in a picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgm_shared.geometry import CELL_PX, TokenGrid
from mgm_shared.overlays import motion_colours
from mgm_train.figures.reconstruct import NEUTRAL_MEAN, NEUTRAL_STD
from mgm_train.models.videomae import VideoMAE, grey_levels, split_mask
from mgm_train.training.targets.hog import NUM_BINS
from mgm_train.training.targets.kmeans import KMeans
from mgm_train.training.targets.target import Target
from mgm_train.training.targets.trajectory import Trajectory

# Of a token that is not shown; in the colours of motion white means that nothing moves.
EMPTY_GREY, EMPTY_MOTION_GREY = 255, 128
# The displacement of full colour, by the norm of trajectories.
FULL_COLOUR = {"patch": 1.5, "clip": 2.0, "none": 0.5}
# Pixels of a cell's histogram in a picture.
GLYPH_PX = 24


@dataclass(frozen=True, kw_only=True)
class ShownTarget:
    """A target of a clip and its prediction, (N, P) each, NaN where there is none; and the loss of the prediction."""

    target: Target
    true_NP: Tensor
    predicted_NP: Tensor
    loss: float

    def pictures(self, grid: TokenGrid) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A picture of each slice, (t, H, W, 3): the target, and the prediction of the masked tokens."""
        return draw(self.target, self.true_NP, grid), draw(self.target, self.predicted_NP, grid)


@torch.inference_mode()
def shown_targets(
    model: VideoMAE, targets: Sequence[Target], inputs: Mapping[str, Tensor], mask_N: Tensor
) -> list[ShownTarget]:
    """Each target of a clip with the model's prediction of it. `inputs` are tensors of a batch with that clip only."""
    model.eval()
    num_masked = int((mask_N > 0).sum())
    _, masked_1M = split_mask(mask_N[None], num_masked)
    outputs = model.by_target(model(inputs["frames_BCTHW"], mask_N[None], num_masked))
    every_1N = torch.arange(len(mask_N))[None]
    shown = []
    for target in targets:
        output_1MP = outputs[target.name].float()
        true, is_valid = target.values(inputs, every_1N)
        true = true if is_valid is None else true.float().masked_fill(~_aligned(is_valid, true), torch.nan)
        predicted_NP = torch.full((len(mask_N), output_1MP.shape[2]), torch.nan)
        predicted_NP[masked_1M[0]] = output_1MP[0]
        shown.append(
            ShownTarget(
                target=target,
                true_NP=true[0].flatten(1),
                predicted_NP=predicted_NP,
                loss=float(target.error(output_1MP, inputs, masked_1M)),
            )
        )
    return shown


def _aligned(is_valid: Tensor, values: Tensor) -> Tensor:
    return is_valid.reshape(is_valid.shape + (1,) * (values.dim() - is_valid.dim()))


def draw(target: Target, values_NP: Tensor, grid: TokenGrid) -> NDArray[np.uint8]:
    """A picture of each slice, (t, H, W, 3), of a target's values or of the model's outputs; NaN tokens are empty."""
    is_empty_N = values_NP.isnan().all(1).numpy()
    tiles_NHWC = DRAWERS[target.name](target, values_NP, grid)
    tiles_NHWC[is_empty_N] = EMPTY_MOTION_GREY if isinstance(target, Trajectory) else EMPTY_GREY
    return _joined(tiles_NHWC, grid)


def _joined(tiles_NHWC: NDArray[np.uint8], grid: TokenGrid) -> NDArray[np.uint8]:
    """Pictures of tokens, (N, S, S, 3), put together to pictures of slices."""
    side, colours = tiles_NHWC.shape[1], tiles_NHWC.shape[3]
    split = tiles_NHWC.reshape(grid.t, grid.h, grid.w, side, side, colours)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(grid.t, grid.h * side, grid.w * side, colours)


def _draw_pixels(target: Target, values_NP: Tensor, grid: TokenGrid) -> NDArray[np.uint8]:
    """The first frame of normalised pixels, or of their difference, with mid grey as 0."""
    return _first_frame(NEUTRAL_MEAN + NEUTRAL_STD * values_NP, grid)


def _draw_rgb(target: Target, values_NP: Tensor, grid: TokenGrid) -> NDArray[np.uint8]:
    """The first frame of pixels."""
    return _first_frame(grey_levels(values_NP.unflatten(1, (-1, 3)), colour_axis=2), grid)


def _first_frame(levels: Tensor, grid: TokenGrid) -> NDArray[np.uint8]:
    """The first frame of each token, (N, S, S, 3), of grey levels in the order of its pixels; NaN is 0."""
    side = grid.patch.px
    pixels_NTyxC = levels.nan_to_num().clamp(0, 255).reshape(len(levels), -1, side, side, 3)
    return pixels_NTyxC[:, 0].to(torch.uint8).numpy()


def _draw_hog(target: Target, values_NP: Tensor, grid: TokenGrid) -> NDArray[np.uint8]:
    """Nine lines in each cell, along the edges of that orientation, as bright as its share; mean of the colours."""
    side = grid.patch.cells_per_side
    shares_NKyx = values_NP.reshape(-1, 3, NUM_BINS, side, side).mean(1).nan_to_num().clamp(0, 1).numpy()
    # token, cell row, pixel row, cell column, pixel column
    light = np.einsum("nkyx,kab->nyaxb", shares_NKyx, _edge_lines())
    tiles_NHW = (255 * light.clip(0, 1)).reshape(len(light), side * GLYPH_PX, side * GLYPH_PX)
    return np.asarray(tiles_NHW[..., None].repeat(3, axis=3), np.uint8)


def _edge_lines() -> NDArray[np.float64]:
    """A line through a cell along the edges of each orientation, (9, S, S)."""
    y, x = np.mgrid[:GLYPH_PX, :GLYPH_PX] - (GLYPH_PX - 1) / 2
    # The gradient of an orientation is (sin, cos) of its angle; an edge is at right angles to it.
    angle_K11 = np.pi / NUM_BINS * (np.arange(NUM_BINS) + 0.5)[:, None, None]
    distance_KSS = np.abs(x * np.sin(angle_K11) + y * np.cos(angle_K11))
    is_inside_SS = np.hypot(x, y) < GLYPH_PX / 2
    lines: NDArray[np.float64] = (2 - distance_KSS).clip(0, 1) * is_inside_SS
    return lines


def _draw_trajectory(target: Target, values_NP: Tensor, grid: TokenGrid) -> NDArray[np.uint8]:
    """The displacements of the points of a token, or the mean of several, as colours; grey where there is none."""
    assert isinstance(target, Trajectory)
    side = grid.patch.cells_per_side
    mean_N2yx = values_NP.reshape(len(values_NP), 2, -1, side, side).mean(2).numpy()
    tiles_NyxC = motion_colours(mean_N2yx.transpose(0, 2, 3, 1), FULL_COLOUR[target.read.norm])
    return tiles_NyxC.repeat(CELL_PX, axis=1).repeat(CELL_PX, axis=2)


def _draw_codes(target: Target, values_NP: Tensor, grid: TokenGrid) -> NDArray[np.uint8]:
    """The patch that stands for the code of a token's first frame; of a prediction the most likely one."""
    assert isinstance(target, KMeans)
    num_codes, half = len(target.centres_KP), grid.patch.px // 2
    is_code = not values_NP.is_floating_point()
    code_N = values_NP[:, 0] if is_code else values_NP[:, :num_codes].nan_to_num().argmax(1)
    patches_N3yx = target.centres_KP[code_N].reshape(-1, 3, half, half)
    mean, contrast = (NEUTRAL_MEAN, NEUTRAL_STD) if target.norm == "patch" else (0, 255)
    grey_N3yx = mean + contrast * patches_N3yx
    tiles_NyxC = grey_N3yx.clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return tiles_NyxC.repeat(2, axis=1).repeat(2, axis=2)


Drawer = Callable[[Target, Tensor, TokenGrid], NDArray[np.uint8]]
# By target: a picture of each token, (N, S, S, 3), of its true values or of the model's outputs for it, (N, P).
DRAWERS: dict[str, Drawer] = {
    "pixels": _draw_pixels,
    "rgb": _draw_rgb,
    "hog": _draw_hog,
    "difference": _draw_pixels,
    "trajectory": _draw_trajectory,
    "kmeans": _draw_codes,
}

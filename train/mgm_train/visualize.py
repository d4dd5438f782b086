"""Pictures of training: what each strategy hides of a clip, what the decoder makes of it, how the loss fell.

Axes: B clips · C colours · T frames · H,W pixels · t,h,w tubelets · M hidden tokens · Q pixels of a patch.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.figures import draw_motion, film_strip, panels, shade_hidden
from mgm_shared.geometry import PATCH_PX, TUBELET_FRAMES, TokenGrid
from mgm_shared.store import Video
from mgm_train.augment import view_boxes
from mgm_train.checkpoint import RunFolder
from mgm_train.clips import Clip, read_clips
from mgm_train.config import PretrainConfig
from mgm_train.guidance import Guidance
from mgm_train.masking import STRATEGIES, MaskMaker
from mgm_train.model import VideoMAE, patchify, split_mask
from mgm_train.sampling import view_indices
from mgm_train.views import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PANELS = 8


def centre_clip(video: Video, config: PretrainConfig) -> Clip:
    """The clip from the middle of a video, its central square at the size of training."""
    (indices_T,) = view_indices(video.num_frames, config.num_frames, config.stride, 1, "dense")
    (box,) = view_boxes(video.height, video.width, 1)
    view = View(box=box, size_px=config.image_px)
    (clip,) = read_clips(video, indices_T, [view], read_field=Guidance.of(config).read)
    return clip


def _shown_frames(num_frames: int) -> list[int]:
    """The first frames of at most MAX_PANELS evenly spread tubelets."""
    firsts = range(0, num_frames, TUBELET_FRAMES)
    return list(firsts[:: -(-len(firsts) // MAX_PANELS)])


def mask_figure(clip: Clip, config: PretrainConfig, rng: Generator) -> "Figure":
    """Figures 2 and 5: the clip, its motion, and what each strategy hides."""
    rows = [("motion", clip.frames_THWC)]
    for strategy in STRATEGIES:
        mask_N = replace(MaskMaker.of(config), strategy=strategy)(clip, rng)
        rows.append((strategy, shade_hidden(clip.frames_THWC, mask_N.reshape(_shape(config)))))
    shown = _shown_frames(config.num_frames)
    figure = film_strip([(name, frames[shown]) for name, frames in rows], [f"frame {t}" for t in shown])
    for axis, t in zip(figure.axes, shown, strict=False):
        draw_motion(axis, clip.frames_THWC[t], clip.motion_TYX2[t])
    return figure


def _shape(config: PretrainConfig) -> tuple[int, int, int]:
    grid = TokenGrid.of_clip(config.num_frames, config.image_px, config.image_px)
    return grid.t, grid.h, grid.w


def reconstruction_figure(model: VideoMAE, clip: Clip, config: PretrainConfig, rng: Generator) -> "Figure":
    """Figure 8: the clip, what the encoder sees, and what the decoder makes of the rest.

    The model predicts each patch with its mean and contrast taken out (norm-pix). They are put back from the true
    patch, which the row's name says: the last row is less than a blind guess.
    """
    mask_N = MaskMaker.of(config)(clip, rng)
    rebuilt_THWC = reconstruct(model, clip.frames_THWC, mask_N)
    hidden_THWC = shade_hidden(clip.frames_THWC, mask_N.reshape(_shape(config)))
    shown = _shown_frames(config.num_frames)
    rows = [
        ("clip", clip.frames_THWC[shown]),
        (f"visible ({config.mask})", hidden_THWC[shown]),
        ("rebuilt, with\ntrue patch statistics", rebuilt_THWC[shown]),
    ]
    return film_strip(rows, [f"frame {t}" for t in shown])


@torch.inference_mode()
def reconstruct(model: VideoMAE, frames_THWC: NDArray[np.uint8], mask_N: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The clip with its hidden patches replaced by the prediction, rescaled by each true patch's mean and deviation."""
    model.eval()
    frames_BCTHW = torch.from_numpy(np.ascontiguousarray(frames_THWC.transpose(3, 0, 1, 2)))[None]
    mask_BN = torch.from_numpy(mask_N)[None]
    _, hidden_BM = split_mask(mask_BN, int(mask_N.sum()))
    patches_N3Q = patchify(frames_BCTHW)[0].float()
    true_M3Q = patches_N3Q[hidden_BM[0]]
    predicted_M3Q = model(frames_BCTHW, mask_BN)[0].unflatten(1, (-1, 3)).transpose(1, 2)
    variance, mean = torch.var_mean(true_M3Q, dim=2, keepdim=True)
    patches_N3Q[hidden_BM[0]] = predicted_M3Q * variance.sqrt() + mean
    return unpatchify(patches_N3Q, frames_THWC.shape).clamp(0, 255).to(torch.uint8).numpy()


def unpatchify(patches_N3Q: torch.Tensor, shape_THWC: tuple[int, ...]) -> torch.Tensor:
    """The frames (T, H, W, C) of which `patchify` makes these patches."""
    num_frames, height, width, _ = shape_THWC
    grid = TokenGrid.of_clip(num_frames, height, width)
    split = patches_N3Q.reshape(grid.t, grid.h, grid.w, 3, TUBELET_FRAMES, PATCH_PX, PATCH_PX)
    return split.permute(0, 4, 1, 5, 2, 6, 3).reshape(shape_THWC)


def loss_figure(run: Path) -> "Figure":
    """The loss of a run over its steps, and the learning rate beneath."""
    from matplotlib.ticker import AutoLocator

    rows = [row for row in RunFolder(run).read_metrics() if "loss" in row]
    figure, axes = panels(2, 1, (1, 3), panel_inches=6)
    for axis, name in zip(axes.flat, ("loss", "lr"), strict=True):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows])
        axis.set(ylabel=name)
        axis.xaxis.set_major_locator(AutoLocator())
        axis.yaxis.set_major_locator(AutoLocator())
    axes.flat[1].set(xlabel="step")
    return figure

"""Figures of a pretraining run: the paper's figures 2 and 5 to 8 for one clip.

A figure is a list of rows over the frames of the clip. It is drawn as a strip of frames or as a movie.

Axes: T frames · S shown ones · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame · t,h,w tubelets · N of them, flattened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray

from mgm_shared.boxes import Boxes, boxes_at
from mgm_shared.figures import FONT_POINTS, Row, film_strip, motion_rows, movie
from mgm_shared.geometry import Box, TokenGrid
from mgm_shared.overlays import draw_boxes, draw_heat, draw_heat_scale, draw_outline, draw_ring, shade_masked
from mgm_shared.store import Video
from mgm_train.config import PretrainConfig
from mgm_train.data.augmentation.augment import view_boxes
from mgm_train.data.clips import Clip, read_clips
from mgm_train.data.sampling import view_indices
from mgm_train.data.views import View
from mgm_train.figures.attention_map import attention_map, centre_token
from mgm_train.figures.reconstruct import Rebuilt, Reconstruction, RgbReconstruction, can_reconstruct, reconstruct
from mgm_train.figures.target_rows import shown_targets
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import STRATEGIES, MaskGenerator
from mgm_train.models.videomae import VideoMAE
from mgm_train.training.targets.choose import make_targets, readers
from mgm_train.training.targets.target import WeightedTarget

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Even, so that the slice of the centre frame is always shown.
MAX_SHOWN = 6
# Quantile of a heat map that gets its full colour. With the maximum, a few cells would darken all others.
HEAT_QUANTILE = 0.995
# Attention that gets its full colour, as a multiple of an even spread. It is the same for all blocks, clips and runs:
# a map that is nearly even looks even.
FULL_ATTENTION = 5.0

STRATEGY_NAMES = {
    "mgm": "MGM",
    "mgm-sparse": "MGM, sparse",
    "smm": "SMM",
    "smm-sparse": "SMM, sparse",
    "tube": "random tube\n(VideoMAE)",
    "motion-bins": "motion bins\n(TrackMAE)",
    "random": "random\n(ST-MAE)",
    "block": "random block",
}


@dataclass(frozen=True, kw_only=True)
class ClipFigure:
    """Rows over the frames of a clip, with a caption. `frame_numbers` are those of the stored video."""

    rows: list[Row]
    frame_numbers: list[int]
    frames_per_slice: int
    frame_size: tuple[int, int]
    caption: str

    def strip(self) -> "Figure":
        """Evenly spaced frames side by side; of each tubelet the first frame."""
        num_slices = len(self.frame_numbers) // self.frames_per_slice
        num_shown = min(MAX_SHOWN, num_slices)
        shown_S = np.arange(num_shown) * num_slices // num_shown * self.frames_per_slice
        titles = {t: f"frame {self.frame_numbers[t]}" for t in shown_S.tolist()}
        return film_strip(self.rows, titles, self.frame_size, caption=self.caption, max_columns=MAX_SHOWN)

    def movie(self) -> list[NDArray[np.uint8]]:
        """All frames in order."""
        titles = {t: f"frame {number}" for t, number in enumerate(self.frame_numbers)}
        return movie(self.rows, titles, self.frame_size, caption=self.caption)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A clip with its motion vectors, the same clip with the guidance in their place, and labelled boxes, if any.

    `indices_T` are the numbers of its frames in the stored video.
    """

    video: Video
    view: View
    clip: Clip
    guided: Clip
    indices_T: NDArray[np.int64]
    boxes_T: list[list[Box]]
    config: PretrainConfig

    @classmethod
    def of(cls, video: Video, config: PretrainConfig, boxes: Boxes | None = None) -> "Subject":
        """The clip from the middle of a video: the central square, resized as for training."""
        (indices_T,) = view_indices(video.num_frames, config.num_frames, config.stride, 1, "dense", config.short_videos)
        (square,) = view_boxes(video.height, video.width, 1)
        view = View(box=square, size_px=config.image_px)
        (clip,) = read_clips(video, indices_T, [view])
        (guided,) = read_clips(video, indices_T, [view], read_field=Guidance.of(config).read)
        found_T = [boxes_at(boxes, video, t) if boxes else [] for t in indices_T.tolist()]
        boxes_T = [[_in_view(box, square, config.image_px) for box in found] for found in found_T]
        places: dict[str, Any] = {"video": video, "view": view, "indices_T": indices_T, "boxes_T": boxes_T}
        return cls(clip=clip, guided=guided, config=config, **places)

    @property
    def grid(self) -> TokenGrid:
        return self.config.grid

    def batch(self, targets: Sequence[WeightedTarget]) -> dict[str, torch.Tensor]:
        """The clip as a batch, with what its targets read."""
        read = {name: reader(self.video, self.indices_T, self.view) for name, reader in readers(targets).items()}
        tensors = {f"{name}_BNP": torch.from_numpy(values_NP)[None] for name, values_NP in read.items()}
        return {"frames_BCTHW": torch.from_numpy(self.clip.frames_CTHW)[None], **tensors}

    def mask_thw(self, strategy: str = "") -> NDArray[np.bool_] | NDArray[np.int8]:
        """The mask of the clip by the run's strategy, or by another one. Every call returns the same mask.

        It is not 0 where the encoder sees nothing, and −1 where nothing is predicted either.
        """
        maker = MaskGenerator.of(self.config)
        mask_N = replace(maker, strategy=strategy or maker.strategy)(self.guided, default_rng(self.config.seed))
        return mask_N.reshape(self.grid.t, self.grid.h, self.grid.w)

    def picture(self, rows: list[Row], remark: str) -> ClipFigure:
        side_px = self.config.image_px
        caption = f"{self.clip.sample_id} · {remark}"
        return ClipFigure(
            rows=rows,
            frame_numbers=self.indices_T.tolist(),
            frames_per_slice=self.config.tubelet,
            frame_size=(side_px, side_px),
            caption=caption,
        )


def _in_view(box: Box, view: Box, size_px: int) -> Box:
    scale_x, scale_y = size_px / view.width, size_px / view.height
    return Box(
        x=(box.x - view.x) * scale_x,
        y=(box.y - view.y) * scale_y,
        width=box.width * scale_x,
        height=box.height * scale_y,
    )


def _frames(name: str, frames_THWC: NDArray[np.uint8]) -> Row:
    return Row(name=name, draw=lambda axis, t: axis.imshow(frames_THWC[t]))


def _masked(
    name: str, subject: Subject, mask_thw: NDArray[np.bool_] | NDArray[np.int8], *, is_marked: bool = False
) -> Row:
    """The clip with its boxes, its masked patches in fog, and grey where patches are not predicted either."""
    patch, is_hidden_thw = subject.grid.patch, mask_thw != 0
    shaded_THWC = shade_masked(subject.clip.frames_THWC, is_hidden_thw, patch)
    shaded_THWC = shade_masked(shaded_THWC, mask_thw < 0, patch, fog=1.0)

    def draw(axis: "Axes", t: int) -> None:
        axis.imshow(shaded_THWC[t])
        draw_outline(axis, is_hidden_thw[t // subject.grid.patch.frames], subject.grid.patch.px)
        draw_boxes(axis, subject.boxes_T[t])

    return Row(name=name, draw=draw, is_marked=is_marked)


def _heat(
    name: str, frames_THWC: NDArray[np.uint8], heat_TYX: NDArray[np.float32], unit: str, full: float = 0.0
) -> Row:
    """A heat map over the grey clip, with a colour scale that ends at `full`, or near the largest values for 0."""
    full = full or float(np.quantile(heat_TYX, HEAT_QUANTILE)) or 1.0
    step = len(frames_THWC) // len(heat_TYX)

    def draw(axis: "Axes", t: int) -> None:
        draw_heat(axis, frames_THWC[t], heat_TYX[t // step], full)

    scale = f"full colour: {full:.3g} {unit}"
    return Row(name=name, draw=draw, legend=lambda axis: draw_heat_scale(axis, full, unit, FONT_POINTS), scale=scale)


def pictures(subject: Subject, model: VideoMAE) -> dict[str, ClipFigure]:
    """All figures of a clip, by file name: a reconstruction of a model of pixels, the targets of one of others."""
    drawn = {
        "masks": mask_picture(subject),
        "saliency": saliency_picture(subject, model),
        "attention": attention_picture(subject, model),
    }
    names = list(model.config.target_widths)
    if can_reconstruct(model):
        drawn["reconstruction"] = reconstruction_picture(subject, model)
    if names not in (["pixels"], ["rgb"]):
        drawn["targets"] = target_picture(subject, model)
    return drawn


def mask_picture(subject: Subject) -> ClipFigure:
    """Figures 2 and 5: a clip, its motion, and its mask by each strategy; that of the run is marked."""
    arrows, _ = motion_rows(subject.clip.frames_THWC, subject.clip.motion_TYX2)
    rows = [arrows]
    if subject.config.guidance != "vectors":
        strength_TYX = Guidance.of(subject.config).strength(subject.guided)
        rows.append(_heat(f"guidance\n({subject.config.guidance})", subject.clip.frames_THWC, strength_TYX, "strength"))
    for strategy in STRATEGIES:
        is_own = strategy == subject.config.mask
        name = STRATEGY_NAMES.get(strategy, strategy) + "\n(this run)" * is_own
        rows.append(_masked(name, subject, subject.mask_thw(strategy), is_marked=is_own))
    mask_thw = subject.mask_thw()
    remark = f"{(mask_thw != 0).mean():.0%} of the tubelets are masked (in fog)"
    if (mask_thw < 0).any():
        remark += f"; {(mask_thw < 0).mean():.0%} are not predicted (grey)"
    return subject.picture(rows, remark)


def saliency_picture(subject: Subject, model: VideoMAE) -> ClipFigure:
    """Figure 6: boxes, mask, motion vectors, and the attention of the centre patch of the centre frame."""
    arrows, colours = motion_rows(subject.clip.frames_THWC, subject.clip.motion_TYX2)
    name = STRATEGY_NAMES.get(subject.config.mask, subject.config.mask)
    rows = [
        _queried(subject, "boxes" if any(subject.boxes_T) else "clip"),
        _masked(f"masked by\n{name}", subject, subject.mask_thw()),
        arrows,
        colours,
        _attention(subject, model, model.config.depth - 1, "attention"),
    ]
    return subject.picture(rows, "attention of the encoder's last block, query in the ring")


def attention_picture(subject: Subject, model: VideoMAE) -> ClipFigure:
    """Figure 7: the attention of the centre patch of the centre frame in the middle block and in the last block."""
    depth = model.config.depth
    blocks = sorted({depth // 2 - 1, depth - 1} - {-1})
    rows = [_attention(subject, model, block, f"block {block + 1}\nof {depth}") for block in blocks]
    remark = "attention of the patch in the ring, mean of the heads; 1 is an even spread"
    return subject.picture([_queried(subject, "clip"), *rows], remark)


def _queried(subject: Subject, name: str) -> Row:
    """The clip with its boxes, and a ring around the query."""
    query_t, row, column = centre_token(subject.grid)
    patch = subject.grid.patch

    def draw(axis: "Axes", t: int) -> None:
        axis.imshow(subject.clip.frames_THWC[t])
        draw_boxes(axis, subject.boxes_T[t])
        if t // patch.frames == query_t:
            draw_ring(axis, (column + 0.5) * patch.px, (row + 0.5) * patch.px)

    return Row(name=name, draw=draw)


def _attention(subject: Subject, model: VideoMAE, block: int, name: str) -> Row:
    frames_BCTHW = torch.from_numpy(subject.clip.frames_CTHW)[None]
    (share_thw,) = attention_map(model, frames_BCTHW, centre_token(subject.grid), block)
    return _heat(name, subject.clip.frames_THWC, share_thw * share_thw.size, "× even\nspread", FULL_ATTENTION)


def reconstruction_picture(subject: Subject, model: VideoMAE) -> ClipFigure:
    """Figure 8: the clip, the patches that the encoder sees, and reconstructions from the decoder's prediction.

    Where the decoder predicts patches without mean and contrast (norm-pix targets), the name of each row says where its
    mean and contrast come from. The last row has no prediction, for comparison.
    """
    frames_THWC, mask_thw = subject.clip.frames_THWC, subject.mask_thw()
    rebuilt = reconstruct(model, subject.clip.frames_CTHW, mask_thw.reshape(-1))
    name = STRATEGY_NAMES.get(subject.config.mask, subject.config.mask)
    rows = [
        _frames("clip", frames_THWC),
        _frames(
            f"seen by the\nencoder ({name})", shade_masked(frames_THWC, mask_thw != 0, subject.grid.patch, fog=1.0)
        ),
        *(_rebuilt_rows(rebuilt) if isinstance(rebuilt, Reconstruction) else _rgb_rows(rebuilt)),
    ]
    guess = " (a blind guess: 1)" if isinstance(rebuilt, Reconstruction) else ""
    remark = f"error of the masked patches {rebuilt.loss:.2f}{guess}"
    return subject.picture(rows, remark)


def target_picture(subject: Subject, model: VideoMAE) -> ClipFigure:
    """The clip, and two rows for each target: its true values, and what the model predicts of the masked tokens."""
    weighted = make_targets(subject.config)
    mask_N = torch.from_numpy(subject.mask_thw().reshape(-1))
    shown = shown_targets(model, [one.target for one in weighted], subject.batch(weighted), mask_N)
    rows = [_masked("clip and mask", subject, subject.mask_thw())]
    for one in shown:
        true_tHWC, predicted_tHWC = one.pictures(subject.grid)
        rows.append(_slices(f"target\n{one.target.name}", true_tHWC, subject.grid))
        rows.append(_slices(f"prediction of\n{one.target.name}\n(loss {one.loss:.3f})", predicted_tHWC, subject.grid))
    return subject.picture(rows, "targets of the tubelets, and what the decoder predicts of the masked ones")


def _slices(name: str, pictures_tHWC: NDArray[np.uint8], grid: TokenGrid) -> Row:
    return Row(name=name, draw=lambda axis, t: axis.imshow(pictures_tHWC[t // grid.patch.frames]))


def _rebuilt_rows(rebuilt: Reconstruction) -> list[Row]:
    variants = {
        "prediction, mean\nand contrast of\nvisible patches": rebuilt.shown_frames(),
        "prediction, mean\nand contrast from\nGROUND TRUTH": rebuilt.frames(rebuilt.true_statistics()),
        "no prediction,\nmean from\nGROUND TRUTH": rebuilt.frames(rebuilt.true_statistics(), is_predicted=False),
    }
    alone = _frames("prediction\nas it comes", rebuilt.frames(rebuilt.neutral_statistics()))
    return [alone, *_measured_rows(rebuilt, variants)]


def _rgb_rows(rebuilt: RgbReconstruction) -> list[Row]:
    variants = {
        "prediction": rebuilt.shown_frames(),
        "no prediction,\nmean of\nvisible patches": rebuilt.visible_mean_frames(),
    }
    return _measured_rows(rebuilt, variants)


def _measured_rows(rebuilt: Rebuilt, variants: Mapping[str, NDArray[np.uint8]]) -> list[Row]:
    return [
        _frames(f"{name}\n({rebuilt.psnr(frames_THWC):.1f} dB)", frames_THWC) for name, frames_THWC in variants.items()
    ]

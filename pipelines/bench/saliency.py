"""Where guidance and masks lie on labelled videos: is the strongest cell in a box, how much of the boxes is masked?

    python pipelines/bench/saliency.py STORE --boxes MOT [--video ID] [--stride 1]

Vectors, as they are and clean, are measured with each rule for intra blocks (`--missing-motion`). Flow is measured too
where `mgm-prep flow STORE` has put it into the store. Clips of 16 frames follow each other through every video with
boxes. The peak is that of a tubelet of two frames, on the whole picture, as the mask is centred on it; it counts half
when it is in a box in one of them. Recall is the share of the tokens that touch a box that a mask hides, over
training's random crops of 224 px, the same for every mask, with the same draws for every source; a mask that knows
nothing hides the ratio. Intervals are 95 % of a bootstrap over clips; a difference, "a − b", has one of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_prep.store_tools.saliency import labelled_videos
from mgm_shared.boxes import Boxes, cells_in_boxes
from mgm_shared.errors import UserError
from mgm_shared.geometry import PAPER_PATCH, TokenGrid
from mgm_shared.store import Video, open_store
from mgm_train.config import MissingMotion
from mgm_train.data.augmentation.augment import PretrainAugment
from mgm_train.data.clips import Clip, motion_between
from mgm_train.data.views import View, show, view_motion, view_share
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import make_mask

NUM_FRAMES, SIZE_PX, NUM_DRAWS = 16, 224, 2000
PLAIN = ("vectors", "clean", "flow")
RULES: tuple[MissingMotion, ...] = ("nearest", "strong", "spread", "change")
# By the name of their rows; the rule `nearest` has no name of its own.
SOURCES = {
    f"{source} {rule}".removesuffix(" nearest"): Guidance(source=source, missing_motion=rule)
    for source in ("vectors", "clean")
    for rule in RULES
} | {"flow": Guidance(source="flow")}
MASKS = ("mgm", "mgm-sparse", "smm", "smm-sparse", "tube", "motion-bins", "random", "block")


@dataclass(frozen=True, kw_only=True)
class LabelledClip:
    """A clip by each source of guidance that the store has, and the cells in boxes as a field of their own."""

    by_source: dict[str, Clip]
    boxed: Clip


def labelled_clips(video: Video, boxes: Boxes, stride: int) -> Iterator[LabelledClip]:
    """One after the other; the stride shrinks where the video has no room for one."""
    is_inside_SYX = cells_in_boxes(boxes, video).astype(np.float32)
    stride = min(stride, (video.num_frames - 1) // (NUM_FRAMES - 1))
    for start in range(0, video.num_frames - (NUM_FRAMES - 1) * stride, NUM_FRAMES * stride):
        indices_T = start + stride * np.arange(NUM_FRAMES)
        is_inside_TYX = is_inside_SYX[indices_T]
        if not is_inside_TYX.any():
            continue
        by_source, frames_CTHW = {}, np.ascontiguousarray(video.frames[indices_T].transpose(3, 0, 1, 2))
        for source in SOURCES:
            try:
                by_source[source] = whole_clip(video, indices_T, source, frames_CTHW)
            except UserError:
                continue  # No flow in this store.
        field_TYX2 = np.stack([is_inside_TYX, np.zeros_like(is_inside_TYX)], axis=-1)
        yield LabelledClip(by_source=by_source, boxed=replace(by_source["vectors"], motion_TYX2=field_TYX2))


def whole_clip(video: Video, indices_T: NDArray[np.int64], source: str, frames_CTHW: NDArray[np.uint8]) -> Clip:
    """Whole frames, with what a source of guidance reads as their motion."""
    field_SYXK = SOURCES[source].read(video, slice(int(indices_T[0]), int(indices_T[-1]) + 1))
    field_TYXK = motion_between(field_SYXK, indices_T)
    return Clip(
        frames_CTHW=frames_CTHW,
        motion_TYX2=field_TYXK[..., :2],
        label=-1,
        sample_id=video.sample_id,
        intra_TYX=np.nan_to_num(field_TYXK[..., 2]) if field_TYXK.shape[-1] > 2 else None,
    )


def shown(frames_CTHW: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """What a view shows of whole frames."""
    shown_CTHW = np.empty((3, NUM_FRAMES, *view.shape_px), np.uint8)
    for t in range(NUM_FRAMES):
        show(np.ascontiguousarray(frames_CTHW[:, t].transpose(1, 2, 0)), view, shown_CTHW[:, t])
    return shown_CTHW


def seen(clip: Clip, view: View, shown_CTHW: NDArray[np.uint8]) -> Clip:
    """What a view shows of a clip of whole frames."""
    intra_TYX = view_share(clip.intra_TYX, view) if clip.intra_TYX is not None else None
    motion_TYX2 = view_motion(clip.motion_TYX2, view)
    return replace(clip, frames_CTHW=shown_CTHW, motion_TYX2=motion_TYX2, intra_TYX=intra_TYX)


def peaks_in_box(strength_TYX: NDArray[np.float32], is_inside_TYX: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of the tubelets with a box whose strongest cell touches it, and how many there are."""
    shape = (-1, PAPER_PATCH.frames, strength_TYX[0].size)
    strength_tC, share_tC = strength_TYX.reshape(shape).sum(1), is_inside_TYX.reshape(shape).mean(1)
    is_peak_tC = strength_tC == strength_tC.max(1, keepdims=True)
    hit_t = (is_peak_tC * share_tC).sum(1) / is_peak_tC.sum(1)
    is_labelled_t = share_tC.any(1)
    return float(hit_t[is_labelled_t].sum()), float(is_labelled_t.sum())


def recall(mask_N: NDArray[np.bool_], field_TYX: NDArray[np.float32]) -> tuple[float, float]:
    """The masked ones of the tokens that touch a box, and how many those are."""
    grid = TokenGrid.of_clip(NUM_FRAMES, SIZE_PX, SIZE_PX)
    is_boxed_N = (np.abs(field_TYX).reshape(grid.t, 2, grid.h, 2, grid.w, 2).max((1, 3, 5)) > 0).ravel()
    return float((mask_N & is_boxed_N).sum()), float(is_boxed_N.sum())


def measure(clip: LabelledClip, ratio: float, num_crops: int, rng: Generator) -> dict[str, tuple[float, float]]:
    """Of one clip: (sum, count) of each measure."""
    is_inside_TYX = clip.boxed.motion_TYX2[..., 0] > 0
    sums = {"boxes' share": (float(is_inside_TYX.mean()), 1.0)}
    for source, of_source in clip.by_source.items():
        sums[f"peak, {source}"] = peaks_in_box(SOURCES[source].strength(of_source), is_inside_TYX)
    augment, totals = PretrainAugment(size_px=SIZE_PX), dict[str, list[Any]]()
    height, width = clip.boxed.frames_CTHW.shape[2:]
    for seed in rng.integers(2**32, size=num_crops).tolist():
        view = augment.view(height, width, np.random.default_rng(seed))
        field_TYX = view_motion(clip.boxed.motion_TYX2, view)[..., 0]
        shown_CTHW = shown(clip.boxed.frames_CTHW, view)
        strengths = {
            source: SOURCES[source].strength(seen(of_source, view, shown_CTHW))
            for source, of_source in clip.by_source.items()
        }
        for name in MASKS:
            for source in strengths if name.startswith("mgm") else ("vectors",):
                mask_N = make_mask(name, strengths[source], ratio=ratio, rng=np.random.default_rng((seed, 1)))
                label = f"recall, {name}" + (f" by {source}" if name.startswith("mgm") else "")
                totals.setdefault(label, []).append(recall(mask_N, field_TYX))
    return sums | {name: tuple(np.sum(values, axis=0)) for name, values in totals.items()}


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--boxes", type=click.Path(path_type=Path), required=True, help="As of `mgm-prep saliency`.")
@click.option("--video", help="As of `mgm-prep saliency`.")
@click.option("--stride", default=1, show_default=True)
@click.option("--ratio", default=0.75, show_default=True)
@click.option("--num-crops", default=4, show_default=True, help="Random crops a clip, for recall.")
def main(store: Path, boxes: Path, video: str | None, **settings: Any) -> None:
    """Measure guidance and masks on the videos of STORE that have boxes."""
    rng = np.random.default_rng(0)
    rows = [
        measure(clip, settings["ratio"], settings["num_crops"], rng)
        for video_, boxes_ in labelled_videos(open_store(store), boxes, video)
        for clip in labelled_clips(video_, boxes_, settings["stride"])
    ]
    click.echo(f"{len(rows)} clips of {NUM_FRAMES} frames at stride {settings['stride']}, ratio {settings['ratio']}")
    times_BU = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), NUM_DRAWS)
    # The clips as they are go first, then the draws.
    times_BU = np.vstack([np.ones(len(rows), np.int64), times_BU])
    drawn = {name: ratio_of_sums(times_BU, [row[name] for row in rows]) for name in rows[0]}
    for name in [name for name in drawn if " by " in name or name.startswith("peak, ")]:
        plain = name.removesuffix(name[name.rfind(" ") :])
        if plain in drawn:
            drawn[f"{name} − {plain.split()[-1]}"] = drawn[name] - drawn[plain]
    for name in [name for name in drawn if name in [f"recall, mgm by {source}" for source in PLAIN]]:
        for other in ("smm", "tube"):
            drawn[f"{name} − {other}"] = drawn[name] - drawn[f"recall, {other}"]
    for name, value_B in drawn.items():
        low, high = np.nanpercentile(value_B[1:], (2.5, 97.5))
        click.echo(f"{name:<44}{value_B[0]:7.3f}   {low:.3f} … {high:.3f}")


def ratio_of_sums(times_BU: NDArray[np.int64], pairs: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Sum over count in each draw, (B,)."""
    sums_B2 = times_BU @ np.array(pairs)
    ratio_B: NDArray[np.float64] = sums_B2[:, 0] / sums_B2[:, 1]
    return ratio_B


if __name__ == "__main__":
    main()

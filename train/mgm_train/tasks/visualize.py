"""Draw a pretraining run: its loss, and the masks, attention and reconstructions of a clip (figures 2, 5 to 8)."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mgm_shared.boxes import box_file, read_boxes
from mgm_shared.figures import save, save_gif
from mgm_shared.lock import one_writer
from mgm_shared.mp4 import save_mp4
from mgm_shared.progress import SILENT
from mgm_shared.samples import SampleKind
from mgm_shared.storage import StorePath
from mgm_shared.store import Store, Video, open_store
from mgm_train.checkpoint.run_folder import read_config, recorded_options
from mgm_train.checkpoint.weights import load_weights
from mgm_train.config import EvaluateConfig, PretrainConfig
from mgm_train.data.labels import split_rows
from mgm_train.detection.key_frame_figure import detections_figure
from mgm_train.detection.test_set import detector, open_detector_test
from mgm_train.figures import paper_figures
from mgm_train.figures.loss_curve import loss_figure
from mgm_train.figures.pretrained import pretrained

MovieFormat = Literal["gif", "mp4"]
SAVE_MOVIE: dict[str, Callable[[list[Any], Path, float], None]] = {"gif": save_gif, "mp4": save_mp4}


def visualize(
    store: str | StorePath,
    run: str | os.PathLike[str],
    *,
    video: str | None = None,
    boxes: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    movies: Sequence[MovieFormat] = (),
) -> dict[str, Path]:
    """Draw the figures of a pretraining run for the clip from the middle of a video, or key frames of a detector.

    Args:
        store: Path or URL of a store.
        run: Folder of a pretraining run.
        video: The video or segment, as in `store[video]`: an id, a path, or a part of one id; by default the first
            sample of the training split.
        boxes: MOT file with its boxes, or a folder with one for each video.
        out: Folder of the figures; by default `figures` in the run folder.
        movies: Also write each figure as a movie in these formats.

    Returns:
        The files by figure: loss, masks, saliency, attention, reconstruction for a model of pixels, targets for one of
        other targets, and with movies `masks_gif` and so on. Of a `detect` run: loss, and detections, key frames with
        their boxes.

    Raises:
        UserError: The folder holds no pretraining run, or the store has no such video.
    """
    opened, run, folder = open_store(store), Path(run), Path(out or Path(run) / "figures")
    if recorded_options(run, "detect"):
        return _draw_detections(opened, run, video, folder)
    config = read_config(run, "pretrain", PretrainConfig)
    shown = _video(opened, video, config.samples)
    model = pretrained(run)
    labelled = read_boxes(box_file(Path(boxes), shown.video_id)) if boxes else None
    subject = paper_figures.Subject.of(shown, config, labelled)
    with one_writer(folder):
        return _draw(run, paper_figures.pictures(subject, model), folder, movies, shown.fps / config.stride)


def _draw(
    run: Path,
    pictures: Mapping[str, paper_figures.ClipFigure],
    folder: Path,
    movies: Sequence[MovieFormat],
    frames_per_s: float,
) -> dict[str, Path]:
    """Write the figures; their files by name."""
    written = {"loss": folder / "loss.png"}
    save(loss_figure(run), written["loss"])
    for name, picture in pictures.items():
        written[name] = folder / f"{name}.png"
        save(picture.strip(), written[name])
        film = picture.movie() if movies else []
        for kind in movies:
            written[f"{name}_{kind}"] = folder / f"{name}.{kind}"
            SAVE_MOVIE[kind](film, written[f"{name}_{kind}"], frames_per_s)
    return written


def _draw_detections(store: Store, run: Path, video: str | None, folder: Path) -> dict[str, Path]:
    """Write the loss and the detections of some key frames, of one video where it is given."""
    weights = load_weights(run)
    _, dataset, classes = open_detector_test(store, weights, EvaluateConfig(), SILENT.say)
    written = {"loss": folder / "loss.png", "detections": folder / "detections.png"}
    with one_writer(folder):
        save(loss_figure(run), written["loss"])
        save(detections_figure(detector(weights), dataset, classes, video), written["detections"])
    return written


def _video(store: Store, video: str | None, kind: SampleKind) -> Video:
    if video is None:
        samples = store.select(kind)
        return samples.video_at(int(split_rows(samples, "train")[0]))
    return store[video]

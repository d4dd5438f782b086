"""A pretrained model from its weights file, and the pictures of one clip that loggers get of it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.figures import to_picture
from mgm_shared.samples import SampleSource
from mgm_shared.store import Video
from mgm_train.checkpoint.weights import load_weights
from mgm_train.config import PretrainConfig
from mgm_train.data.labels import split_rows
from mgm_train.figures.paper_figures import Subject, pictures
from mgm_train.models.videomae import VideoMAE, build


def pretrained(path: Path) -> VideoMAE:
    """The model of a weights file or a run folder, on the CPU. UserError if it is none of pretraining."""
    weights = load_weights(path)
    model = build(lambda: VideoMAE(weights.model), seed=0)
    model.load_state_dict(weights.state, strict=True)
    return model


def shown_video(store: SampleSource) -> Video:
    """The video from the middle of the training split. UserError if there is none."""
    rows = split_rows(store, "train")
    return store.video_at(int(rows[len(rows) // 2]))


def logged_pictures(store: SampleSource, config: PretrainConfig) -> Callable[[Path], Mapping[str, NDArray[np.uint8]]]:
    """A function that draws masks, attention and reconstruction of one training clip from a weights file."""

    def draw(path: Path) -> Mapping[str, NDArray[np.uint8]]:
        subject = Subject.of(shown_video(store), config)
        return {name: to_picture(picture.strip()) for name, picture in pictures(subject, pretrained(path)).items()}

    return draw

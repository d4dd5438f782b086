"""A folder that transformers loads: weights, configuration, processor with ImageNet's statistics, model card.

The installed version of transformers saves the model, because its files differ between versions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mgm_shared.errors import UserError
from mgm_train.checkpoint.completeness import ENCODER_NORM
from mgm_train.checkpoint.transformers import to_transformers_state, transformers_config
from mgm_train.interchange.export_source import ExportSource
from mgm_train.interchange.model_card import model_card

PREFIX = "videomae."
PIPELINE = """\
from transformers import pipeline

classify = pipeline("video-classification", model="THIS_FOLDER")
# A path is decoded by torchcodec, which needs FFmpeg's libraries; frames (T, H, W, 3) uint8 need neither.
classify("clip.mp4")"""
AUTO_MODEL = """\
from transformers import VideoMAEImageProcessor, VideoMAEModel

processor = VideoMAEImageProcessor.from_pretrained("THIS_FOLDER")
encoder = VideoMAEModel.from_pretrained("THIS_FOLDER")"""


def write_transformers(source: ExportSource, folder: Path) -> None:
    """Write the folder. UserError if transformers is missing, or cannot be this model."""
    library = _library()
    with _without_progress_bars(library):
        _model(library, source).save_pretrained(folder)
    _processor(library, source).save_pretrained(folder)
    how_to_load = PIPELINE if source.is_classifier else AUTO_MODEL
    (folder / "README.md").write_text(model_card(source, how_to_load, library="transformers"), encoding="utf-8")


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("this export needs transformers: pip install '.[export]'") from None
    return transformers


@contextmanager
def _without_progress_bars(library: Any) -> Iterator[None]:
    logging = library.utils.logging
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()


def _model(library: Any, source: ExportSource) -> Any:
    """transformers' model with the weights; which of its three classes, their tensors tell."""
    weights = source.weights
    settings = transformers_config(weights.model, is_classifier=source.is_classifier)
    state: Mapping[str, torch.Tensor] = to_transformers_state(weights.state)
    name = "VideoMAEForPreTraining" if source.is_autoencoder else "VideoMAEModel"
    if source.is_classifier:
        name = "VideoMAEForVideoClassification"
        settings["id2label"] = dict(enumerate(weights.classes))
        settings["label2id"] = {label: number for number, label in enumerate(weights.classes)}
    if name == "VideoMAEModel":
        settings["use_mean_pooling"] = ENCODER_NORM not in weights.state
        state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    # Random initial weights would change the global random state, and take a minute for ViT-H.
    with torch.device("meta"):
        model = getattr(library, name)(library.VideoMAEConfig(**settings))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _processor(library: Any, source: ExportSource) -> Any:
    """The processor of frames, with ImageNet's statistics; transformers' own default is another.

    The pipeline of transformers 5 makes a processor of videos of it, which decodes paths with torchcodec.
    """
    side_px = source.weights.model.image_px
    return library.VideoMAEImageProcessor(
        size={"shortest_edge": side_px},
        crop_size={"height": side_px, "width": side_px},
        image_mean=list(IMAGENET_DEFAULT_MEAN),
        image_std=list(IMAGENET_DEFAULT_STD),
    )

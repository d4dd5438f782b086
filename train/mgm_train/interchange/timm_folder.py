"""A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`, after `import mgm_train`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.checkpoint.completeness import ENCODER_NORM
from mgm_train.checkpoint.tensor_file import save_tensors
from mgm_train.interchange.export_source import ExportSource
from mgm_train.interchange.model_card import model_card
from mgm_train.model_config import MODEL_SIZES
from mgm_train.models.timm_classifier import WEIGHTS, describe

LOADING = """\
import timm
import mgm_train  # knows the architecture

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()"""
OF_CLASSIFIER = ("encoder.", "fc_norm.", "head.")
# These two are arguments of timm's own: the architecture, and `img_size`.
NOT_IN_SHAPE = ("name", "image_px")


def write_timm(source: ExportSource, folder: Path) -> None:
    """Write weights, config.json and model card. UserError for a model of no named size."""
    model = source.weights.model
    if model.name not in MODEL_SIZES:
        raise UserError(f"timm knows our models by size, and there is no {model.name}: {', '.join(MODEL_SIZES)}")
    num_classes = len(source.weights.classes) if source.is_classifier else 0
    save_tensors(folder / WEIGHTS, _state(source), {"format": "pt"})
    text = json.dumps(_config(source, num_classes), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(source, LOADING, library="timm"), encoding="utf-8")


def _state(source: ExportSource) -> dict[str, Tensor]:
    """Encoder, norm and head. The decoder of pretraining stays behind."""
    return {name: tensor for name, tensor in source.weights.state.items() if name.startswith(OF_CLASSIFIER)}


def _config(source: ExportSource, num_classes: int) -> dict[str, Any]:
    model = source.weights.model
    pretrained = describe(model, num_classes)
    shape = {name: value for name, value in asdict(model).items() if name not in NOT_IN_SHAPE}
    shape |= {
        "img_size": model.image_px,
        "num_classes": num_classes,
        "fc_norm": ENCODER_NORM not in source.weights.state,
    }
    config = {
        "architecture": pretrained.pop("architecture"),
        "num_classes": num_classes,
        "num_features": model.width,
        "model_args": shape,
        "pretrained_cfg": pretrained,
    }
    return config | ({"label_names": source.weights.classes} if num_classes else {})

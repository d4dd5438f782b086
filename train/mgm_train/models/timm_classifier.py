"""What timm's `create_model` builds for our names; see `mgm_train.timm_models`."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from mgm_shared.errors import UserError
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.attention import LayerNorm
from mgm_train.models.videomae import VideoClassifier
from mgm_train.timm_models import timm_name

WEIGHTS = "model.safetensors"
# What `create_model` passes to every model, and what has no meaning here.
NOT_USED = ("pretrained_cfg_overlay", "cache_dir", "pretrained_model_args")


def create_classifier(
    size: str,
    *,
    pretrained: bool = False,
    pretrained_cfg: Mapping[str, Any] | str | None = None,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    img_size: int = 224,
    fc_norm: bool = True,
    **shape: Any,
) -> VideoClassifier:
    """A classifier of clips (B, 3, num_frames, img_size, img_size), uint8 or normalised float.

    Args:
        size: A name in `MODEL_SIZES`.
        pretrained: Load the weights of an exported folder: `create_model("local-dir:FOLDER", pretrained=True)`.
        pretrained_cfg: Names that folder.
        num_classes: Size of the head; with 0 the output is the pooled features.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth rate of the last block.
        img_size: Side of the frames in pixels.
        fc_norm: Norm after the mean over tokens, as in fine-tuning; False: norm before it, as in pretraining.
        **shape: Other fields of `ModelConfig`, such as num_frames, attention, patch_px, tubelet and positions.

    Raises:
        UserError: Weights were asked for without a folder (none are published), or a field is unknown.
    """
    folder = pretrained_cfg.get("file") if isinstance(pretrained_cfg, Mapping) else None
    if pretrained and not folder:
        raise UserError(
            f"no weights of mgm_{size} are published; `mgm-train export RUN OUT --to timm` writes a folder for "
            'create_model("local-dir:OUT", pretrained=True)'
        )
    config = _config(size, {name: value for name, value in shape.items() if name not in NOT_USED}, img_size)
    model: Any = VideoClassifier(config, max(num_classes, 1), drop_path=drop_path_rate, fc_dropout=drop_rate)
    if not fc_norm:
        model.encoder.norm, model.fc_norm = LayerNorm(config.width), nn.Identity()
    if not num_classes:
        model.reset_classifier(0)
    model.pretrained_cfg = model.default_cfg = describe(config, num_classes)
    if folder and pretrained:
        _load(model, load_file(Path(folder) / WEIGHTS))
    built: VideoClassifier = model
    return built


def _config(size: str, shape: Mapping[str, Any], img_size: int) -> ModelConfig:
    known = {field.name for field in fields(ModelConfig)} - {"name", "image_px"}
    if unknown := sorted(shape.keys() - known):
        raise UserError(f"mgm_{size} has no argument {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    return replace(MODEL_SIZES[size], image_px=img_size, **shape)


def describe(config: ModelConfig, num_classes: int) -> dict[str, Any]:
    """timm's pretrained configuration: input, normalisation, names of the first layer and of the head."""
    return {
        "architecture": timm_name(config.name),
        "num_classes": num_classes,
        "input_size": (3, config.image_px, config.image_px),
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "encoder.patch_embed.proj",
        "classifier": "head",
    }


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all weights; a head for another number of classes keeps its random ones."""
    own = model.state_dict()
    heads = [own.get("head.weight"), state.get("head.weight")]
    is_same_head = all(head is not None for head in heads) and heads[0].shape == heads[1].shape  # type: ignore[union-attr]
    if not is_same_head:
        body = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        state = body | {name: tensor for name, tensor in own.items() if name.startswith("head.")}
    model.load_state_dict(dict(state), strict=True)

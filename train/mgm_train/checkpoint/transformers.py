"""Our weights under transformers' names, and the way back: VideoMAEForPreTraining, …ForVideoClassification, …Model.

Nothing here imports transformers. Names are those of the modules of version 5; files of versions 4 and 5 are read. The
decoder's last norm and the classifier's norm of the mean token have epsilon 1e-5 in transformers, whatever its
configuration says, and 1e-6 in VideoMAE and here: set `decoder.norm.eps` or `fc_norm.eps` to 1e-6 for equal outputs.
The other norms take transformers' `layer_norm_eps`, 1e-12 by default; the difference is below 1e-4. Axes: D width.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.checkpoint.foreign import Clip, joined_biases
from mgm_train.checkpoint.official import unwrapped
from mgm_train.model_config import ModelConfig

# Regular expressions, applied in this order to each of our names.
_RENAMES = (
    (r"^encoder\.patch_embed\.proj\.", "videomae.embeddings.patch_embeddings.projection."),
    (r"^encoder\.blocks\.", "videomae.encoder.layer."),
    (r"^encoder\.norm\.", "videomae.layernorm."),
    (r"^decoder\.blocks\.", "decoder.decoder_layers."),
    (r"^head\.", "classifier."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)

# The second decoder of targets of motion.
_MOTION_PREFIXES = ("encoder_to_motion.", "motion_decoder.")


def to_transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `VideoMAE` or `VideoClassifier` under transformers' names; tensors are shared, not copied.

    Of several targets only the pixels are taken, which come first; a second decoder is left out. The bias of the keys
    is left out: transformers has none, and it adds the same number to a whole row of the softmax, which changes
    nothing.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(_MOTION_PREFIXES):
            continue
        if name.startswith("decoder.head."):
            tensor = tensor[: state["encoder.patch_embed.proj.weight"][0].numel()]
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." not in name:
            renamed[name] = tensor
            continue
        for part, part_tensor in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            if not (part == "key" and name.endswith(".bias")):
                renamed[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = part_tensor
    return renamed


def transformers_config(config: ModelConfig, *, is_classifier: bool) -> dict[str, Any]:
    """Keyword arguments of transformers' VideoMAEConfig for this model. UserError for one that it cannot be."""
    if not is_classifier and config.decoder != "joint":
        raise UserError("transformers' VideoMAE has a joint decoder, and no cross-attention decoder")
    if config.attention != "joint" or config.positions != "sinusoid" or config.grid != config.trained_grid:
        raise UserError("transformers' VideoMAE has joint attention and sinusoid positions that are not interpolated")
    if not is_classifier and "pixels" not in config.target_widths:
        raise UserError("transformers' VideoMAEForPreTraining predicts pixels, which are no target of this model")
    return {
        "image_size": config.image_px,
        "patch_size": config.patch_px,
        "num_frames": config.num_frames,
        "tubelet_size": config.tubelet,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": 4 * config.width,
        "decoder_hidden_size": config.decoder_width,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": 4 * config.decoder_width,
        "layer_norm_eps": 1e-6,
        "use_mean_pooling": is_classifier,
    }


_DEFAULTS = {"num_frames": 16, "image_size": 224, "num_attention_heads": 12, "decoder_num_attention_heads": 6}

# The way back, in this order, of the names of files and of modules.
_RENAMES_BACK = (
    (r"^videomae\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"^embeddings\.position_embeddings", "encoder.pos_embed"),
    (r"^encoder\.layer\.", "encoder.blocks."),
    (r"^layernorm\.", "encoder.norm."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    (r"^classifier\.", "head."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.attention\.attention\.query\.bias$", ".attn.q_bias"),
    (r"\.attention\.attention\.value\.bias$", ".attn.v_bias"),
    (r"\.attention\.attention\.", ".attn."),
)


def from_transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of one of transformers' three VideoMAE classes under our names; undoes `to_transformers_state`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = unwrapped(name)
        for pattern, replacement in _RENAMES_BACK:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if name.endswith(".attn.query.weight")]:
        stem = name.removesuffix("query.weight")
        parts = [f"{stem}{part}.weight" for part in ("query", "key", "value")]
        # Weights that do not belong together stay as they are, and `check_complete` lists them.
        shapes = {renamed[part].shape if part in renamed else None for part in parts}
        if len(shapes) == 1 and renamed[name].ndim == 2:
            renamed[f"{stem}qkv.weight"] = torch.cat([renamed.pop(part) for part in parts])
    return joined_biases(renamed)


def clip_of(source: str, settings: Mapping[str, Any]) -> Clip:
    """The clips and heads of a `config.json` of transformers, with its defaults. UserError for what is not built here.

    The other settings show in the shapes of the tensors, or matter in training only.
    """
    if (activation := settings.get("hidden_act", "gelu")) != "gelu":
        raise UserError(f"{source}: hidden_act is {activation!r}; only gelu is supported")
    counts = {name: settings.get(name, default) for name, default in _DEFAULTS.items()}
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{source}: {name} is {value!r}, which is no positive whole number")
    return Clip(
        num_frames=counts["num_frames"],
        image_px=counts["image_size"],
        num_heads=counts["num_attention_heads"],
        decoder_num_heads=counts["decoder_num_attention_heads"],
    )

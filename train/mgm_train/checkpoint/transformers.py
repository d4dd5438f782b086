"""Our weights under transformers' names, for its VideoMAEForPreTraining and VideoMAEForVideoClassification.

Two pure functions; let the installed class save itself, for its names differ between versions 4 and 5. Weights
are those of version 5. The decoder's last norm and the classifier's norm of the mean token have epsilon 1e-5 in
transformers, whatever its configuration says, and 1e-6 in VideoMAE and here: set `decoder.norm.eps` or `fc_norm.eps` to
1e-6 for equal outputs. Axes: D width.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mgm_shared.errors import UserError
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

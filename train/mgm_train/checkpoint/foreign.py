"""Weights of other programs as ours: whose model it is, is read from the tensors, and every tensor is accounted for.

Axes: D width of the encoder · E width of the decoder.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.checkpoint.completeness import BRIDGE_WEIGHT, num_rows
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.pos_embed import sinusoid_table
from mgm_train.models.videomae import ENCODER_PREFIX

PATCH_WEIGHT = f"{ENCODER_PREFIX}patch_embed.proj.weight"
BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.")
# The heads of a model of no named size, where nothing states their number. ViT-H has wider ones.
HEAD_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The clips that a model was trained on, and its heads where the file states them."""

    num_frames: int = 16
    image_px: int = 224
    num_heads: int = 0
    decoder_num_heads: int = 0


def joined_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`q_bias` and `v_bias` as the bias of `qkv`. Keys have none in VideoMAE: it would change nothing.

    Biases that do not belong together stay as they are, and `check_complete` lists them.
    """
    joined = dict(state)
    for name, query_D in state.items():
        value_D = state.get(f"{name.removesuffix('q_bias')}v_bias")
        if name.endswith(".q_bias") and value_D is not None and query_D.ndim == 1 and query_D.shape == value_D.shape:
            stem = name.removesuffix("q_bias")
            joined[f"{stem}qkv.bias"] = torch.cat([query_D, torch.zeros_like(query_D), value_D])
            del joined[name], joined[f"{stem}v_bias"]
    return joined


def shape_of(source: str, state: Mapping[str, Tensor], clip: Clip) -> ModelConfig:
    """The model of a state dict under our names.

    UserError where it has no patch embedding of a video model, or its clips do not divide into patches.
    """
    weight = state.get(PATCH_WEIGHT)
    if weight is None or weight.ndim != 5 or weight.shape[1] != 3 or weight.shape[3] != weight.shape[4]:
        raise UserError(f"{source} holds no VideoMAE: there is no patch embedding of tubelets in it")
    width, depth = len(weight), _depth(state, "encoder")
    size = next((size for size in MODEL_SIZES.values() if (size.width, size.depth) == (width, depth)), None)
    num_heads = clip.num_heads or (size.num_heads if size else max(1, width // HEAD_WIDTH))
    is_named = size is not None and size.num_heads == num_heads
    model = replace(
        size or MODEL_SIZES["vit_base"],
        name=size.name if size and is_named else f"vit_{width}x{depth}",
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_frames=clip.num_frames,
        image_px=clip.image_px,
        patch_px=weight.shape[3],
        tubelet=weight.shape[2],
        **_decoder(state, clip, size),
    )
    _check_shape(source, model)
    return model


def _check_shape(source: str, model: ModelConfig) -> None:
    try:
        model.grid  # noqa: B018
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"{source}: {error}") from error
    widths = ((model.width, model.num_heads), (model.decoder_width, model.decoder_num_heads))
    for width, num_heads in widths:
        if width % num_heads:
            raise UserError(f"{source}: {num_heads} attention heads do not divide a width of {width}")


def _depth(state: Mapping[str, Tensor], part: str) -> int:
    numbers = [int(found[2]) for name in state if (found := BLOCK.match(name)) and found[1] == part]
    return max(numbers, default=-1) + 1


def _decoder(state: Mapping[str, Tensor], clip: Clip, size: ModelConfig | None) -> dict[str, Any]:
    if BRIDGE_WEIGHT not in state:
        return {}
    width = num_rows(state[BRIDGE_WEIGHT])
    of_size = size.decoder_num_heads if size and size.decoder_width == width else 0
    return {
        "decoder_width": width,
        "decoder_depth": _depth(state, "decoder"),
        "decoder_num_heads": clip.decoder_num_heads or of_size or max(1, width // HEAD_WIDTH),
    }


def without_positions(source: str, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state without the tables of positions, which ours computes. UserError where one is not that table."""
    kept = dict(state)
    for name in [name for name in state if name.rpartition(".")[2] in ("pos_embed", "position_embeddings")]:
        table_1ND = kept.pop(name)
        num_tokens = config.grid.num_tokens
        if table_1ND.ndim != 3 or table_1ND.shape[:2] != (1, num_tokens):
            raise UserError(
                f"{source}: {name} has the shape {tuple(table_1ND.shape)}, and clips of {config.num_frames} frames of "
                f"{config.image_px} px have {num_tokens} tokens"
            )
        if not torch.allclose(table_1ND.float(), sinusoid_table(num_tokens, table_1ND.shape[2]), atol=1e-3):
            raise UserError(f"{source}: {name} is not VideoMAE's table of sines; learnt positions are not supported")
    return kept

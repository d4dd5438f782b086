"""Weights of other programs as ours: whose model it is, is read from the tensors, and every tensor is accounted for.

Axes: D width of the encoder · E width of the decoder.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mgm_shared.errors import UserError
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.pos_embed import sinusoid_table
from mgm_train.models.videomae import ENCODER_PREFIX, Encoder, VideoClassifier, VideoMAE

PATCH_WEIGHT = f"{ENCODER_PREFIX}patch_embed.proj.weight"
ENCODER_NORM = f"{ENCODER_PREFIX}norm.weight"
BRIDGE_WEIGHT, HEAD_WEIGHT = "encoder_to_decoder.weight", "head.weight"
BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.")
# All models of VideoMAE, but for the giant, have heads of this width.
HEAD_WIDTH = 64
MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The clips that a model was trained on, and its heads where the file states them."""

    num_frames: int = 16
    image_px: int = 224
    num_heads: int = 0
    decoder_num_heads: int = 0


def joined_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`q_bias` and `v_bias` as the bias of `qkv`. Keys have none in VideoMAE: it would change nothing."""
    joined = {name: tensor for name, tensor in state.items() if not name.endswith((".q_bias", ".v_bias"))}
    for name, query_D in state.items():
        if name.endswith(".q_bias"):
            stem = name.removesuffix("q_bias")
            value_D = state.get(f"{stem}v_bias", torch.zeros_like(query_D))
            joined[f"{stem}qkv.bias"] = torch.cat([query_D, torch.zeros_like(query_D), value_D])
    return joined


def shape_of(source: str, state: Mapping[str, Tensor], clip: Clip) -> ModelConfig:
    """The model of a state dict under our names. UserError where it has no patch embedding of a video model."""
    weight = state.get(PATCH_WEIGHT)
    if weight is None or weight.ndim != 5 or weight.shape[1] != 3 or weight.shape[3] != weight.shape[4]:
        raise UserError(f"{source} holds no VideoMAE: there is no patch embedding of tubelets in it")
    width = len(weight)
    num_heads = clip.num_heads or max(1, width // HEAD_WIDTH)
    decoder: dict[str, Any] = _decoder(state, clip, width)
    found = (width, _depth(state, "encoder"), num_heads)
    name = next((size.name for size in MODEL_SIZES.values() if _sides(size) == found), f"vit_{width}x{found[1]}")
    return replace(
        MODEL_SIZES.get(name, MODEL_SIZES["vit_base"]),
        name=name,
        width=width,
        depth=found[1],
        num_heads=num_heads,
        num_frames=clip.num_frames,
        image_px=clip.image_px,
        patch_px=weight.shape[3],
        tubelet=weight.shape[2],
        **decoder,
    )


def _sides(size: ModelConfig) -> tuple[int, int, int]:
    return size.width, size.depth, size.num_heads


def _depth(state: Mapping[str, Tensor], part: str) -> int:
    numbers = [int(found[2]) for name in state if (found := BLOCK.match(name)) and found[1] == part]
    return max(numbers, default=-1) + 1


def _decoder(state: Mapping[str, Tensor], clip: Clip, width: int) -> dict[str, int]:
    if BRIDGE_WEIGHT not in state:
        return {}
    decoder_width = len(state[BRIDGE_WEIGHT])
    return {
        "decoder_width": decoder_width,
        "decoder_depth": _depth(state, "decoder"),
        "decoder_num_heads": clip.decoder_num_heads or max(1, decoder_width // HEAD_WIDTH),
    }


def without_positions(source: str, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state without the tables of positions, which ours computes. UserError where one is not that table."""
    kept = dict(state)
    for name in [name for name in state if name.rpartition(".")[2] in ("pos_embed", "position_embeddings")]:
        table_1ND = kept.pop(name)
        expected_1ND = sinusoid_table(table_1ND.shape[-2], table_1ND.shape[-1])
        if not torch.allclose(table_1ND.float().reshape(expected_1ND.shape), expected_1ND, atol=1e-3):
            raise UserError(f"{source}: {name} is not VideoMAE's table of sines; learnt positions are not supported")
    return kept


def check_complete(source: str, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """UserError that lists the tensors which are missing, unknown or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in _empty(state, config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shapes = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": shapes,
    }
    texts = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if texts:
        raise UserError(f"{source} does not hold the {config.name} that its shapes suggest: tensors {'; '.join(texts)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _empty(state: Mapping[str, Tensor], config: ModelConfig) -> nn.Module:
    """The module whose tensors the state should hold, without memory for them."""
    with torch.device("meta"):
        if BRIDGE_WEIGHT in state or "mask_token" in state:
            return VideoMAE(config)
        if HEAD_WEIGHT in state:
            return VideoClassifier(config, len(state[HEAD_WEIGHT]))
        encoder = Encoder(config, has_norm=ENCODER_NORM in state)
        return nn.ModuleDict({"encoder": encoder})

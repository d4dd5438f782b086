"""Whether a state dict holds all tensors of its model, in their shapes, and no others."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mgm_shared.errors import UserError
from mgm_train.model_config import ModelConfig
from mgm_train.models.action_detector import ActionDetector
from mgm_train.models.attention import LayerNorm
from mgm_train.models.videomae import ENCODER_PREFIX, Encoder, VideoClassifier, VideoMAE

ENCODER_NORM = f"{ENCODER_PREFIX}norm.weight"
POOLED_NORM = "fc_norm.weight"
BRIDGE_WEIGHT, MASK_TOKEN, HEAD_WEIGHT = "encoder_to_decoder.weight", "mask_token", "head.weight"
MAX_LISTED = 5


def check_complete(source: str, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """UserError that lists the tensors which are missing, unknown or of another shape, or that are no finite numbers.

    Whether it is a pretraining model, a classifier, a detector or an encoder, the names of the tensors tell.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in _empty(source, state, config).state_dict().items()}
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


def check_finite(source: str, state: Mapping[str, Tensor]) -> None:
    """UserError for a tensor of whole numbers, or with a number that is NaN or infinite."""
    if other := next((name for name, tensor in state.items() if not tensor.is_floating_point()), None):
        raise UserError(f"{source}: {other} is of type {state[other].dtype}; weights must be floating-point numbers")
    if broken := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
        raise UserError(f"{source}: {broken} is not finite (NaN or infinite): the training diverged; lower base-lr")


def holds_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether complete weights are those of a classifier: a head behind a norm of the mean token."""
    return HEAD_WEIGHT in state and POOLED_NORM in state


def holds_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of an action detector: a head for boxes, behind the last norm of the encoder."""
    return HEAD_WEIGHT in state and ENCODER_NORM in state and POOLED_NORM not in state


def num_rows(tensor: Tensor) -> int:
    """The length of the first axis; 0 for a number without axes."""
    return tensor.shape[0] if tensor.ndim else 0


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _empty(source: str, state: Mapping[str, Tensor], config: ModelConfig) -> nn.Module:
    """The module whose tensors the state should hold, without memory for them."""
    try:
        with torch.device("meta"):
            if BRIDGE_WEIGHT in state or MASK_TOKEN in state:
                return VideoMAE(config)
            if holds_detector(state):
                return ActionDetector(config, max(1, num_rows(state[HEAD_WEIGHT])))
            if HEAD_WEIGHT in state:
                return VideoClassifier(config, max(1, num_rows(state[HEAD_WEIGHT])))
            parts: dict[str, nn.Module] = {"encoder": Encoder(config, has_norm=ENCODER_NORM in state)}
            if POOLED_NORM in state:
                parts["fc_norm"] = LayerNorm(config.width)
            return nn.ModuleDict(parts)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{source} describes a model that cannot be built: {error}") from error

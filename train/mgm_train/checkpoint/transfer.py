"""Load a pretrained encoder into another model, and account for every tensor."""

from collections.abc import Iterable
from dataclasses import dataclass

from mgm_shared.errors import UserError
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import ModelConfig
from mgm_train.models.videomae import ENCODER_PREFIX, VideoClassifier

# These decide the shape of the encoder; the decoder's do not outlive pretraining.
ENCODER_SETTINGS = ("name", "width", "depth", "num_heads", "attention")

# The norm of the pooled token, which a fine-tuned model passes on to the next one; the head belongs to its classes.
POOLED_NORM_PREFIX = "fc_norm."


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """What became of each tensor when an encoder was loaded. `str()` says it in one line."""

    used: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    positions: str = ""

    def __str__(self) -> str:
        new, dropped = _modules(self.new), _modules(self.dropped)
        return f"{len(self.used)} pretrained tensors used; new: {new}; not needed: {dropped}{self.positions}"


def _modules(names: Iterable[str]) -> str:
    """The modules that the tensors belong to; of the encoder, the parts."""
    modules = {
        ".".join(name.split(".")[:2]) if name.startswith(ENCODER_PREFIX) else name.split(".")[0] for name in names
    }
    return ", ".join(sorted(modules)) or "none"


def fitted(config: ModelConfig, weights: Weights) -> ModelConfig:
    """`config` for a model that takes the encoder of `weights`, positions included; its clips may have another size.

    UserError when the file holds another encoder.
    """
    differing = [
        f"{name.replace('_', '-')} {getattr(weights.model, name)} instead of {getattr(config, name)}"
        for name in ENCODER_SETTINGS
        if getattr(weights.model, name) != getattr(config, name)
    ]
    if differing:
        options = f"--model {weights.model.name} --attention {weights.model.attention}"
        raise UserError(f"{weights.path} holds another model: {', '.join(differing)}; use {options}")
    return config.after(weights.model)


def load_encoder(model: VideoClassifier, weights: Weights) -> TransferReport:
    """Load the encoder of a weights file into `model`, which `fitted` shaped for it.

    Strict: every tensor of the model's encoder must be in the file, in its shape. The file's last encoder norm and
    its decoder are not needed by a classifier, and the head of another one neither. UserError when a tensor is missing.
    """
    if model.config != fitted(model.config, weights):
        raise ValueError(f"the model's positions are not those of {weights.path}: build it with `fitted`")
    own = model.state_dict()
    encoder = {name for name in own if name.startswith(ENCODER_PREFIX)}
    missing = sorted(encoder - weights.state.keys())
    if missing:
        raise UserError(f"{weights.path} lacks {len(missing)} tensors of the encoder, the first is {missing[0]}")
    taken = encoder | {name for name in own.keys() & weights.state.keys() if name.startswith(POOLED_NORM_PREFIX)}
    model.load_state_dict(own | {name: weights.state[name] for name in taken}, strict=True)
    return TransferReport(
        used=tuple(sorted(taken)),
        new=tuple(sorted(own.keys() - taken)),
        dropped=tuple(sorted(weights.state.keys() - taken)),
        positions=_positions(model.config),
    )


def _positions(config: ModelConfig) -> str:
    """What became of the positions, where anything did."""
    if config.grid == config.trained_grid:
        return ""
    trained, own = ((config.trained_frames, config.trained_px), (config.num_frames, config.image_px))
    clips = " to ".join(f"{frames}×{side_px}² px" for frames, side_px in (trained, own))
    return f"; positions interpolated from clips of {clips}"

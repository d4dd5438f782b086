"""Load a pretrained encoder into another model, and account for every tensor."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from mgm_shared.config import flag
from mgm_shared.errors import UserError
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import FinetuneConfig
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.action_detector import ActionDetector
from mgm_train.models.videomae import ENCODER_PREFIX, VideoClassifier, build

FineTunedModel = TypeVar("FineTunedModel", VideoClassifier, ActionDetector)

# The options that decide the shape of the encoder. The decoder is only used in pretraining.
ENCODER_SETTINGS = ("name", "width", "depth", "num_heads", "attention", "patch_px", "tubelet", "positions")

ENCODER_OPTIONS = {
    "name": "model",
    "attention": "attention",
    "patch_px": "patch-px",
    "tubelet": "tubelet",
    "positions": "positions",
}

# The norm of the pooled token is transferred from one fine-tuned model to the next; the head is not.
POOLED_NORM_PREFIX = "fc_norm."
LAST_NORM_PREFIX = "encoder.norm."


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """Which tensors were used, new and dropped when an encoder was loaded; `str()` is one line."""

    used: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    norm: str = ""
    """The module that became the encoder's last norm, where it is another one."""
    positions: str = ""

    def __str__(self) -> str:
        new, dropped = _modules(self.new), _modules(self.dropped)
        norm = f"; encoder.norm is from {self.norm.rstrip('.')}" if self.norm else ""
        return f"{len(self.used)} pretrained tensors used; new: {new}; not needed: {dropped}{norm}{self.positions}"


def _modules(names: Iterable[str]) -> str:
    """The modules that own the tensors; of the encoder, its submodules."""
    modules = {
        ".".join(name.split(".")[:2]) if name.startswith(ENCODER_PREFIX) else name.split(".")[0] for name in names
    }
    return ", ".join(sorted(modules)) or "none"


def inherited(config: FinetuneConfig, weights: Weights) -> FinetuneConfig:
    """The options with the model and the clips of the pretrained weights, where they were not given.

    Number of frames and size of the clips may be given and differ: then the positions are interpolated. UserError for
    another option that was given and is not that of the weights, and for weights of a model that has no name here.
    """
    if weights.model.name not in MODEL_SIZES:
        names = ", ".join(MODEL_SIZES)
        raise UserError(f"{weights.path} holds a {weights.model.name}; only these can be fine-tuned: {names}")
    of_weights = {option.replace("-", "_"): getattr(weights.model, name) for name, option in ENCODER_OPTIONS.items()}
    given = {name: getattr(config, name) for name in of_weights.keys() & config.model_fields_set}
    if differing := sorted(name for name, value in given.items() if value != of_weights[name]):
        found = ", ".join(f"{flag(name)} is {given[name]} and not {of_weights[name]}" for name in differing)
        raise UserError(f"{weights.path} holds another model: {found}; leave out what the weights decide")
    of_weights |= {"num_frames": weights.model.num_frames, "image_px": weights.model.image_px}
    taken = {name: value for name, value in of_weights.items() if name not in config.model_fields_set}
    return config.replace(**taken)


def fitted(config: ModelConfig, weights: Weights) -> ModelConfig:
    """`config` for a model that takes the encoder of `weights`, positions included; its clips may have another size.

    UserError if the file holds an encoder of another shape.
    """
    differing = [
        f"{name.replace('_', '-')} {getattr(weights.model, name)} instead of {getattr(config, name)}"
        for name in ENCODER_SETTINGS
        if getattr(weights.model, name) != getattr(config, name)
    ]
    if differing:
        options = [f"--{flag} {getattr(weights.model, name)}" for name, flag in ENCODER_OPTIONS.items()]
        raise UserError(f"{weights.path} holds another model: {', '.join(differing)}; use {' '.join(options)}")
    return config.after(weights.model)


def build_pretrained(
    make: Callable[[ModelConfig], FineTunedModel],
    shape: ModelConfig,
    weights: Weights | None,
    seed: int,
    say: Callable[[str], None],
) -> FineTunedModel:
    """Build a model with the encoder of `weights`, or with random weights where there are none.

    Args:
        make: Makes the model of a shape.
        shape: The model that is wanted; its positions become those of the weights.
        weights: The pretrained encoder.
        seed: Of the initial weights of everything that is not transferred.
        say: Hears which tensors were used.

    Raises:
        UserError: The file holds an encoder of another shape, or lacks a tensor.
    """
    shape = shape if weights is None else fitted(shape, weights)
    model = build(lambda: make(shape), seed)
    if weights is not None:
        say(str(load_encoder(model, weights)))
    return model


def load_encoder(model: VideoClassifier | ActionDetector, weights: Weights) -> TransferReport:
    """Load the encoder of a weights file into `model`, which `fitted` shaped for it.

    Every tensor of the model's encoder must be in the file, in its shape. A classifier does not use the decoder, the
    last norm of a pretrained encoder, or the head of another classifier. A detector's last norm is the encoder's, or a
    classifier's norm of the pooled token. UserError if a tensor is missing.
    """
    if model.config != fitted(model.config, weights):
        raise ValueError(f"the model's positions are not those of {weights.path}: build it with `fitted`")
    own = model.state_dict()
    source_of = {name: name for name in own if name.startswith((ENCODER_PREFIX, POOLED_NORM_PREFIX))}
    for name in source_of:
        pooled = name.replace(LAST_NORM_PREFIX, POOLED_NORM_PREFIX)
        if name.startswith(LAST_NORM_PREFIX) and name not in weights.state and pooled in weights.state:
            source_of[name] = pooled
    taken = {name: source for name, source in source_of.items() if source in weights.state}
    missing = sorted(name for name in source_of if name.startswith(ENCODER_PREFIX) and name not in taken)
    if missing:
        raise UserError(f"{weights.path} lacks {len(missing)} tensors of the encoder, the first is {missing[0]}")
    model.load_state_dict(own | {name: weights.state[source] for name, source in taken.items()}, strict=True)
    return TransferReport(
        used=tuple(sorted(taken)),
        new=tuple(sorted(own.keys() - taken.keys())),
        dropped=tuple(sorted(weights.state.keys() - set(taken.values()))),
        norm=POOLED_NORM_PREFIX
        if source_of.get(f"{LAST_NORM_PREFIX}weight", "").startswith(POOLED_NORM_PREFIX)
        else "",
        positions=_positions(model.config),
    )


def _positions(config: ModelConfig) -> str:
    """How the position table was changed; empty if it was not."""
    if config.grid == config.trained_grid:
        return ""
    trained, own = ((config.trained_frames, config.trained_px), (config.num_frames, config.image_px))
    clips = " to ".join(f"{frames}×{side_px}² px" for frames, side_px in (trained, own))
    return f"; positions interpolated from clips of {clips}"

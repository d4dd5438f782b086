"""The targets of a configuration, and the model that predicts them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mgm_train.config import PretrainConfig
from mgm_train.data.clips import ReadTarget
from mgm_train.model_config import ModelConfig
from mgm_train.target_weights import target_weights
from mgm_train.training.targets.difference import Difference
from mgm_train.training.targets.hog import Hog
from mgm_train.training.targets.kmeans import KMeans
from mgm_train.training.targets.pixels import Pixels
from mgm_train.training.targets.rgb import Rgb
from mgm_train.training.targets.target import Target, WeightedTarget
from mgm_train.training.targets.trajectory import Trajectory

# By the names in `target_weights.TARGETS`.
BUILDERS: dict[str, Callable[[PretrainConfig], Target]] = {
    Pixels.name: Pixels.of,
    Rgb.name: Rgb.of,
    Hog.name: Hog.of,
    Difference.name: Difference.of,
    Trajectory.name: Trajectory.of,
    KMeans.name: KMeans.of,
}


def make_targets(config: PretrainConfig) -> tuple[WeightedTarget, ...]:
    """The targets that `--target` names, in the order of the model's outputs. UserError for a file it cannot read."""
    weighted = [
        WeightedTarget(target=BUILDERS[name](config), weight=weight)
        for name, weight in target_weights(config.target).items()
    ]
    # The outputs of a second decoder come last; sorting is stable.
    return tuple(sorted(weighted, key=lambda one: config.motion_decoder_depth > 0 and one.target.is_motion))


def pretrain_shape(config: PretrainConfig, targets: Sequence[WeightedTarget] | None = None) -> ModelConfig:
    """The model of a configuration with the outputs that its targets need."""
    weighted = make_targets(config) if targets is None else targets
    if [one.target.name for one in weighted] == ["pixels"]:
        return config.shape
    depth = config.motion_decoder_depth
    first = tuple((one.target.name, one.target.width) for one in weighted if not (depth and one.target.is_motion))
    second = tuple((one.target.name, one.target.width) for one in weighted if depth and one.target.is_motion)
    return replace(config.shape, outputs=first, motion_outputs=second, motion_decoder_depth=depth if second else 0)


def readers(targets: Sequence[WeightedTarget]) -> dict[str, ReadTarget]:
    """The readers of the targets that have one, by the name of the target."""
    return {one.target.name: one.target.reader for one in targets if one.target.reader is not None}

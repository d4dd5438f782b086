"""What a target is: values of each masked token, their validity, the number of values, and the loss.

A target is a frozen dataclass with a subclass of `Target`. `choose.py` builds the targets of a configuration. Most are
computed of the frames, on the device of the model. A target that needs more than the sampled frames has a `reader`,
which runs in the data loading worker.

Axes: B clips · N tokens · M masked tokens · P values of a token.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor
from torch.nn import functional as F

from mgm_shared.geometry import PAPER_PATCH, Patch
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import ReadTarget
from mgm_train.target_weights import MOTION_TARGETS


class Target(ABC):
    """What the decoder predicts of a masked token.

    `inputs` are the tensors of the batch that it needs, with the clips on their first axis.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("frames_BCTHW",)

    @property
    @abstractmethod
    def width(self) -> int:
        """The number of outputs of the model for a token."""

    @property
    def is_motion(self) -> bool:
        """Whether a second decoder predicts it, where the model has one."""
        return self.name in MOTION_TARGETS

    @property
    def blind_loss(self) -> float:
        """The loss of the best prediction that is the same everywhere, where all data have the same; else NaN."""
        return math.nan

    @property
    def reader(self) -> ReadTarget | None:
        """What reads the target of a clip in a data loading worker, for the batch's `NAME_BNP`; None for most."""
        return None

    @abstractmethod
    def values(self, batch: Mapping[str, Tensor], masked_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        """The true values of the tokens `masked_BM`, and which of them are valid.

        The values are float32 (B, M, …), where all further axes together are the `width` outputs in their order, or
        what the target's own `loss` compares with. The validity is bool, and its axes are the first of those of the
        values: (B, M), or all. None means that all are valid.
        """

    def loss(self, output_BMP: Tensor, values: Tensor, is_valid: Tensor | None) -> Tensor:
        """The loss of the model's outputs, a float32 scalar; the mean squared error, unless a target says otherwise."""
        return squared_error(output_BMP, values, is_valid)

    def error(self, output_BMP: Tensor, batch: Mapping[str, Tensor], masked_BM: Tensor) -> Tensor:
        """The loss of the model's outputs for the tokens `masked_BM` of a batch, a float32 scalar."""
        return self.loss(output_BMP, *self.values(batch, masked_BM))


@dataclass(frozen=True, kw_only=True)
class PatchTarget(Target):
    """A target that is computed of the pixels of a patch."""

    patch: Patch = PAPER_PATCH

    @classmethod
    def of(cls, config: PretrainConfig) -> Self:
        """The target for the patches of a configuration."""
        return cls(patch=config.patch)


@dataclass(frozen=True, kw_only=True)
class WeightedTarget:
    """A target, and the factor of its loss in the loss of the training."""

    target: Target
    weight: float = 1.0


def squared_error(output_BMP: Tensor, values: Tensor, is_valid: Tensor | None = None) -> Tensor:
    """Mean squared error of the valid values, by `clip_mean`."""
    output = output_BMP.float().reshape(values.shape)
    if is_valid is None:
        return F.mse_loss(output, values)
    is_valid = is_valid.reshape(is_valid.shape + (1,) * (values.dim() - is_valid.dim())).expand_as(values)
    # Where a value is missing it may be NaN, and a product with 0 would keep it.
    error = (output - values.where(is_valid, output.detach())) ** 2
    return clip_mean(error, is_valid)


def clip_mean(error: Tensor, is_valid: Tensor) -> Tensor:
    """The mean over the clips of the mean error of their valid values; a clip without valid values counts as 0.

    The mean of each clip is taken first, so that the loss of a batch does not depend on how the batch is divided among
    processes and accumulation steps.
    """
    error_BK, is_valid_BK = error.flatten(1), is_valid.flatten(1)
    num_valid_B = is_valid_BK.sum(1).clamp(min=1)
    return ((error_BK * is_valid_BK).sum(1) / num_valid_B).mean()

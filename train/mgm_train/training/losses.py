"""Losses: the error of the masked patches (paper §3.1), the cross entropy of the label, and that of each box's actions.

Axes: B clips · C colours · T frames · H,W pixels · N tokens, flattened t,h,w · M masked tokens · Q pixels of a patch
(2·16·16) · P = Q·3 values of it, colour fastest · K classes. Frames reach the device as uint8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from timm.data.mixup import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from mgm_shared.errors import UserError
from mgm_train.config import FinetuneConfig, PretrainConfig
from mgm_train.data.augmentation.operations import global_random
from mgm_train.models.videomae import normalise, split_mask
from mgm_train.runtime.distributed import is_compiled
from mgm_train.training.targets.choose import make_targets
from mgm_train.training.targets.pixels import Pixels
from mgm_train.training.targets.target import Target, WeightedTarget

Batch = dict[str, Any]


class Objective(Protocol):
    """The mean loss of a batch, a scalar tensor. `seed` decides everything random in it.

    A clip that could not be read (`collate` in clips.py) counts with a loss of 0, so that the weight of the others does
    not depend on it, nor on the number of processes. An objective with several losses also has `parts`, the mean of
    each in the last call, by name.
    """

    def __call__(self, model: nn.Module, batch: Batch, seed: int) -> Tensor: ...


def target_error(target: Target, output_BMP: Tensor, batch: Mapping[str, Tensor], masked_BM: Tensor) -> Tensor:
    """The loss of a target, `Target.error`, as a function that can be compiled."""
    return target.error(output_BMP, batch, masked_BM)


ErrorFunction = Callable[[Target, Tensor, Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class PretrainObjective:
    """The loss of a masked batch, the weighted sum of the losses of the targets.

    The batch has `frames_BCTHW` uint8, `mask_BN`, `num_masked`, and what the targets read. `targets` are in the order
    of the model's outputs.
    """

    targets: tuple[WeightedTarget, ...] = (WeightedTarget(target=Pixels()),)
    error: ErrorFunction = target_error
    parts: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """The loss of each target in the last call, without its weight, by name."""

    @classmethod
    def of(cls, config: PretrainConfig, targets: tuple[WeightedTarget, ...] | None = None) -> "PretrainObjective":
        """The objective of a configuration; with `compile` the error is compiled like the model."""
        is_fast = is_compiled(config.compile, config.device)
        error = torch.compile(target_error, dynamic=False) if is_fast else target_error
        return cls(targets=make_targets(config) if targets is None else targets, error=error)

    def __call__(self, model: nn.Module, batch: Batch, seed: int) -> Tensor:
        frames_BCTHW, mask_BN, num_masked = batch["frames_BCTHW"], batch["mask_BN"], batch["num_masked"]
        output_BMP = model(frames_BCTHW, mask_BN, num_masked, batch.get("num_left_out", 0))
        inputs = {name: batch[name] for one in self.targets for name in one.target.inputs}
        kept_K = batch.get("kept_K")
        if kept_K is None:
            return self._total(output_BMP, inputs, mask_BN, num_masked, 1.0)
        if not len(kept_K):
            self.parts.update({one.target.name: torch.zeros((), device=output_BMP.device) for one in self.targets})
            return _no_loss(output_BMP)
        kept = {name: value[kept_K] for name, value in inputs.items()}
        share = len(kept_K) / len(frames_BCTHW)
        return self._total(output_BMP[kept_K], kept, mask_BN[kept_K], num_masked, share)

    def _total(
        self, output_BMP: Tensor, inputs: Mapping[str, Tensor], mask_BN: Tensor, num_masked: int, share: float
    ) -> Tensor:
        """The weighted sum of the losses, times the share of the clips that could be read."""
        _, masked_BM = split_mask(mask_BN, num_masked)
        outputs = output_BMP.split([one.target.width for one in self.targets], dim=2)
        errors = [
            self.error(one.target, output, {name: inputs[name] for name in one.target.inputs}, masked_BM) * share
            for one, output in zip(self.targets, outputs, strict=True)
        ]
        self.parts.update({one.target.name: error.detach() for one, error in zip(self.targets, errors, strict=True)})
        return torch.stack([one.weight * error for one, error in zip(self.targets, errors, strict=True)]).sum()


def _no_loss(output: Tensor) -> Tensor:
    """Zero with zero gradients, since all processes must run the backward pass together."""
    return output.float().sum() * 0


def mix_video(frames_BCTHW: Tensor, label_B: Tensor, mixup: Mixup, seed: int) -> tuple[Tensor, Tensor]:
    """Mix each clip with the one at the mirrored place in the batch: mixed float frames, soft labels (B, K).

    timm's CutMix cuts the third and fourth axis. On video these are time and height, and no error is raised. With time
    folded into the channels, its box lies in the picture, the same in all frames. UserError for an odd batch.
    """
    if len(frames_BCTHW) % 2:
        raise UserError(
            f"Mixup pairs the clips of a batch, but there are {len(frames_BCTHW)} on each device in each accumulated "
            "step; make batch-size × repeats even there, or set mixup and cutmix to 0"
        )
    # timm's Mixup draws from numpy's global state.
    with global_random(seed % 2**32):
        mixed, soft_label_BK = mixup(frames_BCTHW.flatten(1, 2), label_B)
    return mixed.unflatten(1, frames_BCTHW.shape[1:3]), soft_label_BK


@dataclass(frozen=True, kw_only=True)
class FinetuneObjective:
    """The loss of a labelled batch: `frames_BCTHW` uint8, `label_B` int64."""

    mixup: Mixup | None
    hard_loss: nn.Module

    @classmethod
    def of(cls, config: FinetuneConfig, num_classes: int) -> "FinetuneObjective":
        """The objective of a configuration, with its Mixup, CutMix and label smoothing."""
        mixup = None
        if config.mixup or config.cutmix:
            mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mix_prob,
                switch_prob=config.mix_switch_prob,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )
        return cls(mixup=mixup, hard_loss=LabelSmoothingCrossEntropy(config.label_smoothing))

    def __call__(self, model: nn.Module, batch: Batch, seed: int) -> Tensor:
        inputs_BCTHW, target, criterion = batch["frames_BCTHW"], batch["label_B"], self.hard_loss
        if self.mixup is not None:
            inputs_BCTHW, target = mix_video(normalise(inputs_BCTHW), target, self.mixup, seed)
            criterion = SoftTargetCrossEntropy()
        logits_BK = model(inputs_BCTHW).float()
        kept_K = batch.get("kept_K")
        if kept_K is None:
            loss: Tensor = criterion(logits_BK, target)
            return loss
        if self.mixup is not None:
            # A clip that was mixed with a blank one is left out too.
            kept_K = kept_K[torch.isin(len(logits_BK) - 1 - kept_K, kept_K)]
        if not len(kept_K):
            return _no_loss(logits_BK)
        loss = criterion(logits_BK[kept_K], target[kept_K])
        return loss * (len(kept_K) / len(logits_BK))


@dataclass(frozen=True, kw_only=True)
class DetectionObjective:
    """The loss of a batch with boxes: `frames_BCTHW` uint8, `box_R5` px, `target_RK` 0 or 1.

    Binary cross entropy, the mean over actions and the sum over the boxes of a clip, divided by the number of clips: so
    every box has the same weight, however the boxes are spread over clips, processes and micro-steps (VideoMAE's rule
    for AVA). A clip that could not be read has no boxes.
    """

    def __call__(self, model: nn.Module, batch: Batch, seed: int) -> Tensor:
        frames_BCTHW, box_R5, target_RK = batch["frames_BCTHW"], batch["box_R5"], batch["target_RK"]
        logits_RK = model(frames_BCTHW, box_R5).float()
        loss_R = F.binary_cross_entropy_with_logits(logits_RK, target_RK, reduction="none").mean(1)
        # The sum of no boxes is 0, with gradients of 0: all processes run the backward pass together.
        return loss_R.sum() / len(frames_BCTHW)

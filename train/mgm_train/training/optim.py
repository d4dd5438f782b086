"""The optimizer of a run and its learning rate schedule."""

import math

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from mgm_train.config import TrainConfig
from mgm_train.data.loader import Plan

# The learning rates of a configuration are for a step of this many videos (VideoMAE's rule; clips do not count).
REFERENCE_BATCH = 256


def learning_rate(step: int, *, peak: float, floor: float, num_warmup: int, num_steps: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up to `peak`, then a cosine to `floor`.

    The last step has exactly `floor`. This is VideoMAE's schedule without its first step, whose rate is 0.
    """
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    progress = (step + 1 - num_warmup) / (num_steps - num_warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


def planned_rate(step: int, config: TrainConfig, plan: Plan) -> float:
    """The effective learning rate of a step: the configured ones × batch_size / 256."""
    scale = config.batch_size / REFERENCE_BATCH
    return learning_rate(
        step,
        peak=config.base_lr * scale,
        floor=config.min_lr * scale,
        num_warmup=config.warmup_epochs * plan.steps_per_epoch,
        num_steps=plan.num_steps,
    )


def make_optimizer(model: nn.Module, config: TrainConfig, layer_decay: float | None) -> torch.optim.Optimizer:
    """AdamW by timm: no weight decay on biases, norms and the mask token; layer-wise rates with `layer_decay`."""
    return create_optimizer_v2(
        model,
        "adamw",
        lr=config.base_lr,
        weight_decay=config.weight_decay,
        layer_decay=layer_decay,
        betas=config.betas,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each parameter group, scaled by its layer decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)

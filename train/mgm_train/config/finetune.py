"""The options of fine-tuning; the defaults are Table 6 of the paper (Kinetics-400)."""

from typing import Self

from pydantic import model_validator

from mgm_shared.config import check, option, with_default
from mgm_train.config.options import (
    AUGMENTATION,
    CLASS_MAP,
    CLIPS,
    EVAL_SPLIT,
    HARDWARE,
    INIT,
    LABEL_FRACTION,
    LOGGING,
    OPTIMIZER,
    REGULARIZATION,
    AugmentOn,
    EvalSplit,
    Sampling,
)
from mgm_train.config.train import TrainConfig


class FinetuneConfig(TrainConfig):
    """Options of fine-tuning; the defaults are Table 6 of the paper (Kinetics-400), augmentation as in VideoMAE."""

    batch_size: int = with_default(TrainConfig, "batch_size", 128)
    repeats: int = with_default(TrainConfig, "repeats", 2)
    epochs: int = with_default(TrainConfig, "epochs", 75)
    warmup_epochs: int = with_default(TrainConfig, "warmup_epochs", 5)
    base_lr: float = with_default(TrainConfig, "base_lr", 1e-3)
    min_lr: float = with_default(TrainConfig, "min_lr", 1e-6)
    betas: tuple[float, float] = with_default(TrainConfig, "betas", (0.9, 0.999))
    save_every_epochs: int = with_default(TrainConfig, "save_every_epochs", 5)
    init: str = INIT
    class_map: str = CLASS_MAP
    label_fraction: float = LABEL_FRACTION
    sampling: Sampling = option(
        "dense",
        "dense: consecutive frames at the stride; segment: one frame of each of num-frames equal segments (TSN)",
        group=CLIPS,
    )
    layer_decay: float = option(
        0.75, "Factor on the learning rate from each block to the block before it", group=OPTIMIZER, gt=0, le=1
    )
    drop_path: float = option(
        0.1,
        "Stochastic depth rate of the last block; it grows linearly over the depth",
        group=REGULARIZATION,
        ge=0,
        lt=1,
    )
    fc_dropout: float = option(0.0, "Dropout before the head", group=REGULARIZATION, ge=0, lt=1)
    head_init_scale: float = option(0.001, "Factor on the initial weights of the head", group=REGULARIZATION, ge=0)
    label_smoothing: float = option(0.1, "Label smoothing", group=REGULARIZATION, ge=0, lt=1)
    mixup: float = option(0.8, "Alpha of Mixup; 0 disables it", group=AUGMENTATION, ge=0)
    cutmix: float = option(
        1.0, "Alpha of CutMix, with one box for all frames of a clip; 0 disables it", group=AUGMENTATION, ge=0
    )
    mix_prob: float = option(1.0, "Share of the batches that is mixed", group=AUGMENTATION, ge=0, le=1)
    mix_switch_prob: float = option(
        0.5, "Share of the mixed batches that uses CutMix when both are on", group=AUGMENTATION, ge=0, le=1
    )
    randaug: str = option(
        "rand-m7-n4-mstd0.5-inc1", "RandAugment, in timm's notation; empty disables it", group=AUGMENTATION
    )
    random_erasing: float = option(
        0.25, "Share of the clips with one box erased, the same in all frames", group=AUGMENTATION, ge=0, le=1
    )
    crop_min_scale: float = option(
        0.08, "Smallest area of the random crop, as a share of the frame", group=AUGMENTATION, gt=0, le=1
    )
    eval_every_epochs: int = option(
        0,
        "Test with one view per video every so many epochs; 0 disables it",
        group=LOGGING,
        may_change=True,
        ge=0,
    )
    eval_split: EvalSplit = EVAL_SPLIT

    augment_on: AugmentOn = option(
        "auto",
        "Where RandAugment and random erasing are done: cpu (data loading processes) or cuda (a batch at a time on the "
        "GPU); auto: cpu, or cuda where decode-on has the GPU decode",
        group=HARDWARE,
    )

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        is_there = self.augment_on != "cuda" or self.device != "cpu"
        check(is_there, "augment_on", self.augment_on, "auto or cpu with device cpu")
        is_apart = self.augment_on == "cpu" and self.decodes_on_device
        check(not is_apart, "augment_on", self.augment_on, f"auto or cuda with decode-on {self.decode_on}")
        return self

    @property
    def is_augmented_on_device(self) -> bool:
        """Whether RandAugment and random erasing are done on the GPU; always where it decodes."""
        return self.augment_on == "cuda" or self.decodes_on_device

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        every = self.eval_every_epochs
        # All processes must call a sharded model equally often, and some test a video more than others.
        check(not (every and self.fsdp), "eval_every_epochs", every, "0 with fsdp")
        return self

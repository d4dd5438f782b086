"""The options of action detection; the defaults are Table 6 of the paper (AVA)."""

from typing import Literal, Self

from pydantic import model_validator

from mgm_shared.config import check, option, with_default
from mgm_train.config.finetune import FinetuneConfig
from mgm_train.config.options import (
    ANNOTATIONS,
    AUGMENTATION,
    CLIPS,
    DETECTION,
    EVAL_SPLIT,
    INIT,
    LOGGING,
    MIN_PERSON_SCORE,
    PROPOSALS,
    EvalSplit,
)
from mgm_train.config.train import TrainConfig


class DetectConfig(TrainConfig):
    """Options of action detection; the defaults are Table 6 of the paper (AVA), augmentation as in VideoMAE."""

    short_videos: Literal["repeat"] = option(
        "repeat", "Frames before the first or after the last of the video: that one is repeated", group=CLIPS
    )
    batch_size: int = with_default(TrainConfig, "batch_size", 128)
    epochs: int = with_default(TrainConfig, "epochs", 30)
    warmup_epochs: int = with_default(TrainConfig, "warmup_epochs", 5)
    base_lr: float = with_default(TrainConfig, "base_lr", 2.5e-4)
    min_lr: float = with_default(TrainConfig, "min_lr", 1e-6)
    betas: tuple[float, float] = with_default(TrainConfig, "betas", (0.9, 0.999))
    save_every_epochs: int = with_default(TrainConfig, "save_every_epochs", 5)
    init: str = INIT
    annotations: str = ANNOTATIONS
    proposals: str = PROPOSALS
    min_person_score: float = MIN_PERSON_SCORE
    clip_fps: float = option(
        25.0, "Frames per second that stride counts; frames are found by their time", group=DETECTION, gt=0
    )
    crop_scale: float = option(
        0.875, "Side of the random crop, as a share of the short side (224 of 256)", group=AUGMENTATION, gt=0, le=1
    )
    box_jitter: bool = option(True, "Move the sides of the training boxes at random", group=AUGMENTATION)
    colour_jitter: bool = option(
        True, "Change hue, saturation and brightness at random, alike in all frames of a clip", group=AUGMENTATION
    )
    layer_decay: float = with_default(FinetuneConfig, "layer_decay", 0.7)
    drop_path: float = with_default(FinetuneConfig, "drop_path", 0.2)
    head_init_scale: float = with_default(FinetuneConfig, "head_init_scale", 0.001)
    eval_every_epochs: int = option(
        10,
        "Test every so many epochs, and after the last one; 0 disables all of these tests",
        group=LOGGING,
        may_change=True,
        ge=0,
    )
    eval_split: EvalSplit = EVAL_SPLIT

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        every = self.eval_every_epochs
        check(not (every and self.fsdp), "eval_every_epochs", every, "0 with fsdp; test with mgm-train evaluate")
        return self

"""The options of commands that read views of videos: test, linear probe, features."""

import re
from typing import Self

from pydantic import model_validator

from mgm_shared.config import Config, check, option, with_default
from mgm_train.config.finetune import FinetuneConfig
from mgm_train.config.options import (
    ANNOTATIONS,
    CLASS_MAP,
    CLIPS,
    DEVICE,
    HARDWARE,
    HARDWARE_OPTIONS,
    LABEL_FRACTION,
    MAX_PROBE_SETTING,
    MIN_PERSON_SCORE,
    MODEL,
    NUM_WORKERS,
    PRECISION,
    PROBING,
    PROPOSALS,
    SAMPLES,
    SHORT_VIDEOS,
    STRIDE,
    TESTING,
    WORKER_START,
    Device,
    Precision,
    Samples,
    Sampling,
    ShortVideos,
    Workers,
    WorkerStart,
)


class ViewConfig(Config):
    """Which views of which videos are read, without chance. Model size and clip shape come from the weights."""

    split: str = option("test", "Split of the videos to score", group=TESTING)
    samples: Samples = SAMPLES
    class_map: str = CLASS_MAP
    stride: int = STRIDE
    short_videos: ShortVideos = SHORT_VIDEOS
    sampling: Sampling = option(
        "dense", "dense: consecutive frames at the stride; segment: interleaved frames of the whole video", group=CLIPS
    )
    num_temporal_views: int = option(5, "Clips along the video (paper: 5; 2 on SSv2)", group=TESTING, ge=1)
    num_spatial_views: int = option(3, "Square crops along the longer side", group=TESTING, ge=1)
    batch_size: int = option(8, "Videos per step; all views of a video are read together", group=HARDWARE, ge=1)
    num_workers: Workers = NUM_WORKERS
    worker_start: WorkerStart = WORKER_START
    precision: Precision = PRECISION
    device: Device = DEVICE


class EvaluateConfig(ViewConfig):
    """Options of the test of a fine-tuned model: with several views, or of an action detector on its key frames.

    For a detector, options that are not set are those of its training, and `split` is val.
    """

    annotations: str = ANNOTATIONS
    proposals: str = PROPOSALS
    min_person_score: float = MIN_PERSON_SCORE

    @classmethod
    def while_training(cls, config: FinetuneConfig) -> "EvaluateConfig":
        """One view in the middle of each video, read as fine-tuning reads them."""
        of_clips = ("samples", "class_map", "stride", "short_videos", "sampling")
        kept = {name: getattr(config, name) for name in (*of_clips, *HARDWARE_OPTIONS)}
        return cls(split=config.eval_split, num_temporal_views=1, num_spatial_views=1, **kept)


class ProbeConfig(ViewConfig):
    """Options of the linear probe of a frozen encoder; the paper gives no settings for it."""

    init: str = option("", "Weights of the encoder: a run folder or an epoch-XXXX.safetensors", group=MODEL)
    label_fraction: float = LABEL_FRACTION
    train_temporal_views: int = option(
        5, "Clips along each training video that the heads learn from", group=PROBING, ge=1
    )
    train_spatial_views: int = option(1, "Square crops of each of these clips; 1 is the centre", group=PROBING, ge=1)
    learning_rates: tuple[float, ...] = option(
        (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), "AdamW learning rates of the heads", group=PROBING
    )
    weight_decays: tuple[float, ...] = option(
        (0.01, 0.1, 0.4, 0.8), "Weight decays; each is combined with each learning rate", group=PROBING
    )
    epochs: int = option(50, "Passes of the heads over the features", group=PROBING, ge=1)
    head_batch_size: int = option(1024, "Clips per step of the heads", group=PROBING, ge=1)
    held_out: float = option(
        0.1, "Share of each class's training videos that is held out to choose the head", group=PROBING, gt=0, lt=1
    )
    group_pattern: str = option(
        "auto",
        "Which training videos are held out together: auto (by the names of UCF101 and HMDB51), none, or a regular "
        "expression whose first group names the recording",
        group=PROBING,
    )
    seed: int = option(
        0, "Seed of the order of the clips, of the videos held out, and of label-fraction", group=PROBING, ge=0
    )

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        rates, decays = self.learning_rates, self.weight_decays
        are_rates = bool(rates) and all(0 < rate <= MAX_PROBE_SETTING for rate in rates)
        check(are_rates, "learning_rates", rates, f"numbers above 0 and at most {MAX_PROBE_SETTING}")
        are_decays = bool(decays) and all(0 <= decay <= MAX_PROBE_SETTING for decay in decays)
        check(are_decays, "weight_decays", decays, f"numbers from 0 to {MAX_PROBE_SETTING}")
        return self

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        try:
            re.compile(self.group_pattern)
        except re.error:
            check(False, "group_pattern", self.group_pattern, "auto, none, or a regular expression")
        check(bool(self.group_pattern), "group_pattern", self.group_pattern, "auto, none, or a regular expression")
        return self

    def for_training(self) -> "ProbeConfig":
        """The same with the views of the training videos."""
        temporal, spatial = self.train_temporal_views, self.train_spatial_views
        return self.replace(split="train", num_temporal_views=temporal, num_spatial_views=spatial)


class EmbedConfig(ViewConfig):
    """Options of the features of all videos of a store."""

    split: str = option("all", "Split of the videos, or all", group=CLIPS)
    init: str = option("", "The model: anything that `mgm_train.load` takes", group=MODEL)
    num_temporal_views: int = with_default(ViewConfig, "num_temporal_views", 1)
    num_spatial_views: int = with_default(ViewConfig, "num_spatial_views", 1)
    per_view: bool = option(False, "A row for each view instead of one, their mean, for each video", group=TESTING)

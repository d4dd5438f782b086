"""The options of pretraining; the defaults are Table 5 of the paper."""

from dataclasses import replace
from typing import Any, Self

from pydantic import field_validator, model_validator

from mgm_shared.config import check, option, with_default
from mgm_train.clip_schedule import Stage, is_possible, last_value, stages
from mgm_train.config.options import (
    CLIPS,
    MASKING,
    MODEL,
    TARGET,
    Decoder,
    GuidanceSource,
    LinearInit,
    Mask,
    MissingMotion,
    TrajectoryNorm,
)
from mgm_train.config.train import TrainConfig
from mgm_train.model_config import ModelConfig
from mgm_train.target_weights import MOTION_TARGETS, NEEDED, target_text, target_weights
from mgm_train.token_counts import TokenCounts, kept_ratio

# The options whose value may change during a run, and the options that hold their schedules.
SCHEDULES = {"image_px": "image_px_schedule", "num_frames": "num_frames_schedule"}
A_SCHEDULE = "values with the share of the run at which each starts, such as 128@0,224@0.8; each needs a whole epoch"


class PretrainConfig(TrainConfig):
    """Options of pretraining; the defaults are Table 5 of the paper."""

    num_frames: int = with_default(TrainConfig, "num_frames", 16, may_be_scheduled=True)
    image_px: int = with_default(TrainConfig, "image_px", 224, may_be_scheduled=True)
    num_frames_schedule: str = option(
        "", "Frames of a clip over the run; `--num-frames 8@0,16@0.5` sets this and num-frames", group=CLIPS
    )
    image_px_schedule: str = option(
        "", "Sizes of a clip over the run; `--image-px 128@0,224@0.8` sets this and image-px", group=CLIPS
    )
    decoder: Decoder = option(
        "joint",
        "joint: self-attention among visible and masked tokens; cross: masked tokens attend to visible ones only "
        "(CrossMAE)",
        group=MODEL,
    )
    linear_init: LinearInit = option(
        "xavier", "Initial weights of linear layers: xavier (VideoMAE), or PyTorch's default", group=MODEL
    )
    mask: Mask = option("mgm", "Masking strategy: which tokens the encoder does not see", group=MASKING)
    mask_ratio: float = option(0.75, "Share of masked tokens", group=MASKING, gt=0, lt=1)
    mask_jitter: float = option(
        0.15,
        "Maximum relative change of the rectangle's side lengths over time; 0 disables jitter",
        group=MASKING,
        ge=0,
        lt=1,
    )
    mask_top_k: int = option(
        1,
        "Centre the rectangle of mgm on the mean position of this many cells of largest motion (paper: 1)",
        group=MASKING,
        ge=1,
    )
    mask_first_guided: bool = option(
        False, "Place the rectangle of mgm by motion in the first slice too (paper: at random)", group=MASKING
    )
    guidance: GuidanceSource = option(
        "vectors",
        "What guides mgm: vectors (of the codec, as in the paper); clean (vectors without camera motion, weighted by "
        "how well the picture supports them); flow (of `mgm-prep flow`); boxes",
        group=MASKING,
    )
    missing_motion: MissingMotion = option(
        "nearest",
        "What guides mgm where a block of a P or B picture has no vector: nearest (the nearest frame that has one); "
        "strong (the longest vector of the picture); spread (the vectors around); change (the change of the picture)",
        group=MASKING,
    )
    boxes: str = option("", "Folder of MOT files, one per video, for guidance boxes", group=MASKING)
    target: str = option("pixels", f"What the decoder predicts of the masked tokens: {NEEDED}", group=TARGET)
    motion_decoder_depth: int = option(
        0,
        f"Blocks of a second decoder for the targets of motion ({', '.join(MOTION_TARGETS)}); 0: one decoder for all",
        group=TARGET,
        ge=0,
    )

    trajectory_steps: int = option(
        0,
        "Stored frames for which the target trajectory follows the points of a token, a displacement each (M3Video: "
        "4); 0: one displacement, to the next slice (TrackMAE)",
        group=TARGET,
        ge=0,
        le=64,
    )
    trajectory_norm: TrajectoryNorm = option(
        "patch",
        "Displacements of the target trajectory: patch (mean 0 and std 1 over the points of a token, as in M3Video and "
        "TrackMAE), clip (divided by their root mean square over the clip), none (in units of 20 px)",
        group=TARGET,
    )

    codebook: str = option("", "File of `mgm-prep codebook`, for the target kmeans", group=TARGET)

    drop: float = option(
        0.0,
        "Share of all tokens, those of least motion, that are neither seen nor predicted (EVEREST); a part of "
        "mask-ratio",
        group=MASKING,
        ge=0,
        lt=1,
    )
    decode_ratio: float = option(
        1.0,
        "Share of the masked tokens that the decoder predicts, chosen by a running cell (VideoMAE V2)",
        group=MASKING,
        gt=0,
        le=1,
    )

    @model_validator(mode="before")
    @classmethod
    def _split_schedules(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`image_px: 128@0,224@0.8` is its last value as `image_px`, and the whole text as `image_px_schedule`."""
        values = dict(values)
        for name, schedule in SCHEDULES.items():
            given = values.get(name)
            if isinstance(given, str) and "@" in given:
                values[schedule] = given
            text = values.get(schedule)
            if text and isinstance(text, str) and (name not in values or isinstance(given, str)):
                values[name] = _last_of(schedule, text)
        return values

    @model_validator(mode="after")
    def _check_schedules(self) -> Self:
        for name, schedule in SCHEDULES.items():
            if text := getattr(self, schedule):
                last = _last_of(schedule, text)
                check(getattr(self, name) == last, name, getattr(self, name), f"the last value of {text}")
                check(is_possible(text, self.epochs), schedule, text, f"{A_SCHEDULE} ({self.epochs} epochs)")
        for stage in self.stages if any(getattr(self, schedule) for schedule in SCHEDULES.values()) else ():
            is_whole = stage.num_frames % self.tubelet == 0
            check(is_whole, "num_frames", stage.num_frames, f"a multiple of tubelet, {self.tubelet}")
            is_whole = stage.image_px % self.patch_px == 0
            check(is_whole, "image_px", stage.image_px, f"a multiple of patch-px, {self.patch_px}")
        return self

    @field_validator("target")
    @classmethod
    def _shorten_target(cls, target: str) -> str:
        """One text for the same targets, so that a run goes on however they are written."""
        return target_text(target_weights(target))

    @model_validator(mode="after")
    def _check_codebook(self) -> Self:
        has_codebook = ("kmeans" in target_weights(self.target)) == bool(self.codebook)
        check(has_codebook, "codebook", self.codebook, "a file for the target kmeans, and empty without it")
        return self

    @model_validator(mode="after")
    def _check_trajectory(self) -> Self:
        has_one_point = self.patch.cells_per_side == 1 and "trajectory" in target_weights(self.target)
        is_defined = not has_one_point or self.trajectory_norm != "patch"
        needed = "clip or none where a token has one point (patch-px 8)"
        check(is_defined, "trajectory_norm", self.trajectory_norm, needed)
        return self

    images: str = option(
        "",
        "Store of images, a second source: every second step is one of images, each an image repeated to a tubelet, at "
        "the positions of slice 0 (OmniMAE)",
        group=CLIPS,
    )
    image_mask: Mask = option(
        "random",
        "Masking strategy of the images; an image has no motion, so mgm and smm are random rectangles",
        group=MASKING,
    )
    image_mask_ratio: float = option(0.75, "Share of masked tokens of an image", group=MASKING, gt=0, lt=1)

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if not self.images:
            return self
        num_patches = self.grid.patches_per_slice
        num_masked = self.grid.patches_at(self.image_mask_ratio)
        needed = f"a share that masks some and leaves some of the {num_patches} patches; it masks {num_masked}"
        check(0 < num_masked < num_patches, "image_mask_ratio", self.image_mask_ratio, needed)
        check(self.target == "pixels", "target", self.target, "pixels with images")
        check(len(self.stages) == 1, "images", self.images, "empty where a schedule changes the size of the clips")
        check(not self.decodes_on_device, "decode_on", self.decode_on, "auto or cpu with images")
        return self

    @model_validator(mode="after")
    def _check_mask(self) -> Self:
        """The loss needs a masked patch and the encoder a visible one. All strategies mask equally many patches."""
        for stage in self.stages:
            grid = self.shape_of(stage).grid
            num_masked, num_patches = grid.patches_at(self.mask_ratio), grid.patches_per_slice
            needed = (
                f"a share that masks some and leaves some of the {num_patches} patches of a slice (image-px "
                f"{stage.image_px}); it masks {num_masked}"
            )
            check(0 < num_masked < num_patches, "mask_ratio", self.mask_ratio, needed)
            needed = f"a share that leaves some of the masked tokens; mask-ratio {self.mask_ratio:g} includes drop"
            # With all of a slice's masked tokens dropped, the strategy has nothing to mask.
            is_left = self.drop < self.mask_ratio and grid.patches_at(kept_ratio(self.mask_ratio, self.drop)) > 0
            check(is_left, "drop", self.drop, needed)
            check(
                self.counts_of(stage).num_masked > 0, "decode_ratio", self.decode_ratio, "a share of at least a token"
            )
        return self

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        # These look at the pixels, which the data loading processes do not have then.
        looking = {"guidance clean": self.guidance == "clean", "missing-motion change": self.missing_motion == "change"}
        for name, is_looking in looking.items():
            is_blind = is_looking and self.decodes_on_device
            check(not is_blind, "decode_on", self.decode_on, f"auto or cpu with {name}")
        return self

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        names = set(target_weights(self.target))
        is_whole = "difference" not in names or self.tubelet == 2
        check(is_whole, "tubelet", self.tubelet, "2 for the target difference, that of the frames of a tubelet")
        num_moving = len(names & set(MOTION_TARGETS))
        is_split = self.motion_decoder_depth == 0 or 0 < num_moving < len(names)
        needed = "0 unless there is a target of motion and another one"
        check(is_split, "motion_decoder_depth", self.motion_decoder_depth, needed)
        return self

    @model_validator(mode="after")
    def _check_boxes(self) -> Self:
        has_boxes = (self.guidance == "boxes") == bool(self.boxes)
        check(has_boxes, "boxes", self.boxes, "a folder for guidance boxes, and empty for other guidance")
        is_used = self.missing_motion == "nearest" or self.guidance in ("vectors", "clean")
        check(is_used, "missing_motion", self.missing_motion, "nearest for guidance flow and boxes")
        return self

    @property
    def shape(self) -> ModelConfig:
        """The model that these options describe, for the clips at the end of the run."""
        return replace(super().shape, decoder=self.decoder)

    @property
    def stages(self) -> list[Stage]:
        """The parts of the run with one size of clips each, in order."""
        return stages(
            self.epochs,
            num_frames=self.num_frames,
            image_px=self.image_px,
            frames_text=self.num_frames_schedule,
            px_text=self.image_px_schedule,
        )

    @property
    def clip_sizes(self) -> list[tuple[int, int]]:
        """Number of frames and side in pixels of the clips of each stage."""
        return [(stage.num_frames, stage.image_px) for stage in self.stages]

    def within(self, stage: Stage) -> "PretrainConfig":
        """These options with the clips of a stage, and no schedule."""
        sizes = {"num_frames": stage.num_frames, "image_px": stage.image_px}
        return self.replace(**sizes, **dict.fromkeys(SCHEDULES.values(), ""))

    def shape_of(self, stage: Stage, shape: ModelConfig | None = None) -> ModelConfig:
        """The model of a stage: `shape`, or else that of the end of the run, with interpolated positions."""
        shape = shape or self.shape
        return replace(shape, num_frames=stage.num_frames, image_px=stage.image_px).after(shape)

    def counts_of(self, stage: Stage) -> TokenCounts:
        """The numbers of visible, masked and left out tokens of a clip of a stage."""
        grid = self.shape_of(stage).grid
        return TokenCounts.of(grid, self.mask_ratio, drop=self.drop, decode_ratio=self.decode_ratio)


def _last_of(schedule: str, text: str) -> int:
    try:
        return last_value(text)
    except ValueError:
        check(False, schedule, text, A_SCHEDULE)
        raise

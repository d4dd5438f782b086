"""The options of pretraining, fine-tuning, action detection, evaluation and the linear probe.

Each option is declared once, with its type, default, bounds and help; the command line, a YAML file and Python build
the same configuration. Defaults are the paper's (Tables 5 and 6, Kinetics-400), and VideoMAE's where the paper is
silent. torch is not imported here: `--help` stays fast.
"""

import re
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from mgm_shared.config import Config, check, option, with_default
from mgm_shared.geometry import Patch, TokenGrid
from mgm_train.clip_schedule import Stage, is_possible, last_value, stages
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.target_weights import MOTION_TARGETS, NEEDED, target_text, target_weights
from mgm_train.token_counts import TokenCounts, kept_ratio

Model = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
Mask = Literal["mgm", "mgm-sparse", "smm", "smm-sparse", "tube", "motion-bins", "random", "block"]
GuidanceSource = Literal["vectors", "clean", "flow", "boxes"]
MissingMotion = Literal["nearest", "strong", "spread", "change"]
Attention = Literal["joint", "divided"]
Decoder = Literal["joint", "cross"]
Positions = Literal["sinusoid", "separable", "rope3d"]
LinearInit = Literal["xavier", "torch"]
PatchPx = Literal[8, 16]
Tubelet = Literal[1, 2]
Sampling = Literal["dense", "segment"]
ShortVideos = Literal["stride", "repeat"]
# What a test should do as the fine-tuning did it; the number and the size of the frames are the model's.
SAMPLING_OPTIONS = ("stride", "sampling", "short_videos")
# What a test between epochs takes over from the training.
HARDWARE_OPTIONS = ("num_workers", "worker_start", "precision", "device")
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
Samples = Literal["auto", "videos", "segments"]
AugmentOn = Literal["auto", "cpu", "cuda"]
CompileMode = Literal["default", "reduce-overhead"]
DecodeOn = Literal["auto", "cpu", "cuda", "hybrid"]
WorkerStart = Literal["auto", "fork", "spawn", "forkserver"]
EvalSplit = Literal["val", "test"]
ExportFormat = Literal["transformers", "safetensors", "timm", "onnx"]
LOGGERS = ("tensorboard", "wandb")

TrajectoryNorm = Literal["patch", "clip", "none"]
MASKS: tuple[str, ...] = get_args(Mask)
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportFormat)

# Headings of --help.
MODEL, CLIPS, MASKING, SCHEDULE = "Model", "Clips", "Masking", "Batches and epochs"
TARGET = "Target"
OPTIMIZER, REGULARIZATION, AUGMENTATION = "Optimizer", "Regularization", "Augmentation"
HARDWARE, LOGGING, TESTING, PROBING = "Data loading and hardware", "Checkpoints and logging", "Testing", "Probe"
DETECTION = "Action detection"


# Options that several configurations share.
CLASS_MAP = option(
    "", "CSV file with lines `label,class`: use only videos with these labels, under these class names", group=CLIPS
)
SAMPLES = option(
    "auto",
    "What to read: whole videos, or the segments that `mgm-prep labels` attached; auto: segments where there are some",
    group=CLIPS,
)
LABEL_FRACTION = option(
    1.0,
    "Share of the training videos of each class whose labels are used; drawn by the seed, and a larger share contains "
    "a smaller one",
    group=CLIPS,
    gt=0,
    le=1,
)
INIT = option(
    "",
    "Pretrained weights: a run folder or an epoch-XXXX.safetensors. If unset, train from random initialization",
    group=MODEL,
)
ANNOTATIONS = option("", "Folder of the annotation files, such as ava_val_v2.2.csv", group=DETECTION)
PROPOSALS = option(
    "",
    "Person boxes of a detector to test with: .csv (SlowFast), .json (AlphAction) or .pkl (mmaction2). If unset, only "
    "the labelled boxes are tested",
    group=DETECTION,
    may_change=True,
)
MIN_PERSON_SCORE = option(
    0.8, "Use the person boxes of at least this score", group=DETECTION, may_change=True, ge=0, le=1
)
STRIDE = option(4, "Distance between sampled frames, in stored frames (paper: 4; 2 on SSv2)", group=CLIPS, ge=1)
SHORT_VIDEOS = option(
    "stride",
    "In a video too short for the stride: lower the stride, or repeat the last frame as VideoMAE does",
    group=CLIPS,
)
EVAL_SPLIT = option("val", "Split of these tests", group=LOGGING, may_change=True)
Share = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]
Workers = Annotated[int, Field(ge=0)] | Literal["auto"]
NUM_WORKERS = option(
    "auto",
    "Data loading processes per GPU; 0 loads in the main process; auto: its share of the CPU cores, less one",
    group=HARDWARE,
    may_change=True,
)
WORKER_START = option(
    "auto", "Multiprocessing start method of the data loading processes", group=HARDWARE, may_change=True
)
PRECISION = option(
    "auto",
    "Number format of the forward pass; auto: bf16 on a GPU that computes in it, fp16 on V100 and T4, fp32 elsewhere",
    group=HARDWARE,
)
# AdamW's first step divides the learning rate by 0.1 in float32, whose largest number is 3.4e38.
MAX_PROBE_SETTING = 3e37
DEVICE = option("auto", "Device for the model; auto: a GPU if there is one", group=HARDWARE, may_change=True)


class TrainConfig(Config):
    """Options of pretraining and fine-tuning."""

    model: Model = option("vit_base", "Size of the model; vit_tiny is meant for a CPU", group=MODEL)
    attention: Attention = option(
        "joint", "joint: among all tokens; divided: over time, then over space (TimeSformer)", group=MODEL
    )
    patch_px: PatchPx = option(16, "Side of the square patch of a token in pixels", group=MODEL)
    tubelet: Tubelet = option(2, "Frames of a token", group=MODEL)
    positions: Positions = option(
        "sinusoid",
        "sinusoid: of the flattened index of a token (VideoMAE); separable: of its time, height and width; rope3d: "
        "rotary, in attention, over time, height and width (V-JEPA 2)",
        group=MODEL,
    )
    samples: Samples = SAMPLES
    num_frames: int = option(16, "Frames of a clip; a multiple of tubelet", group=CLIPS, ge=1)
    stride: int = STRIDE
    short_videos: ShortVideos = SHORT_VIDEOS
    image_px: int = option(224, "Side of the square clip in pixels; a multiple of patch-px", group=CLIPS, ge=8)
    flip: bool = option(
        True, "Mirror half of the clips (paper: never on SSv2, whose classes tell left from right)", group=CLIPS
    )
    batch_size: int = option(
        512, "Videos per optimizer step, over all GPUs and all accumulation steps", group=SCHEDULE, ge=1
    )
    grad_accum_steps: int = option(
        1,
        "Split each optimizer step into this many forward and backward passes, to save memory",
        group=SCHEDULE,
        may_change=True,
        ge=1,
    )
    repeats: int = option(
        1, "Clips sampled per video (repeated augmentation); not counted in batch-size or epochs", group=SCHEDULE, ge=1
    )
    epochs: int = option(800, "Passes over the videos", group=SCHEDULE, ge=1)
    warmup_epochs: int = option(40, "Epochs of linear learning rate warm-up from 0", group=SCHEDULE, ge=0)
    base_lr: float = option(1.5e-4, "Peak learning rate for 256 videos per step", group=OPTIMIZER, gt=0)
    min_lr: float = option(
        1e-5, "Learning rate at the end of the cosine schedule, for 256 videos per step", group=OPTIMIZER, ge=0
    )
    weight_decay: float = option(0.05, "Weight decay of AdamW; biases and norms have none", group=OPTIMIZER, ge=0)
    betas: tuple[float, float] = option((0.9, 0.95), "Betas of AdamW", group=OPTIMIZER)
    clip_grad: float = option(0.0, "Clip the gradient to this norm; 0 disables clipping", group=OPTIMIZER, ge=0)
    ema_decay: float = option(
        0.0,
        "Keep an exponential moving average of the weights, and save and test it; the decay rises to this value as "
        "1 - n^(-2/3) of step n (timm's warm-up); 0 disables it",
        group=OPTIMIZER,
        ge=0,
        lt=1,
    )
    seed: int = option(0, "Seed of the initial weights, the order, the crops and the masks", group=SCHEDULE, ge=0)
    num_workers: Workers = NUM_WORKERS
    worker_start: WorkerStart = WORKER_START
    max_unreadable_videos: int = option(
        0,
        "Number of unreadable videos that do not end the run; each is named and left out of the loss",
        group=HARDWARE,
        may_change=True,
        ge=0,
    )
    precision: Precision = PRECISION
    device: Device = DEVICE
    decode_on: DecodeOn = option(
        "auto",
        "Where the frames of a jpeg store are decoded: cpu (data loading processes), cuda (nvJPEG on the GPU), or "
        "hybrid (both, each a share of the samples); auto: cpu",
        group=HARDWARE,
    )
    decode_share: Share = option(
        "auto",
        "Share of the samples that the GPU decodes with decode-on hybrid; auto: measured when the run starts, and kept",
        group=HARDWARE,
    )
    compile: bool | Literal["auto"] = option(
        "auto",
        "Compile the model with torch.compile: slower start, faster steps; auto: on a GPU that can, not on a CPU",
        group=HARDWARE,
        may_change=True,
    )
    compile_mode: CompileMode = option(
        "default",
        "How torch.compile compiles: default; reduce-overhead: with CUDA graphs, which launch all kernels of a pass at "
        "once and take more memory",
        group=HARDWARE,
        may_change=True,
    )
    fsdp: bool = option(
        False,
        "Shard weights, gradients and optimizer state over the GPUs (FSDP2), for models too large for one",
        group=HARDWARE,
        may_change=True,
    )
    grad_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, about 30 % slower",
        group=HARDWARE,
        may_change=True,
    )
    save_every_epochs: int = option(
        50, "Keep the weights as epoch-XXXX.safetensors every so many epochs", group=LOGGING, may_change=True, ge=1
    )
    log: str = option(
        "",
        "Log to these too, beside metrics.jsonl: tensorboard, wandb (offline unless WANDB_MODE is set), or both, "
        "separated by a comma",
        group=LOGGING,
        may_change=True,
    )
    log_every_steps: int = option(
        10, "Write a line of metrics.jsonl every so many optimizer steps", group=LOGGING, may_change=True, ge=1
    )

    @property
    def loggers(self) -> list[str]:
        """The names in `log`."""
        return [name.strip() for name in self.log.split(",") if name.strip()]

    @model_validator(mode="after")
    def _check_loggers(self) -> Self:
        check(set(self.loggers) <= set(LOGGERS), "log", self.log, f"empty, or some of {', '.join(LOGGERS)}")
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        is_whole = self.num_frames % self.tubelet == 0
        check(is_whole, "num_frames", self.num_frames, f"a multiple of tubelet, {self.tubelet}")
        is_whole = self.image_px % self.patch_px == 0
        check(is_whole, "image_px", self.image_px, f"a multiple of patch-px, {self.patch_px}")
        has_decoder = not self.decodes_on_device or self.device != "cpu"
        check(has_decoder, "decode_on", self.decode_on, "auto or cpu with device cpu")
        check(not (self.fsdp and self.precision == "fp16"), "precision", self.precision, "bf16 or fp32 with fsdp")
        has_graphs = self.compile_mode == "default" or not self.fsdp
        check(has_graphs, "compile_mode", self.compile_mode, "default with fsdp")
        is_split = self.batch_size % self.grad_accum_steps == 0
        check(is_split, "batch_size", self.batch_size, f"a multiple of grad-accum-steps, {self.grad_accum_steps}")
        # A warm-up that nobody set is chosen to fit; see training/auto_config.py.
        is_short = self.warmup_epochs <= self.epochs or "warmup_epochs" not in self.model_fields_set
        check(is_short, "warmup_epochs", self.warmup_epochs, f"at most epochs, {self.epochs}")
        check(self.min_lr <= self.base_lr, "min_lr", self.min_lr, f"from 0 to base-lr, {self.base_lr}")
        check(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers from 0 to below 1")
        return self

    @property
    def decodes_on_device(self) -> bool:
        """Whether the GPU decodes some or all of the frames."""
        return self.decode_on in ("cuda", "hybrid")

    @property
    def patch(self) -> Patch:
        """What a token covers."""
        return Patch(px=self.patch_px, frames=self.tubelet)

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a clip."""
        return TokenGrid.of_clip(self.num_frames, self.image_px, self.image_px, self.patch)

    @property
    def clip_sizes(self) -> list[tuple[int, int]]:
        """Number of frames and side in pixels of the clips; several where a schedule changes them."""
        return [(self.num_frames, self.image_px)]

    @property
    def shape(self) -> ModelConfig:
        """The model that these options describe."""
        return replace(
            MODEL_SIZES[self.model],
            num_frames=self.num_frames,
            image_px=self.image_px,
            attention=self.attention,
            patch_px=self.patch_px,
            tubelet=self.tubelet,
            positions=self.positions,
        )


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

"""The options of every training."""

from dataclasses import replace
from typing import Literal, Self

from pydantic import model_validator

from mgm_shared.config import Config, check, option
from mgm_shared.geometry import Patch, TokenGrid
from mgm_train.config.options import (
    CLIPS,
    DEVICE,
    HARDWARE,
    LOGGERS,
    LOGGING,
    MODEL,
    NUM_WORKERS,
    OPTIMIZER,
    PRECISION,
    SAMPLES,
    SCHEDULE,
    SHORT_VIDEOS,
    STRIDE,
    WORKER_START,
    Attention,
    CompileMode,
    DecodeOn,
    Device,
    Model,
    PatchPx,
    Positions,
    Precision,
    Samples,
    Share,
    ShortVideos,
    Tubelet,
    Workers,
    WorkerStart,
)
from mgm_train.model_config import MODEL_SIZES, ModelConfig


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

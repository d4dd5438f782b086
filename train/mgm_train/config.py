"""What can be set: the sizes of the model, and the hyperparameters of pretraining, fine-tuning, evaluation.

The dataclasses are flat and frozen. The command line, a YAML file and a notebook build the same one: a field
is an option (`base_lr` is `--base-lr`) and a YAML key, and the sentence beside it is its `--help`. Defaults
are the paper's (Tables 5 and 6, Kinetics-400); where the paper is silent, VideoMAE's. No torch here, so that
`--help` is fast.
"""

from dataclasses import dataclass, replace

from mgm_shared.config import Config, check, option
from mgm_shared.geometry import PATCH_PX, TUBELET_FRAMES, TokenGrid

MASKS = ("mgm", "mgm-sparse", "smm", "smm-sparse", "tube", "random", "block")
GUIDANCES = ("vectors", "clean", "flow", "boxes")
ATTENTIONS = ("joint", "divided")
SAMPLINGS = ("dense", "segment")
PRECISIONS = ("auto", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda")
WORKER_STARTS = ("auto", "fork", "spawn", "forkserver")

WORKER_START_HELP = "how those begin: fork, spawn, forkserver, or auto, Python's own choice"
CLASS_MAP_HELP = "CSV file `label,class`: only videos with these labels take part, as these classes"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shapes of a model's weights and of its position table.

    `trained_frames` and `trained_px` are the clip that the positions were made for, where it is another one than this
    model's: they are interpolated (see positions.py). 0 is this model's own.
    """

    name: str
    width: int
    depth: int
    num_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_num_heads: int
    num_frames: int = 16
    image_px: int = 224
    attention: str = "joint"
    trained_frames: int = 0
    trained_px: int = 0

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid.of_clip(self.num_frames, self.image_px, self.image_px)

    @property
    def trained_grid(self) -> TokenGrid:
        """The grid that the positions were made for."""
        side_px = self.trained_px or self.image_px
        return TokenGrid.of_clip(self.trained_frames or self.num_frames, side_px, side_px)

    def after(self, earlier: "ModelConfig") -> "ModelConfig":
        """This model with the positions that `earlier`, whose weights it takes over, was trained with."""
        frames, side_px = earlier.trained_frames or earlier.num_frames, earlier.trained_px or earlier.image_px
        is_same = (frames, side_px) == (self.num_frames, self.image_px)
        return replace(self, trained_frames=0 if is_same else frames, trained_px=0 if is_same else side_px)


def _size(name: str, *encoder_and_decoder: int) -> ModelConfig:
    width, depth, num_heads, decoder_width, decoder_depth, decoder_num_heads = encoder_and_decoder
    return ModelConfig(
        name=name,
        width=width,
        depth=depth,
        num_heads=num_heads,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_num_heads=decoder_num_heads,
    )


# Width, depth, heads of the encoder, then of the decoder: VideoMAE's, but for vit_tiny, which is for a CPU.
MODEL_SIZES = {
    size.name: size
    for size in (
        _size("vit_tiny", 192, 6, 3, 96, 2, 3),
        _size("vit_small", 384, 12, 6, 192, 4, 3),
        _size("vit_base", 768, 12, 12, 384, 4, 6),
        _size("vit_large", 1024, 24, 16, 512, 12, 8),
        _size("vit_huge", 1280, 32, 16, 640, 12, 8),
    )
}


def _check_hardware(config: "TrainConfig | ViewConfig") -> None:
    allowed = {"precision": PRECISIONS, "device": DEVICES, "worker_start": WORKER_STARTS}
    for name, values in allowed.items():
        check(getattr(config, name) in values, name, getattr(config, name), f"one of {', '.join(values)}")


def _check_clip(num_frames: int, stride: int, image_px: int) -> None:
    is_whole = num_frames >= TUBELET_FRAMES and num_frames % TUBELET_FRAMES == 0
    check(is_whole, "num_frames", num_frames, f"a multiple of {TUBELET_FRAMES}")
    check(stride >= 1, "stride", stride, "at least 1")
    is_whole = image_px >= PATCH_PX and image_px % PATCH_PX == 0
    check(is_whole, "image_px", image_px, f"a multiple of {PATCH_PX}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """What pretraining and fine-tuning share."""

    model: str = option("vit_base", f"size of the model: {', '.join(MODEL_SIZES)}")
    attention: str = option("joint", "joint: among all tokens; divided: over time, then over space (TimeSformer)")
    num_frames: int = option(16, "frames of a clip, a multiple of 2")
    stride: int = option(4, "from one frame of a clip to the next, in stored frames (paper: 4; SSv2 2)")
    image_px: int = option(224, "side of the square clip in px, a multiple of 16")
    flip: bool = option(True, "mirror half of the clips (paper: never on SSv2, whose classes know left from right)")
    batch_size: int = option(512, "videos of an optimiser step, over all GPUs and all accumulation steps")
    grad_accum_steps: int = option(1, "split a step into this many smaller ones that add up, to save memory")
    repeats: int = option(1, "clips drawn of each video of a batch; they count neither in batch-size nor in epochs")
    epochs: int = option(800, "passes over the videos")
    warmup_epochs: int = option(40, "epochs over which the learning rate climbs from 0")
    base_lr: float = option(1.5e-4, "learning rate at the end of the warm-up, for 256 videos a step")
    min_lr: float = option(1e-5, "learning rate at the end of the cosine, for 256 videos a step")
    weight_decay: float = option(0.05, "AdamW weight decay of the matrices; biases and norms have none")
    betas: tuple[float, float] = option((0.9, 0.95), "AdamW decay rates of the two moments")
    clip_grad: float = option(0.0, "largest norm of the gradient; 0 does not clip")
    seed: int = option(0, "decides the weights at the start, the order, the crops and the masks")
    num_workers: int = option(4, "processes that read clips, for each GPU; 0 reads in the training process")
    max_unreadable_videos: int = option(
        0, "unreadable videos that do not end the run; each is named, and left out of the loss"
    )
    worker_start: str = option("auto", WORKER_START_HELP)
    precision: str = option("auto", "bf16, fp32, or auto: bf16 on a GPU that has it, fp32 elsewhere")
    device: str = option("auto", "auto, cpu or cuda")
    compile: bool = option(False, "compile the model with torch.compile: slower start, faster steps")
    fsdp: bool = option(
        False, "cut weights, gradients and AdamW's moments up among the GPUs: for models too large for one"
    )
    ema_decay: float = option(0.0, "average the weights over the steps with this decay, save and test that; 0 is off")
    grad_checkpointing: bool = option(
        False, "compute activations twice instead of keeping them: less memory, 30 % slower"
    )
    save_every_epochs: int = option(50, "epochs between the weights kept as epoch-XXXX.safetensors")
    log_every_steps: int = option(10, "optimiser steps between two lines of metrics.jsonl")

    def __post_init__(self) -> None:
        # YAML knows only lists.
        object.__setattr__(self, "betas", tuple(self.betas))
        check(self.model in MODEL_SIZES, "model", self.model, f"one of {', '.join(MODEL_SIZES)}")
        check(self.attention in ATTENTIONS, "attention", self.attention, f"one of {', '.join(ATTENTIONS)}")
        _check_clip(self.num_frames, self.stride, self.image_px)
        self._check_counts()
        self._check_optimiser()
        _check_hardware(self)

    def _check_counts(self) -> None:
        for name in ("batch_size", "grad_accum_steps", "repeats", "epochs", "save_every_epochs", "log_every_steps"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("num_workers", "max_unreadable_videos", "seed", "warmup_epochs"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        is_split = self.batch_size % self.grad_accum_steps == 0
        check(is_split, "batch_size", self.batch_size, f"a multiple of grad_accum_steps, {self.grad_accum_steps}")
        check(self.warmup_epochs <= self.epochs, "warmup_epochs", self.warmup_epochs, f"at most epochs, {self.epochs}")

    def _check_optimiser(self) -> None:
        check(self.base_lr > 0, "base_lr", self.base_lr, "more than 0")
        check(0 <= self.min_lr <= self.base_lr, "min_lr", self.min_lr, f"from 0 to base-lr, {self.base_lr}")
        for name in ("weight_decay", "clip_grad"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "from 0 to below 1")
        is_pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(is_pair, "betas", self.betas, "two numbers from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Pretraining: Table 5 of the paper."""

    mask: str = option("mgm", f"what is masked from the encoder: {', '.join(MASKS)}")
    mask_ratio: float = option(0.75, "share of the tokens that is masked")
    mask_jitter: float = option(0.15, "how far a side of a moving block may stray, as a share of it; 0 is off")
    mask_top_k: int = option(1, "centre the block of mgm on the mean of so many strongest cells (paper: 1)")
    mask_first_guided: bool = option(False, "let the first slice of mgm follow its motion too (paper: random place)")
    guidance: str = option(
        "vectors",
        "what moves the block of mgm: vectors (the codec's, as in the paper); clean (the same, less the camera's "
        "motion and as far as the picture backs them); flow (of `mgm-prep flow`); boxes",
    )
    boxes: str = option("", "folder of MOT files, one a video, for guidance boxes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.mask in MASKS, "mask", self.mask, f"one of {', '.join(MASKS)}")
        check(0 < self.mask_ratio < 1, "mask_ratio", self.mask_ratio, "between 0 and 1")
        check(0 <= self.mask_jitter < 1, "mask_jitter", self.mask_jitter, "from 0 to below 1")
        check(self.mask_top_k >= 1, "mask_top_k", self.mask_top_k, "at least 1")
        check(self.guidance in GUIDANCES, "guidance", self.guidance, f"one of {', '.join(GUIDANCES)}")
        has_boxes = (self.guidance == "boxes") == bool(self.boxes)
        check(has_boxes, "boxes", self.boxes, "a folder for guidance boxes, and none for the others")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Fine-tuning: Table 6 of the paper, Kinetics-400 column; augmentation as in VideoMAE."""

    batch_size: int = option(128, "videos of an optimiser step, over all GPUs and all accumulation steps")
    repeats: int = option(2, "clips drawn of each video of a batch; they count neither in batch-size nor in epochs")
    epochs: int = option(75, "passes over the videos")
    warmup_epochs: int = option(5, "epochs over which the learning rate climbs from 0")
    base_lr: float = option(1e-3, "learning rate of the head at the end of the warm-up, for 256 videos a step")
    min_lr: float = option(1e-6, "learning rate of the head at the end of the cosine, for 256 videos a step")
    betas: tuple[float, float] = option((0.9, 0.999), "AdamW decay rates of the two moments")
    save_every_epochs: int = option(5, "epochs between the weights kept as epoch-XXXX.safetensors")
    init: str = option("", "pretrained weights (an epoch-XXXX.safetensors or a run folder); none starts from chance")
    class_map: str = option("", CLASS_MAP_HELP)
    sampling: str = option(
        "dense", "dense: one run of frames at the stride; segment: one frame of each of num-frames parts"
    )
    layer_decay: float = option(0.75, "factor on the learning rate from each block to the one before it")
    drop_path: float = option(0.1, "chance that the last block is skipped; it grows linearly over the depth")
    fc_dropout: float = option(0.0, "dropout before the head")
    head_init_scale: float = option(0.001, "factor on the head's weights at the start")
    mixup: float = option(0.8, "alpha of Mixup; 0 turns it off")
    cutmix: float = option(1.0, "alpha of CutMix, one box for all frames of a clip; 0 turns it off")
    mix_prob: float = option(1.0, "share of the batches that is mixed")
    mix_switch_prob: float = option(0.5, "share of the mixed batches that gets CutMix where both are on")
    label_smoothing: float = option(0.1, "share of the label that is spread over all classes")
    randaug: str = option("rand-m7-n4-mstd0.5-inc1", "timm RandAugment string; empty turns it off")
    random_erasing: float = option(0.25, "share of the clips with one box erased, the same in all frames")
    crop_min_scale: float = option(0.08, "smallest area of the random crop, as a share of the frame")
    eval_every_epochs: int = option(0, "epochs between two tests with one view a video; 0 never tests in training")
    eval_split: str = option("val", "which videos those tests score: val or test")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.sampling in SAMPLINGS, "sampling", self.sampling, f"one of {', '.join(SAMPLINGS)}")
        check(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "more than 0, at most 1")
        check(0 < self.crop_min_scale <= 1, "crop_min_scale", self.crop_min_scale, "more than 0, at most 1")
        for name in ("drop_path", "fc_dropout", "label_smoothing"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        for name in ("mix_prob", "mix_switch_prob", "random_erasing"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        for name in ("mixup", "cutmix", "head_init_scale"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        every = self.eval_every_epochs
        check(every >= 0, "eval_every_epochs", every, "at least 0")
        # Its processes must call the model equally often, and some test a video more than others.
        check(not (every and self.fsdp), "eval_every_epochs", every, "0 with fsdp")


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Config):
    """Which views of which videos are read, without chance; a model's size and clip shape come from its weights."""

    split: str = option("test", "which videos are scored: test or val")
    class_map: str = option("", CLASS_MAP_HELP)
    stride: int = option(4, "from one frame of a clip to the next, in stored frames (paper: 4; SSv2 2)")
    sampling: str = option(
        "dense", "dense: runs of frames at the stride; segment: interleaved frames of the whole video"
    )
    num_temporal_views: int = option(5, "clips along the video (paper: 5; SSv2 2)")
    num_spatial_views: int = option(3, "square crops along the longer side")
    batch_size: int = option(8, "videos of a step; all views of a video are read at once")
    num_workers: int = option(4, "processes that read clips; 0 reads in this process")
    worker_start: str = option("auto", WORKER_START_HELP)
    precision: str = option("auto", "bf16, fp32, or auto: bf16 on a GPU that has it, fp32 elsewhere")
    device: str = option("auto", "auto, cpu or cuda")

    def __post_init__(self) -> None:
        check(self.sampling in SAMPLINGS, "sampling", self.sampling, f"one of {', '.join(SAMPLINGS)}")
        _check_hardware(self)
        for name in ("stride", "num_temporal_views", "num_spatial_views", "batch_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.num_workers >= 0, "num_workers", self.num_workers, "at least 0")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ViewConfig):
    """Multi-view test of a fine-tuned model."""

    @classmethod
    def while_training(cls, config: FinetuneConfig) -> "EvaluateConfig":
        """One view in the middle of each video, read as fine-tuning reads them."""
        names = ("class_map", "stride", "sampling", "num_workers", "worker_start", "precision", "device")
        kept = {name: getattr(config, name) for name in names}
        return cls(split=config.eval_split, num_temporal_views=1, num_spatial_views=1, **kept)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ViewConfig):
    """Linear probe of a frozen encoder; the paper gives no settings for it."""

    init: str = option("", "weights whose encoder is probed (an epoch-XXXX.safetensors or a run folder)")
    train_temporal_views: int = option(5, "clips along each training video that the heads learn from")
    train_spatial_views: int = option(1, "square crops of each of these; 1 is the middle")
    learning_rates: tuple[float, ...] = option((5e-3, 3e-3, 1e-3, 3e-4, 1e-4), "AdamW learning rates of the heads")
    weight_decays: tuple[float, ...] = option((0.01, 0.1, 0.4, 0.8), "weight decays; each with each learning rate")
    epochs: int = option(50, "passes of the heads over the features")
    head_batch_size: int = option(1024, "clips of a step of the heads")
    held_out: float = option(0.1, "share of each class's training videos by which the head is chosen that counts")
    seed: int = option(0, "decides the order of the clips and the videos held out")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        object.__setattr__(self, "weight_decays", tuple(self.weight_decays))
        for name in ("train_temporal_views", "train_spatial_views", "epochs", "head_batch_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(min(self.learning_rates) > 0, "learning_rates", self.learning_rates, "more than 0 each")
        check(min(self.weight_decays) >= 0, "weight_decays", self.weight_decays, "at least 0 each")
        check(0 < self.held_out < 1, "held_out", self.held_out, "between 0 and 1")
        check(self.seed >= 0, "seed", self.seed, "at least 0")

    def for_training(self) -> "ProbeConfig":
        """The same with the views of the training videos."""
        temporal, spatial = self.train_temporal_views, self.train_spatial_views
        return replace(self, split="train", num_temporal_views=temporal, num_spatial_views=spatial)

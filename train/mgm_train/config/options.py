"""Values, headings and options that several configurations share."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from mgm_shared.config import option

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

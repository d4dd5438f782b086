"""Options that nobody set, chosen from the number of videos, the model and the memory; and warnings about those set.

The defaults are the paper's, for 169,000 videos and many GPUs. A first run on 14 videos needs other numbers. An option
that was given, on the command line, in a recipe or in Python, is never changed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from mgm_shared.config import flag
from mgm_train.config import DetectConfig, FinetuneConfig, PretrainConfig, TrainConfig
from mgm_train.data.loader import Plan
from mgm_train.model_config import ModelConfig
from mgm_train.token_counts import TokenCounts
from mgm_train.training.optim import REFERENCE_BATCH

AnyTrainConfig = TypeVar("AnyTrainConfig", bound=TrainConfig)

# With fewer steps an epoch, the order of the videos hardly varies the batches.
MIN_STEPS_PER_EPOCH = 4
# The paper warms up for 40 of 200 to 800 epochs; for shorter runs a tenth is taken.
MAX_WARMUP_SHARE, WARMUP_SHARE = 0.25, 0.1
# The paper's learning rate for a step of ViT-B (Tables 5 and 6); a narrower model takes a higher one.
PAPER_RATE = {"pretrain": 2.5e-4, "finetune": 5e-4, "detect": 1.25e-4}
PAPER_WIDTH, MAX_RATE = 768, 1e-3
# An effective rate below this share of the suggested one hardly moves the weights.
MIN_RATE_SHARE = 0.1
# In trials small models left the plateau of the pretraining loss after 450 to 750 steps.
MIN_STEPS = {"pretrain": 500, "finetune": 100, "detect": 100}
WANTED_STEPS = 2000
# Activations of a transformer block in bytes, for each token and unit of width, in 16 bits (Korthikanti et al. 2022).
ACTIVATION_BYTES = 34
MEMORY_SHARE = 0.5
# Wider models than vit_tiny take days on a CPU.
MAX_CPU_WIDTH = 192


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the choices depend on: the processes that train together, and the memory of each in bytes."""

    is_gpu: bool
    world_size: int
    memory_bytes: int

    @classmethod
    def of(cls, config: TrainConfig) -> "Machine":
        """This process's device and memory, before the processes meet."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if config.device != "cpu" and torch.cuda.is_available():
            return cls(is_gpu=True, world_size=world_size, memory_bytes=torch.cuda.mem_get_info()[1])
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(is_gpu=False, world_size=world_size, memory_bytes=memory_bytes // world_size)


def choose_options(
    config: AnyTrainConfig, shape: ModelConfig, num_videos: int, machine: Machine, recorded: Mapping[str, Any]
) -> tuple[AnyTrainConfig, list[str]]:
    """Choose the batch size, accumulation, warm-up and learning rate that were not given.

    Args:
        config: The options of the run.
        shape: Its model.
        num_videos: Its training videos.
        machine: Where it runs.
        recorded: The options of an earlier start of the same run, which keeps what was chosen then.

    Returns:
        The options with the chosen ones, and a line for each choice and each warning.
    """
    chosen: dict[str, Any] = {}
    lines: list[str] = []
    for name, choose in (
        ("batch_size", _batch_size),
        ("warmup_epochs", _warmup_epochs),
        ("base_lr", _base_lr),
        ("grad_accum_steps", _grad_accum_steps),
    ):
        if name in config.model_fields_set:
            continue
        value, reason = choose(_with(config, chosen), shape, num_videos, machine)
        if name in recorded and name not in config.changeable():
            value, reason = recorded[name], "as at the start of this run"
        if value != getattr(config, name):
            chosen[name] = value
            lines.append(f"{flag(name)} is {value:.3g}: {reason}")
    if chosen:
        config = config.replace(**chosen)
    return config, [*lines, *warnings(config, shape, num_videos, machine)]


def _with(config: AnyTrainConfig, chosen: Mapping[str, Any]) -> AnyTrainConfig:
    """The options so far, unchecked: they may only fit together when all are chosen."""
    return config.model_copy(update=dict(chosen))


def _batch_size(config: TrainConfig, shape: ModelConfig, num_videos: int, machine: Machine) -> tuple[int, str]:
    """The default, or for small data sets the power of two per process that gives enough steps."""
    largest = min(num_videos // MIN_STEPS_PER_EPOCH, num_videos * config.epochs // WANTED_STEPS)
    if largest >= config.batch_size:
        return config.batch_size, ""
    per_process = max(_clips_multiple(config), largest // machine.world_size)
    value = 2 ** (per_process.bit_length() - 1) * machine.world_size
    return min(value, config.batch_size), f"there are {num_videos} training samples"


def _clips_multiple(config: TrainConfig) -> int:
    """The videos of a micro-step must be a multiple of this: Mixup and CutMix pair the clips of a batch."""
    is_paired = isinstance(config, FinetuneConfig) and bool(config.mixup or config.cutmix)
    return 2 if is_paired and config.repeats % 2 else 1


def _warmup_epochs(config: TrainConfig, shape: ModelConfig, num_videos: int, machine: Machine) -> tuple[int, str]:
    if config.warmup_epochs <= MAX_WARMUP_SHARE * config.epochs:
        return config.warmup_epochs, ""
    return round(WARMUP_SHARE * config.epochs), f"a tenth of {config.epochs} epochs"


def suggested_rate(config: TrainConfig, shape: ModelConfig) -> float:
    """The effective learning rate that suits a model: the paper's for ViT-B, higher for a narrower one."""
    return min(MAX_RATE, PAPER_RATE[_task(config)] * PAPER_WIDTH / shape.width)


def _task(config: TrainConfig) -> str:
    if isinstance(config, DetectConfig):
        return "detect"
    return "pretrain" if isinstance(config, PretrainConfig) else "finetune"


def _base_lr(config: TrainConfig, shape: ModelConfig, num_videos: int, machine: Machine) -> tuple[float, str]:
    suggested = suggested_rate(config, shape)
    if config.base_lr * config.batch_size / REFERENCE_BATCH >= suggested:
        return config.base_lr, ""
    reason = f"it makes the learning rate {suggested:.1e} at batch-size {config.batch_size}, which suits {shape.name}"
    return suggested * REFERENCE_BATCH / config.batch_size, reason


def _grad_accum_steps(config: TrainConfig, shape: ModelConfig, num_videos: int, machine: Machine) -> tuple[int, str]:
    """The fewest micro-steps whose activations fit into half of the memory."""
    clip_bytes = activation_bytes(config, shape, machine)
    per_process = config.batch_size // machine.world_size
    for steps in range(1, per_process + 1):
        num_videos_at_once, rest = divmod(per_process, steps)
        is_whole = not rest and num_videos_at_once % _clips_multiple(config) == 0
        if is_whole and num_videos_at_once * config.repeats * clip_bytes <= MEMORY_SHARE * machine.memory_bytes:
            return steps, f"a micro-step of more clips does not fit into {machine.memory_bytes / 2**30:.0f} GiB"
    return max(1, per_process), "one clip at a time, and even that may not fit into memory"


def activation_bytes(config: TrainConfig, shape: ModelConfig, machine: Machine) -> int:
    """Rough bytes that the forward pass of a clip keeps for the backward pass, with attention that keeps no scores."""
    num_tokens = shape.grid.num_tokens
    num_visible, decoder_units = num_tokens, 0
    if isinstance(config, PretrainConfig):
        counts = TokenCounts.of(shape.grid, config.mask_ratio, drop=config.drop, decode_ratio=config.decode_ratio)
        num_visible = counts.num_visible
        # With cross-attention the visible tokens do not pass through the decoder, but their keys and values are kept.
        decoder_units = (num_visible + counts.num_masked) * shape.decoder_width * shape.decoder_depth
    depth = 1 if config.grad_checkpointing else shape.depth
    units = num_visible * shape.width * depth + decoder_units
    return ACTIVATION_BYTES * units * (1 if machine.is_gpu else 2)


def warnings(config: TrainConfig, shape: ModelConfig, num_videos: int, machine: Machine) -> list[str]:
    """What will keep a run from learning, with the option to set; nothing for the paper's options on its data sets."""
    lines = []
    rate, suggested = config.base_lr * config.batch_size / REFERENCE_BATCH, suggested_rate(config, shape)
    if rate < MIN_RATE_SHARE * suggested:
        lines.append(
            f"warning: the learning rate is only {rate:.1e} (base-lr × batch-size / 256); set --base-lr "
            f"{suggested * REFERENCE_BATCH / config.batch_size:.1g}, which makes it {suggested:.1e}"
        )
    num_steps = num_videos // config.batch_size * config.epochs
    if 0 < num_steps < (least := MIN_STEPS[_task(config)]):
        epochs = -(-least // (num_videos // config.batch_size))
        lines.append(f"warning: {num_steps} steps are too few to learn much; set --epochs {epochs} or more")
    if not machine.is_gpu and shape.width > MAX_CPU_WIDTH:
        lines.append(f"warning: {shape.name} on a CPU takes very long; use --model vit_tiny, or a GPU")
    return lines


def dropped_line(plan: Plan) -> str:
    """What to say of the videos that the incomplete last batch of each epoch leaves out; empty where there are none."""
    num_dropped = plan.num_videos - plan.steps_per_epoch * plan.batch_size
    if not num_dropped:
        return ""
    dropped = f"{num_dropped} of {plan.num_videos} {plan.noun}"
    return f"each epoch leaves out {dropped}, drawn anew: fewer than batch-size remain"

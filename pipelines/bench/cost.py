"""The cost of a pretraining step with each option that makes it cheaper: calculated, and measured on this machine.

A step is forward, backward and fused AdamW on one repeated batch of noise: nothing waits for data. Sides alternate, and
a figure is the median, in CPU seconds on one thread, so that neighbours on the machine count little. A schedule is put
together from the steps of its sizes. The last column is measured over calculated, both relative to MGM.

    python pipelines/bench/cost.py                                       # calculated, ViT-B
    python pipelines/bench/cost.py --model vit_small --rounds 5          # calculated and measured, ViT-S
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import click
import torch

from mgm_train.clip_schedule import Stage
from mgm_train.config import PretrainConfig
from mgm_train.models.flops import forward_flops, mean_flops, mean_gmacs
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.training.losses import PretrainObjective

MGM = "MGM, ratio 0.75"
ROWS: dict[str, dict[str, Any]] = {
    "VideoMAE: tube, ratio 0.9": {"mask": "tube", "mask_ratio": 0.9},
    "VideoMAE V2: the same, `--decode-ratio 0.5`": {"mask": "tube", "mask_ratio": 0.9, "decode_ratio": 0.5},
    MGM: {},
    "`--decode-ratio 0.5`": {"decode_ratio": 0.5},
    "`--decode-ratio 0.25`": {"decode_ratio": 0.25},
    "`--decoder cross`": {"decoder": "cross"},
    "`--decoder cross --decode-ratio 0.25`": {"decoder": "cross", "decode_ratio": 0.25},
    "`--drop 0.3`": {"drop": 0.3},
    "`--drop 0.5`": {"drop": 0.5},
    "EVEREST-like: `--mask random --mask-ratio 0.9 --drop 0.7`": {"mask": "random", "mask_ratio": 0.9, "drop": 0.7},
    "`--image-px 160@0,224@0.8`": {"image_px_schedule": "160@0,224@0.8"},
    "`--image-px 128@0,224@0.8`": {"image_px_schedule": "128@0,224@0.8"},
    "`--num-frames 8@0,16@0.8`": {"num_frames_schedule": "8@0,16@0.8"},
    "`--image-px 128@0,224@0.8 --decoder cross --decode-ratio 0.25`": {
        "image_px_schedule": "128@0,224@0.8",
        "decoder": "cross",
        "decode_ratio": 0.25,
    },
}


@dataclass(frozen=True)
class Side:
    """The step of one stage of a configuration; equal ones are measured once."""

    config: PretrainConfig
    stage: Stage

    @property
    def key(self) -> tuple[Any, ...]:
        """What the time of the step depends on."""
        counts = self.config.counts_of(self.stage)
        return self.config.decoder, self.stage.num_frames, self.stage.image_px, counts.num_visible, counts.num_masked


class Learner:
    """A model and its optimiser, whose rate is 0; all sides with the same kind of decoder share it."""

    def __init__(self, config: PretrainConfig) -> None:
        self.model = build(lambda: VideoMAE(config.shape), seed=0).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)


class Step:
    """Forward, backward and optimiser on one batch, and the CPU seconds that each took."""

    def __init__(self, side: Side, learner: Learner, batch_size: int) -> None:
        shape, counts = side.config.shape_of(side.stage), side.config.counts_of(side.stage)
        self.side, self.learner = side, learner
        generator = torch.Generator().manual_seed(0)
        frames = (batch_size, 3, shape.num_frames, shape.image_px, shape.image_px)
        roles_N = torch.zeros(shape.grid.num_tokens, dtype=torch.int8)
        roles_N[: counts.num_masked] = 1
        roles_N[counts.num_masked : counts.num_masked + counts.num_left_out] = -1
        rows = [roles_N[torch.randperm(len(roles_N), generator=generator)] for _ in range(batch_size)]
        self.batch = {
            "frames_BCTHW": torch.randint(0, 256, frames, generator=generator, dtype=torch.uint8),
            "mask_BN": torch.stack(rows),
            "num_masked": counts.num_masked,
            "num_left_out": counts.num_left_out,
        }
        self.seconds: list[float] = []

    def run(self, is_bf16: bool) -> None:
        """One step."""
        model, optimizer = self.learner.model, self.learner.optimizer
        model.fit_clips(self.side.stage.num_frames, self.side.stage.image_px)
        start_s = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            loss = PretrainObjective()(model, self.batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.process_time() - start_s)


def measured(configs: dict[str, PretrainConfig], batch_size: int, rounds: int, is_bf16: bool) -> dict[str, float]:
    """Median CPU seconds of a step of each row, averaged over its stages."""
    sides = {name: [Side(config, stage) for stage in config.stages] for name, config in configs.items()}
    steps = {side.key: side for several in sides.values() for side in several}
    learners = {config.decoder: Learner(config) for config in configs.values()}
    running = {key: Step(side, learners[side.config.decoder], batch_size) for key, side in steps.items()}
    # The first round warms up, and is not counted.
    for _ in range(rounds + 1):
        for step in running.values():
            step.run(is_bf16)
    seconds = {key: statistics.median(step.seconds[1:]) for key, step in running.items()}
    return {
        name: sum(side.stage.num_epochs * seconds[side.key] for side in several) / configs[name].epochs
        for name, several in sides.items()
    }


def calculated_row(config: PretrainConfig, mgm: PretrainConfig) -> list[str]:
    """GMAC of encoder and decoder and of all, for rows without a schedule, and the whole relative to MGM's step."""
    parts = ["", ""]
    if len(config.stages) == 1:
        counts = config.counts_of(config.stages[0])
        forward = forward_flops(config.shape, counts.num_masked, counts.num_left_out)
        parts = [f"{(forward.embedding + forward.encoder) / 2e9:.1f}", f"{forward.decoder / 2e9:.1f}"]
    return [*parts, f"{mean_gmacs(config):.1f}", f"{mean_flops(config) / mean_flops(mgm):.2f}"]


@click.command()
@click.option("--model", default="vit_base", show_default=True)
@click.option("--batch-size", default=2, show_default=True)
@click.option("--rounds", default=0, show_default=True, help="Measured steps of each side; 0 only calculates.")
@click.option("--bf16", "is_bf16", is_flag=True, help="Autocast to bfloat16.")
def main(model: Any, batch_size: int, rounds: int, is_bf16: bool) -> None:
    """Print a table with a row for each option."""
    torch.set_num_threads(1)
    configs = {name: PretrainConfig(model=model, **row) for name, row in ROWS.items()}
    seconds = measured(configs, batch_size, rounds, is_bf16) if rounds else {}
    header = ["step", "encoder", "decoder", "GMAC", "÷ MGM"]
    header += [f"measured, s for {batch_size} clips", "÷ MGM", "measured ÷ calculated"] if rounds else []
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, config in configs.items():
        cells = [name, *calculated_row(config, configs[MGM])]
        if rounds:
            share = seconds[name] / seconds[MGM]
            ratio = share / (mean_flops(config) / mean_flops(configs[MGM]))
            cells += [f"{seconds[name]:.2f}", f"{share:.2f}", f"{ratio:.2f}"]
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

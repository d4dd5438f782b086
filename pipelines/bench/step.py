"""One pretraining step of ours against transformers' `VideoMAEForPreTraining`: same weights, mask, precision, AdamW.

A step is forward, backward and fused AdamW on one repeated batch that lies on the device: the floor of training without
any data to wait for. Ours starts from uint8 frames and normalises them; theirs is given normalised ones for nothing.
Sides alternate, and a figure is the median. On a CPU it is CPU seconds on one thread, so that it bears neighbours.
MFU counts what our step needs, for both.

    python pipelines/bench/step.py                             # ViT-S and ViT-B, ratio 0.75 and 0.9, CPU
    python pipelines/bench/step.py --device cuda --batch-size 64 --compile
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import profile

from mgm_train.checkpoint.transformers import to_transformers_state, transformers_config
from mgm_train.config import PretrainConfig
from mgm_train.masking.strategies import num_masked
from mgm_train.model_config import model_config
from mgm_train.models.flops import peak, pretrain_flops
from mgm_train.models.videomae import VideoMAE, build, normalise
from mgm_train.training.losses import PretrainObjective

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Loss = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: a model's size, how much is masked, in which precision, where."""

    model: str
    ratio: float
    precision: str
    batch_size: int
    device: torch.device
    num_frames: int
    image_px: int
    compiled: str = ""
    """The mode of torch.compile; empty for eager."""

    @property
    def name(self) -> str:
        compiled = {"": "eager", "default": "compiled"}.get(self.compiled, f"compiled, {self.compiled}")
        return f"{self.model} · ratio {self.ratio} · {self.precision} · batch {self.batch_size} · {compiled}"


class Step:
    """Forward, backward and optimiser of one side, and the seconds that each took."""

    def __init__(self, case: Case, model: torch.nn.Module, loss: Loss) -> None:
        self.case, self.loss = case, loss
        # The rate is 0 so that both sides keep the same weights.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        self.seconds: list[float] = []

    def run(self) -> float:
        """One step; its loss."""
        start_s = self._clock()
        torch.compiler.cudagraph_mark_step_begin()
        dtype = DTYPES[self.case.precision]
        # float16 without the scaled loss of training, which costs next to nothing.
        with torch.autocast(self.case.device.type, dtype, enabled=dtype is not torch.float32):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(self._clock() - start_s)
        return loss.item()

    def _clock(self) -> float:
        if self.case.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def make_steps(case: Case, is_alone: bool) -> dict[str, Step]:
    """Our side and, unless `is_alone`, theirs, each compiled as the case says."""
    shape = model_config(case.model, num_frames=case.num_frames, image_px=case.image_px)
    ours = build(lambda: VideoMAE(shape), seed=0).to(case.device).train()
    batch = make_batch(case, num_masked(shape.grid, case.ratio), shape.grid.num_tokens)
    objective = PretrainObjective.of(PretrainConfig(compile=bool(case.compiled)))
    called: Any = torch.compile(ours, dynamic=False, mode=case.compiled) if case.compiled else ours
    steps = {"ours": Step(case, ours, lambda: objective(called, batch, 0))}
    if is_alone:
        return steps
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    theirs: Any = VideoMAEForPreTraining(VideoMAEConfig(**transformers_config(shape, is_classifier=False)))
    left = theirs.load_state_dict(to_transformers_state(ours.state_dict()), strict=False)
    # Some versions 5 have a bias of the keys, which is zero in a fresh model as it is in ours.
    unknown = [*left.unexpected_keys, *(name for name in left.missing_keys if not name.endswith("key.bias"))]
    assert not unknown, unknown
    theirs = theirs.to(case.device).train()
    frames_BTCHW = normalise(batch["frames_BCTHW"]).transpose(1, 2).contiguous()
    mask_BN = batch["mask_BN"]
    steps["transformers"] = Step(case, theirs, lambda: theirs(frames_BTCHW, bool_masked_pos=mask_BN).loss)
    if case.compiled:
        quick: Any = torch.compile(theirs)
        steps["transformers, compiled"] = Step(case, theirs, lambda: quick(frames_BTCHW, bool_masked_pos=mask_BN).loss)
    return steps


def make_batch(case: Case, num_masked: int, num_tokens: int) -> dict[str, Any]:
    """Noise as frames, and random masks that hide the same number of tokens in every clip."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch_size, 3, case.num_frames, case.image_px, case.image_px)
    frames_BCTHW = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    rows = [torch.randperm(num_tokens, generator=generator) < num_masked for _ in range(case.batch_size)]
    return {
        "frames_BCTHW": frames_BCTHW.to(case.device),
        "mask_BN": torch.stack(rows).to(case.device),
        "num_masked": num_masked,
    }


def measure(case: Case, rounds: int, is_alone: bool) -> dict[str, Any]:
    """Medians of a case's sides, in one dictionary; their losses must agree."""
    steps = make_steps(case, is_alone)
    losses = {name: [step.run() for _ in range(2)][-1] for name, step in steps.items()}
    for name, loss in losses.items():
        assert abs(loss - losses["ours"]) < 0.01 * losses["ours"], (name, losses)
    for step in steps.values():
        step.seconds.clear()
    for _ in range(rounds):
        for step in steps.values():
            step.run()
    seconds = {name: statistics.median(step.seconds) for name, step in steps.items()}
    shape = model_config(case.model, num_frames=case.num_frames, image_px=case.image_px)
    flops = case.batch_size * pretrain_flops(shape, num_masked(shape.grid, case.ratio))
    top = peak(case.device, DTYPES[case.precision])
    return {
        "line": "step",
        "case": case.name,
        "about": {name: getattr(case, name) for name in ("model", "ratio", "precision", "batch_size", "compiled")},
        "peak": vars(top),
        "sides": {
            name: {
                "ms": 1e3 * value,
                "clips_per_s": case.batch_size / value,
                "mfu": flops / value / top.flops_per_s,
                "ours_is_faster": value / seconds["ours"],
            }
            for name, value in seconds.items()
        },
    }


def print_profile(case: Case, is_alone: bool) -> None:
    """Where each side's time goes, by operator."""
    for name, step in make_steps(case, is_alone).items():
        step.run()
        with profile() as recorded:
            step.run()
        order = "self_cpu_time_total" if case.device.type == "cpu" else "self_device_time_total"
        click.echo(f"{case.name}: {name}\n{recorded.key_averages().table(sort_by=order, row_limit=25)}")


@click.command()
@click.option("--model", "models", multiple=True, default=["vit_small", "vit_base"], show_default=True)
@click.option("--ratio", "ratios", multiple=True, type=float, default=[0.75, 0.9], show_default=True)
@click.option(
    "--precision", "precisions", multiple=True, default=["bf16"], show_default=True, help="bf16, fp16 or fp32."
)
@click.option("--batch-size", default=2, show_default=True)
@click.option("--num-frames", default=16, show_default=True)
@click.option("--image-px", default=224, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--compile/--no-compile", "is_compiled", default=False)
@click.option("--compile-mode", default="default", show_default=True, help="As in mgm-train.")
@click.option("--alone", "is_alone", is_flag=True, help="Our side only.")
@click.option("--profile", "is_profile", is_flag=True, help="Print where the time goes, and measure nothing.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also append a line a case to this file.")
def main(
    models: tuple[str, ...],
    ratios: tuple[float, ...],
    precisions: tuple[str, ...],
    rounds: int,
    device: str,
    is_compiled: bool,
    compile_mode: str,
    is_alone: bool,
    is_profile: bool,
    json_file: Path | None,
    **sizes: int,
) -> None:
    """Measure every model at every ratio in every precision."""
    torch.set_num_threads(1)
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    for model in models:
        for ratio in ratios:
            for precision in precisions:
                compiled = compile_mode if is_compiled else ""
                case = Case(model=model, ratio=ratio, precision=precision, device=place, compiled=compiled, **sizes)
                if is_profile:
                    print_profile(case, is_alone)
                    continue
                result = measure(case, rounds, is_alone)
                click.echo(f"{result['case']} · peak {result['peak']['flops_per_s'] / 1e12:.3g} TFLOP/s")
                for name, side in result["sides"].items():
                    click.echo(
                        f"  {name:<24}{side['ms']:9.1f} ms{side['clips_per_s']:9.1f} clips/s  MFU {side['mfu']:4.0%}  "
                        f"÷ ours {side['ours_is_faster']:.2f}"
                    )
                if json_file is not None:
                    with json_file.open("a") as file:
                        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

"""The table of gpu.sh: what a folder of its results holds, as Markdown, and which defaults follow from it.

python pipelines/bench/gpu_table.py OUT
"""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

GOALS = {"MFU": "≥ 45 %", "data wait": "≤ 2 %", "transformers": "≥ 1.7 × transformers"}
# A default changes only for a gain above this: two runs of the same thing differ by as much.
MARGIN = 0.03
NOT_MEASURED = "not measured"

Row = tuple[str, str, str]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Print what OUT holds."""
    lines = [json.loads(line) for line in lines_of(out / "results.jsonl")]
    runs = {run.name.removeprefix("run-"): figures for run in sorted(out.glob("run-*")) if (figures := Run.read(run))}
    click.echo("\n| GPU figure | measured | goal |\n|---|---|---|")
    for figure, measured, goal in [*figures_of_lines(lines), *figures_of_runs(runs)]:
        click.echo(f"| {figure} | {measured} | {goal} |")
    click.echo("\n| option | measured | default that follows |\n|---|---|---|")
    for option, measured, default in defaults(lines, runs):
        click.echo(f"| {option} | {measured} | {default} |")
    for line in lines_of(out / "parts.txt"):
        click.echo(line)


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@dataclass(frozen=True, kw_only=True)
class Run:
    """Medians over the log lines of a training, without the first quarter, which compiles and fills the queues."""

    clips_per_s: float
    mfu: float
    data_wait: float
    memory_gib: float

    @classmethod
    def read(cls, folder: Path) -> "Run | None":
        """None for a run that logged nothing."""
        logged = [row for row in map(json.loads, lines_of(folder / "metrics.jsonl")) if "clips_per_s" in row]
        steady = logged[len(logged) // 4 :]
        if not steady:
            return None
        names = ("clips_per_s", "mfu", "data_wait")
        medians = {name: statistics.median(row[name] or 0 for row in steady) for name in names}
        return cls(**medians, memory_gib=steady[-1]["gpu_memory_gib"] or 0.0)


def figures_of_lines(lines: list[dict[str, Any]]) -> Iterator[Row]:
    """(figure, what was measured, goal) of each line of results.jsonl."""
    for line in lines:
        if line["line"] == "matmul":
            share = f"{line['measured'] / line['peak']:.0%} of the peak ({line['source']})"
            yield f"bf16 matrix product, {line['device']}", f"{line['measured'] / 1e12:.3g} TFLOP/s, {share}", ""
        elif line["line"] == "jpeg":
            on_gpu = f"{line['gpu_ms']:.3f} ms" if "gpu_ms" in line else NOT_MEASURED
            measured = f"{on_gpu}; {line['cpu_ms']:.3f} ms"
            yield f"a JPEG of {line['kib']:.0f} KiB on the GPU; on one CPU core", measured, "kept if it wins"
        elif line["line"] == "loader":
            yield loader_name(line), f"{line['clips_per_s']:.0f} clips/s with {line['workers']} workers", ""
        elif line["line"] == "testing":
            yield f"test of 5×3 views, {line['model']}, from the store", f"{line['views_per_s']:.0f} views/s", ""
        else:
            yield step_figure(line)


def loader_name(line: Mapping[str, Any]) -> str:
    augmented = f", augmented on {line['augment_on']}" if "augment_on" in line else ""
    shared = f" ({line['share']:.0%} on the GPU)" if line["decode_on"] == "hybrid" else ""
    return f"loader alone, {line['task']}, decoded on {line['decode_on']}{shared}{augmented}"


def step_figure(line: Mapping[str, Any]) -> Row:
    sides = line["sides"]
    ours = sides["ours"]
    text = f"{ours['ms']:.1f} ms, {ours['clips_per_s']:.0f} clips/s, MFU {ours['mfu']:.1%}"
    others = [f"{name}: ours {side['ours_is_faster']:.2f} ×" for name, side in sides.items() if name != "ours"]
    return (
        f"step on one repeated batch, {line['case']}",
        "; ".join([text, *others]),
        GOALS["transformers"] if others else "",
    )


def figures_of_runs(runs: Mapping[str, Run]) -> Iterator[Row]:
    for name, run in runs.items():
        yield f"training, {name}", f"{run.clips_per_s:.0f} clips/s, {run.memory_gib:.1f} GiB", ""
        yield f"MFU, {name}", f"{run.mfu:.1%}", GOALS["MFU"]
        yield f"data wait, {name}", f"{run.data_wait:.1%}", GOALS["data wait"]


def defaults(lines: list[dict[str, Any]], runs: Mapping[str, Run]) -> Iterator[Row]:
    """(option, speeds of its values, the default that follows)."""
    speeds = {name: run.clips_per_s for name, run in runs.items()}
    of_decoding = {value: speeds.get(f"pretrain-jpeg-{value}") for value in ("cpu", "cuda", "hybrid")}
    yield chosen("--decode-on", "cpu", of_decoding)
    yield chosen("--augment-on", "cpu", {value: speeds.get(f"finetune-{value}") for value in ("cpu", "cuda")})
    steps = [line for line in lines if line["line"] == "step"]
    yield chosen("--compile", "on", {"off": step_speed(steps, "bf16", ""), "on": step_speed(steps, "bf16", "default")})
    modes = {mode: step_speed(steps, "bf16", mode) for mode in ("default", "reduce-overhead")}
    yield chosen("--compile-mode", "default", modes)
    is_compiled = any(line["about"]["compiled"] for line in steps)
    of_precision = {
        name: step_speed(steps, name, "default" if is_compiled else "") for name in ("bf16", "fp16", "fp32")
    }
    yield chosen("--precision", "bf16", of_precision)
    codecs = {"jpeg": speeds.get("pretrain-jpeg-cpu"), "planes": speeds.get("pretrain-planes-cpu")}
    yield chosen("--frame-codec (of extraction)", "jpeg", codecs)


def step_speed(steps: list[dict[str, Any]], precision: str, compiled: str) -> float | None:
    """Clips/s of our step of the first model at the first ratio; None where it was not measured."""
    for line in steps:
        about, first = line["about"], steps[0]["about"]
        is_same = (about["model"], about["ratio"]) == (first["model"], first["ratio"])
        if is_same and (about["precision"], about["compiled"]) == (precision, compiled):
            return float(line["sides"]["ours"]["clips_per_s"])
    return None


def chosen(option: str, current: str, speed_of: Mapping[str, float | None]) -> Row:
    """The fastest value, if it beats the current default by more than MARGIN."""
    texts = [f"{value} {NOT_MEASURED if speed is None else f'{speed:.0f}'}" for value, speed in speed_of.items()]
    known = {value: speed for value, speed in speed_of.items() if speed is not None}
    measured = f"{', '.join(texts)} clips/s"
    if current not in known or len(known) < 2:
        return option, measured, f"{current}, as it is: nothing to compare"
    best = max(known, key=lambda value: known[value])
    gain = known[best] / known[current] - 1
    if gain <= MARGIN:
        return option, measured, f"{current}, as it is"
    return option, measured, f"**{best}**, which is {gain:.0%} faster than {current}"


if __name__ == "__main__":
    main()

"""The tables of docs/evidence.md and its figure, from the rows of a grid."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

SCRATCH = "scratch"
LABELS = "labels"
# Columns of a grid's rows.
TOP1, PROBE, KNN, LAST_LOSS = "evaluate_top1", "probe_top1", "probe_knn_top1", "pretrain_last_loss"


@dataclass(frozen=True, kw_only=True)
class Line:
    """The runs of one row of a table with one share of the labels: `runs` has a row of the grid for each seed."""

    table: str
    share: str
    name: str
    runs: Sequence[Mapping[str, Any]]

    def values(self, metric: str) -> dict[int, float]:
        """A metric by seed, in percent, of the seeds that have it."""
        return {run["seed"]: 100 * run[metric] for run in self.runs if metric in run}


def read_lines(rows_file: Path) -> list[Line]:
    """The lines of all tables of a grid's `rows.json`, in its order."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in json.loads(rows_file.read_text())["rows"]:
        name = ", ".join(label for axis, label in row["labels"].items() if axis != LABELS)
        groups.setdefault((row["table"], row["labels"].get(LABELS, ""), name), []).append(row)
    return [Line(table=table, share=share, name=name, runs=runs) for (table, share, name), runs in groups.items()]


def markdown(lines: Sequence[Line]) -> Iterator[str]:
    """A Markdown table for each table and share of the labels; differences are paired with scratch by seed."""
    for table, share in dict.fromkeys((line.table, line.share) for line in lines):
        yield f"\n{table}, {share} of the labels\n" if share else f"\n{table}\n"
        yield "| pretraining | top-1 | mean | − scratch (± standard error) | probe | k-NN | last loss |"
        yield "|---|---|---|---|---|---|---|"
        for line in lines:
            if (line.table, line.share) == (table, share):
                yield _row(line, scratch_of(lines, share))


def scratch_of(lines: Sequence[Line], share: str) -> dict[int, float]:
    """The top-1 from scratch by seed with this share of the labels; empty where there is none."""
    found = [line for line in lines if line.name == SCRATCH and line.share == share]
    return found[0].values(TOP1) if found else {}


def _row(line: Line, scratch: Mapping[int, float]) -> str:
    top1 = line.values(TOP1)
    shared = [top1[seed] - scratch[seed] for seed in top1 if seed in scratch and line.name != SCRATCH]
    cells = [line.name, _listed(top1), f"{np.mean(list(top1.values())):.1f}" if top1 else "", difference(shared)]
    cells += [_listed(line.values(metric)) for metric in (PROBE, KNN)]
    cells.append(", ".join(f"{run[LAST_LOSS]:.3f}" for run in line.runs if LAST_LOSS in run))
    return "| " + " | ".join(cells) + " |"


def difference(differences: Sequence[float]) -> str:
    """Mean and standard error over the seeds."""
    if not differences:
        return ""
    mean = f"{np.mean(differences):+.1f}".replace("-", "−")
    return mean if len(differences) < 2 else f"{mean} ± {np.std(differences, ddof=1) / len(differences) ** 0.5:.1f}"


def _listed(values: Mapping[int, float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values.values())


def figure(lines: Sequence[Line]) -> Figure:
    """Top-1 of each row, a panel for each share of the labels: the mean, and a dot for each seed."""
    shares = list(dict.fromkeys(line.share for line in lines))
    drawn = Figure(figsize=(8, 0.5 + 0.28 * max(_count(lines, share) for share in shares)), layout="constrained")
    for axis, share in zip(np.atleast_1d(drawn.subplots(1, len(shares))), shares, strict=True):
        members = [line for line in lines if line.share == share]
        for height, line in enumerate(members):
            values = list(line.values(TOP1).values())
            axis.plot(values, [height] * len(values), "o", color="#4878a8", alpha=0.6, markersize=5)
            axis.plot(np.mean(values), height, "|", color="black", markersize=14)
        axis.set_yticks(range(len(members)), [line.name for line in members], fontsize=8)
        axis.invert_yaxis()
        for mean in [np.mean(list(scratch.values())) for scratch in [scratch_of(lines, share)] if scratch]:
            axis.axvline(float(mean), color="grey", linewidth=0.8, linestyle="--")
        axis.set_xlabel(f"top-1, % ({share} of the labels)" if share else "top-1, %", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
    return drawn


def _count(lines: Sequence[Line], share: str) -> int:
    return sum(line.share == share for line in lines)

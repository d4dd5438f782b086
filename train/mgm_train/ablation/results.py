"""The results of an ablation: mean and std over the seeds of each row, as tables and as a plot.

The layout follows the paper's Table 4 and Figure 4: a table has a row for each label. If the labels are numbers, the
plot is a curve.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgm_shared.figures import FONT_POINTS, PAGE_INCHES, panels, save
from mgm_shared.files import replace_text
from mgm_shared.json_text import to_json
from mgm_train.ablation.grid import TESTS, GridRow, Run, Table
from mgm_train.ablation.runner import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC = "top1"
# What a test prints of each run's accuracy.
SCORES = ("top1", "top5", "knn_top1", "scored", "listed")
# What a training prints of its cost.
COSTS = ("num_steps", "num_epochs", "last_loss", "flops", "wall_s")
# The colours of Okabe and Ito, without yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The accuracies of a row's finished runs in percent, by seed; and the reasons of the failed runs, by seed."""

    labels: tuple[str, ...]
    values: Mapping[int, float]
    failures: Mapping[int, str]
    num_missing: int
    num_unscored: int
    num_videos: int = 0
    """Videos of the test, in the run with the most."""

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation; None for a single run."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if self.mean is None:
            return "failed" if self.failures else "not run"
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")

    @property
    def remark(self) -> str:
        """The runs and the videos that the mean does not include, in words."""
        by_reason: dict[str, list[str]] = {}
        for seed, reason in self.failures.items():
            by_reason.setdefault(reason, []).append(str(seed))
        remarks = [f"seed {', '.join(seeds)}: {reason}" for reason, seeds in by_reason.items()]
        if self.num_missing and self.values:
            remarks.append(f"{self.num_missing} not run")
        if self.num_unscored:
            remarks.append(f"{self.num_unscored} videos could not be read")
        return "; ".join(remarks)


def tabulate(table: Table, outcomes: Mapping[str, RunResult]) -> list[Result]:
    """The result of each row. `outcomes` maps the names of runs to their results."""
    return [_result(row, outcomes) for row in table.rows]


def _result(row: GridRow, outcomes: Mapping[str, RunResult]) -> Result:
    found = {run.seed: outcomes[run.name] for run in row.runs}
    return Result(
        labels=row.labels,
        values={seed: 100 * outcome.scores[METRIC] for seed, outcome in found.items() if outcome.scores},
        failures={seed: outcome.reason for seed, outcome in found.items() if outcome.reason},
        num_missing=sum(not outcome.scores and not outcome.reason for outcome in found.values()),
        num_unscored=sum(outcome.num_unscored for outcome in found.values()),
        num_videos=max((outcome.scores["listed"] for outcome in found.values() if outcome.scores), default=0),
    )


def write_results(tables: Sequence[Table], outcomes: Mapping[str, RunResult], out: Path) -> dict[str, Any]:
    """Write results.md, results.json and results.png; what is in the second."""
    files = {kind: out / f"results.{kind}" for kind in ("md", "json", "png")} | {"rows": out / "rows.jsonl"}
    values = {
        "folder": str(out),
        "tables": [plain(table, outcomes) for table in tables],
        "runs": {name: {**outcome.scores, "reason": outcome.reason} for name, outcome in outcomes.items()},
        "files": {kind: str(file) for kind, file in files.items()},
    }
    text = "\n".join(markdown(table, outcomes) for table in tables)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(files["md"], text)
    replace_text(files["rows"], "".join(to_json(row) + "\n" for row in run_rows(tables, outcomes)))
    replace_text(files["json"], to_json(values, indent=2) + "\n")
    save(plot(tables, outcomes), files["png"])
    return values


def run_rows(tables: Sequence[Table], outcomes: Mapping[str, RunResult]) -> list[dict[str, Any]]:
    """A row for each run and table with a finished test: its labels, seed and scores, and the cost of its stages."""
    return [
        _run_row(table, row, run, outcomes[run.name].records)
        for table in tables
        for row in table.rows
        for run in row.runs
        if outcomes[run.name].records.keys() & set(TESTS)
    ]


def _run_row(table: Table, row: GridRow, run: Run, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    values = {
        f"{task}_{name}": records[task][name]
        for tasks, names in ((TESTS, SCORES), (("pretrain", "finetune"), COSTS))
        for task in tasks
        for name in names
        if name in records.get(task, {})
    }
    labels = dict(zip([axis.name for axis in table.axes], row.labels, strict=True))
    return {"table": table.name, "labels": labels, "seed": run.seed, **values, "run": run.name}


def markdown(table: Table, outcomes: Mapping[str, RunResult]) -> str:
    """A table of the paper's kind: `| mask | top-1 |`."""
    names = [axis.name for axis in table.axes]
    rows = [[*result.labels, str(result), result.remark] for result in tabulate(table, outcomes)]
    header = [*names, "top-1", "remark"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([f"**{table.name}**", "", *lines, ""])


def plain(table: Table, outcomes: Mapping[str, RunResult]) -> dict[str, Any]:
    """A table as plain values for JSON."""
    rows = [
        {
            "labels": dict(zip([axis.name for axis in table.axes], result.labels, strict=True)),
            "mean": result.mean,
            "std": result.std,
            "values": {str(seed): value for seed, value in result.values.items()},
            "failures": {str(seed): reason for seed, reason in result.failures.items()},
            "not_run": result.num_missing,
        }
        for result in tabulate(table, outcomes)
    ]
    return {"table": table.name, "metric": METRIC, "unit": "percent", "rows": rows}


def plot(tables: Sequence[Table], outcomes: Mapping[str, RunResult]) -> "Figure":
    """A panel per table: curves if an axis has numbers, otherwise a mark per row. Error bars are the std."""
    num_columns = min(2, len(tables))
    width_inches = PAGE_INCHES * num_columns / 2
    num_rows = -(-len(tables) // num_columns)
    figure, axes = panels(num_rows, num_columns, (5, 8), width_inches=width_inches, gap_inches=0.06)
    for axis in axes.flat[len(tables) :]:
        axis.remove()
    for axis, table in zip(axes.flat, tables, strict=False):
        axis.spines[["left", "bottom"]].set_visible(True)
        axis.tick_params(labelsize=FONT_POINTS)
        axis.grid(linewidth=0.3, alpha=0.6)
        results = tabulate(table, outcomes)
        axis.set_title(f"{table.name}\n{sample_line(results)}", fontsize=FONT_POINTS)
        numeric = [number for number, varied in enumerate(table.axes) if varied.numbers]
        if numeric and any(result.values for result in results):
            _curves(axis, table, results, numeric[-1])
        else:
            _marks(axis, results)
    return figure


def sample_line(results: Sequence[Result]) -> str:
    """Of how many runs, seeds and videos the marks are the mean, in words: `mean ± std, n = 3 (seeds 0, 1, 2)`."""
    counts = sorted({len(result.values) for result in results if result.values})
    if not counts:
        return "no finished run"
    seeds = sorted({seed for result in results for seed in result.values})
    num_runs = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    what = "mean ± std, " if counts[-1] > 1 else ""
    videos = max(result.num_videos for result in results)
    named = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    return f"{what}{num_runs} ({named}), {videos:,} test videos"


def _curves(axis: "Axes", table: Table, results: Sequence[Result], number: int) -> None:
    """Accuracy over a numeric axis, with a curve for each combination of the other axes."""
    varied = table.axes[number]
    series: dict[str, list[Result]] = {}
    for result in results:
        others = [label for place, label in enumerate(result.labels) if place != number]
        series.setdefault(", ".join(others), []).append(result)
    for colour, marker, (name, members) in zip(COLOURS * 9, "osD^v<>" * 9, series.items(), strict=False):
        done = [one for one in members if one.mean is not None]
        points = sorted((varied.numbers[one.labels[number]], one.mean, one.std or 0.0) for one in done)
        if not points:
            continue
        line = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1, "capsize": 2, "label": name}
        axis.errorbar(*zip(*points, strict=True), **line)  # type: ignore[arg-type]
    axis.set_xticks(sorted(varied.numbers.values()))
    axis.set_xlabel(varied.name, fontsize=FONT_POINTS)
    axis.set_ylabel("top-1, %", fontsize=FONT_POINTS)
    axis.margins(y=0.15)
    axis.yaxis.set_major_locator(_ticks())
    if any(series):
        axis.legend(fontsize=FONT_POINTS - 1, frameon=False)


def _marks(axis: "Axes", results: Sequence[Result]) -> None:
    """A mark per row, with its label on the left and its value above."""
    for y, result in enumerate(results):
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": FONT_POINTS - 1}
        if result.mean is None:
            axis.text(0.5, y, str(result), color="0.4", transform=axis.get_yaxis_transform(), **style)
            continue
        bar: dict[str, Any] = {"color": COLOURS[0], "marker": "o", "markersize": 4, "linewidth": 1, "capsize": 2}
        axis.errorbar(result.mean, y, xerr=result.std, **bar)
        dots: dict[str, Any] = {"color": COLOURS[1], "marker": ".", "markersize": 3, "linestyle": "none", "zorder": 3}
        axis.plot(list(result.values.values()), [y] * len(result.values), **dots)
        axis.annotate(str(result), (result.mean, y), (0, 8), textcoords="offset points", **style)
    axis.set_yticks(range(len(results)), [", ".join(result.labels) for result in results])
    axis.set_ylim(len(results) - 0.5, -0.7)
    axis.set_xlabel("top-1, %", fontsize=FONT_POINTS)
    axis.margins(x=0.2)
    axis.xaxis.set_major_locator(_ticks())


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)

"""Curves of runs side by side: loss, learning rate, gradient, throughput, waiting, tests while training."""

import math
from collections.abc import Sequence

import numpy as np

from mgm_shared.report.blocks import Block, Cell, Chart, Grid, Notes, Section, Table, Tile, Tiles
from mgm_shared.report.charts import Series, lines, short
from mgm_train.run_report.records import RunRecord

TITLES = {"pretrain": "Pretraining", "finetune": "Fine-tuning", "detect": "Action detection"}
# The metric of the tests while training: its name in metrics.jsonl, title and unit.
TESTED = {
    "finetune": ("top1", "Accuracy while training, one view", "top-1, %"),
    "detect": ("mean_ap", "Frame mAP while training", "mAP, %"),
}
# More curves than that cannot be told apart.
MAX_RUNS, NUM_COLOURS = 12, 6
# Waiting for data more than this share of the time costs more than it should.
MUCH_WAITING = 0.2


def training_sections(runs: Sequence[RunRecord]) -> list[Section]:
    """A section for each kind of training, with the curves of its runs."""
    sections = []
    for task, title in TITLES.items():
        all_of_task = [run for run in runs if run.task == task and run.loss_rows]
        if chosen := all_of_task[:MAX_RUNS]:
            num_left = len(all_of_task) - len(chosen)
            about = f"The first {len(chosen)} of {len(all_of_task)} runs." if num_left else ""
            sections.append(Section(title=title, blocks=_curves(chosen, task), about=about))
    return sections


def _curves(runs: Sequence[RunRecord], task: str) -> list[Block]:
    guesses = {run.blind_guess for run in runs if math.isfinite(run.blind_guess)}
    meaning = "the mean of each patch" if task == "pretrain" else "all classes alike"
    rules = [(guess, f"a blind guess: {guess:.3g}") for guess in sorted(guesses)]
    caption = f"A model that predicts {meaning} has the loss of the dotted line." if rules else ""
    loss = lines(
        "Loss", _series(runs, "loss"), x_label="step", y_label="loss", rules=rules, caption=caption, is_tall=True
    )
    charts: list[Block] = [
        *_target_charts(runs),
        _chart("Learning rate", runs, "lr", "learning rate"),
        _chart("Norm of the gradient", runs, "grad_norm", "norm"),
        _chart("Throughput", runs, "clips_per_s", "clips a second"),
        _chart("Waiting for data", runs, "data_wait", "% of the time", factor=100),
    ]
    if any(math.isfinite(value) for run in runs for value in run.column("gpu_memory_gib")):
        charts.append(_chart("GPU memory", runs, "gpu_memory_gib", "GiB"))
    if tests := _test_chart(runs, task):
        charts.insert(0, tests)
    return [loss, Grid(blocks=charts)]


def _series(runs: Sequence[RunRecord], name: str, factor: float = 1.0) -> list[Series]:
    return [
        Series(
            name=run.name,
            x_P=run.column("step"),
            y_P=[factor * value for value in run.column(name)],
            is_dashed=place >= NUM_COLOURS,
        )
        for place, run in enumerate(runs)
    ]


def _chart(title: str, runs: Sequence[RunRecord], name: str, unit: str, factor: float = 1.0) -> Chart:
    return lines(title, _series(runs, name, factor), x_label="step", y_label=unit, floor=0.0)


def _target_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The loss of each target of the runs with several."""
    names = sorted({name for run in runs for row in run.loss_rows for name in row if name.startswith("loss_")})
    return [_chart(f"Loss of the target {name.removeprefix('loss_')}", runs, name, "loss") for name in names]


def _test_chart(runs: Sequence[RunRecord], task: str) -> Chart | None:
    """Accuracies of the tests between epochs, or the mAP of an action detector."""
    metric, title, unit = TESTED.get(task, TESTED["finetune"])
    series = [
        Series(name=f"{run.name}, {split.replace('_', ' ')}", x_P=epochs, y_P=shares)
        for run in runs
        for split, (epochs, shares) in run.tests_while_training(metric).items()
    ]
    return lines(title, series, x_label="epoch", y_label=unit, floor=0.0) if series else None


def run_table(runs: Sequence[RunRecord]) -> Table:
    """A row for each run: how far it is, its losses, its speed, its accuracy."""
    columns = ["run", "task", "steps", "epochs", "loss, first", "loss, last", "top-1, %", "clips/s", "waiting, %"]
    rows: list[list[Cell]] = []
    for run in runs:
        losses = run.column("loss")
        test = run.tests[-1] if run.tests else None
        rows.append(
            [
                run.name,
                run.task,
                int(run.loss_rows[-1]["step"]) if losses else None,
                f"{run.loss_rows[-1]['epoch']} of {run.options.get('epochs', '?')}" if losses else None,
                losses[0] if losses else None,
                losses[-1] if losses else None,
                round(100 * test.top1, 1) if test and math.isfinite(test.top1) else None,
                _median(run.column("clips_per_s")),
                _percent(run.column("data_wait")),
            ]
        )
    return Table(columns=columns, rows=rows)


def _median(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return float(f"{np.median(finite):.3g}") if finite else None


def _percent(values: Sequence[float]) -> float | None:
    middle = _median(values)
    return None if middle is None else round(100 * middle, 1)


def run_tiles(run: RunRecord) -> Tiles:
    """The numbers of a single run."""
    losses, tiles = run.column("loss"), [Tile(value=run.task, name="task", remark=str(run.options.get("model", "")))]
    if losses:
        last = run.loss_rows[-1]
        epochs = f"epoch {last['epoch']} of {run.options.get('epochs', '?')}"
        tiles.append(Tile(value=f"{last['step']:,}", name="steps", remark=epochs))
        tiles.append(Tile(value=f"{losses[-1]:.4g}", name="loss", remark=f"from {losses[0]:.4g}"))
        tiles.append(Tile(value=short(last["num_clips"]), name="clips seen"))
        speed, waiting = _median(run.column("clips_per_s")), _percent(run.column("data_wait"))
        tiles.append(Tile(value=f"{speed or 0:g}", name="clips a second", remark=f"{waiting or 0:g} % waiting"))
    for test in run.tests:
        remark = f"{test.num_scored:,} videos, {len(test.classes):,} classes"
        tiles.append(Tile(value=f"{test.top1:.1%}", name=f"top-1 on {test.split}", remark=remark))
    return Tiles(tiles=tiles)


def remarks(runs: Sequence[RunRecord]) -> Notes | None:
    """What may be wrong with runs, in sentences; None where nothing is."""
    lines_ = [line for run in runs for line in _remarks(run)]
    return Notes(lines=lines_, is_warning=True) if lines_ else None


def _remarks(run: RunRecord) -> list[str]:
    found: list[str] = []
    if run.task != "probe" and not run.loss_rows:
        return [f"{run.name}: has logged no loss yet."]
    if run.task != "probe" and not run.is_complete:
        found.append(f"{run.name}: unfinished; the command that began it continues it.")
    losses = [loss for loss in run.column("loss") if math.isfinite(loss)]
    if losses and losses[-1] >= run.blind_guess:
        found.append(f"{run.name}: its last loss, {losses[-1]:.3f}, is not below a blind guess, {run.blind_guess:.3f}.")
    waiting = _median(run.column("data_wait"))
    if waiting is not None and waiting > MUCH_WAITING:
        found.append(f"{run.name}: waits for data {waiting:.0%} of the time; more --num-workers, or a `planes` store.")
    if run.unreadable:
        names = ", ".join(list(run.unreadable)[:3])
        found.append(f"{run.name}: {len(run.unreadable)} unreadable videos were left out, such as {names}.")
    return found

"""Pretrain, fine-tune and test every run of a grid, and tabulate the accuracies (paper Table 4, Figure 4)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgm_shared.lock import one_writer
from mgm_shared.progress import SILENT, Progress
from mgm_shared.store import open_store
from mgm_train.ablation import runner
from mgm_train.ablation.grid import NO_PRETRAINING, SAME_STORE, Run, Table, choose, read_grid, runs_of
from mgm_train.ablation.results import markdown, write_results
from mgm_train.ablation.runner import Ablation, RunResult, check_records, progress_of


@dataclass(frozen=True, kw_only=True)
class AblateResult:
    """The tables of a grid with their accuracies, as text and as values, and how it ended."""

    tables: list[str]
    """Each chosen table in Markdown."""
    values: dict[str, Any]
    """What `results.json` holds."""
    is_stopped: bool
    is_partial: bool
    """Whether a run failed, or some videos of a test could not be read."""


def ablate(
    grid: str | os.PathLike[str],
    store: str | os.PathLike[str],
    run: str | os.PathLike[str] | None = None,
    *,
    tables: Sequence[str] = (),
    gpus: int = 1,
    progress: Progress = SILENT,
) -> AblateResult:
    """Run every run of a grid file that is not finished, each in a process of its own, and tabulate all of them.

    The same call again continues: finished runs are kept, failed ones are tried again. `results.md`, `results.json` and
    `results.png` in the folder hold the tables, `rows.jsonl` a line for each run.

    Args:
        grid: YAML file; see `mgm_train.ablation.grid`.
        store: Path or URL of a store.
        run: Folder of all runs; by default `runs/GRID`.
        tables: Names of the tables to run; by default all.
        gpus: GPUs that share the work of a run, by torchrun.
        progress: Hears which run begins and which failed.

    Raises:
        UserError: The grid has a setting that does not exist, or a finished run had other settings.
    """
    out, all_tables, chosen, runs, digests = _read(grid, store, run, tables)
    ablation = Ablation(out, str(store), digests, runner.launcher(gpus), progress.say)
    with one_writer(out, progress.say):
        ablation.run(runs)
        outcomes = {one.name: ablation.outcome(one) for one in runs_of(all_tables)}
        values = write_results(all_tables, outcomes, out)
    return AblateResult(
        tables=[markdown(table, outcomes) for table in chosen],
        values=values,
        is_stopped=ablation.stop.is_asked,
        is_partial=_is_partial(outcomes),
    )


def preview_ablate(
    grid: str | os.PathLike[str],
    store: str | os.PathLike[str],
    run: str | os.PathLike[str] | None = None,
    *,
    tables: Sequence[str] = (),
) -> dict[str, str]:
    """How far each run of a grid is, by its name: `new`, `pretrain begun`, … `evaluate done`."""
    out, _, _, runs, _ = _read(grid, store, run, tables)
    return {one.name: progress_of(one, out, str(store)) for one in runs}


def _is_partial(outcomes: Mapping[str, RunResult]) -> bool:
    return any(outcome.is_partial for outcome in outcomes.values())


def folder_of(grid: str | os.PathLike[str], run: str | os.PathLike[str] | None) -> Path:
    """The folder of all runs of a grid: `run`, or `runs/GRID`."""
    return Path(run) if run else Path("runs") / Path(grid).stem


def _read(
    grid: str | os.PathLike[str],
    store: str | os.PathLike[str],
    run: str | os.PathLike[str] | None,
    names: Sequence[str],
) -> tuple[Path, list[Table], list[Table], list[Run], dict[str, str]]:
    out, tables = folder_of(grid, run), read_grid(Path(grid))
    chosen = choose(tables, names)
    runs = runs_of(chosen)
    others = {run.pretrain_on for run in runs} - {SAME_STORE, NO_PRETRAINING}
    digests = {path: open_store(path).select().digest for path in (str(store), *sorted(others))}
    check_records(runs, out, str(store), digests)
    return out, tables, chosen, runs, digests

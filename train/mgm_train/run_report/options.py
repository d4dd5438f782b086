"""The options of runs side by side: what differs, and what is not the default."""

from collections.abc import Sequence
from typing import Any

from mgm_shared.report.blocks import Block, Cell, Details, Notes, Table
from mgm_train.run_report.records import CONFIGS, RunRecord

ABSENT = "–"


def option_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """For each task: of several runs the options that differ, of one run those that are not the default; then all."""
    blocks: list[Block] = []
    for task in dict.fromkeys(run.task for run in runs):
        of_task = [run for run in runs if run.task == task]
        blocks.append(_only_default(of_task[0]) if len(of_task) == 1 else _differing(task, of_task))
        blocks.append(Details(summary=f"All options of {task}", blocks=[_table("", of_task, _names(of_task))]))
    return blocks


def _names(runs: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.options))


def _differing(task: str, runs: Sequence[RunRecord]) -> Block:
    chosen = [name for name in _names(runs) if len({_text(run, name) for run in runs}) > 1]
    if not chosen:
        return Notes(lines=[f"All options of the runs of {task} are the same."])
    return _table(f"{task}: options that differ", runs, chosen)


def _only_default(run: RunRecord) -> Block:
    chosen = [name for name in run.options if not _is_default(run, name)]
    if not chosen:
        return Notes(lines=[f"All options of {run.name} have their defaults."])
    rows: list[list[Cell]] = [[name, _text(run, name), str(_default(run, name))] for name in chosen]
    title = f"{run.task}: options that are not the default"
    return Table(title=title, columns=["option", run.name, "default"], rows=rows)


def _table(title: str, runs: Sequence[RunRecord], names: Sequence[str]) -> Table:
    rows: list[list[Cell]] = [[name, *(_text(run, name) for run in runs)] for name in names]
    return Table(title=title, columns=["option", *(run.name for run in runs)], rows=rows)


def _text(run: RunRecord, name: str) -> str:
    return str(run.options[name]) if name in run.options else ABSENT


def _default(run: RunRecord, name: str) -> Any:
    field = CONFIGS[run.task].model_fields.get(name)
    default = field.default if field else ABSENT
    return list(default) if isinstance(default, tuple) else default


def _is_default(run: RunRecord, name: str) -> bool:
    return bool(run.options[name] == _default(run, name))


def machine_table(runs: Sequence[RunRecord]) -> Details:
    """Where the runs ran, and with which versions."""
    rows: list[list[Cell]] = []
    for run in runs:
        packages = run.environment.get("packages", {})
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        gpus = ", ".join(run.environment.get("gpus", [])) or "none"
        python, cpus = (str(run.environment.get(key, ABSENT)) for key in ("python", "num_cpus"))
        rows.append([run.name, gpus, cpus, python, versions])
    table = Table(columns=["run", "GPUs", "CPUs", "Python", "libraries"], rows=rows)
    return Details(summary="Machines and versions", blocks=[table])

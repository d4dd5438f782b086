"""Options and output that the commands of mgm-prep share."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from mgm_prep.runtime.execution import Execution
from mgm_shared.cli import EXIT_INTERRUPTED, EXIT_SOME_FAILED, complain, emit, json_option, shown_progress
from mgm_shared.cores import num_usable_cores
from mgm_shared.signals import raise_on_sigterm

path_argument = click.Path(path_type=Path)
fold_option = click.option(
    "--fold",
    type=click.IntRange(1, 3),
    default=1,
    show_default=True,
    help="Official split to use when FILE is a folder with several (UCF101, HMDB51).",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Number of worker processes; 0 works in this process.  [default: the number of cores]",
)
scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Address or scheduler file of an existing Dask cluster to use instead of local workers.",
)


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """What a command prints on stdout."""

    values: dict[str, Any]
    problem: str = ""
    """What failed, if something did: printed on stderr, and the exit code is 3."""

    @staticmethod
    def of(summary: Any, problem: str = "") -> "CommandResult":
        """The result of a command whose function returned a dataclass."""
        return CommandResult(values=asdict(summary), problem=problem)


def prints_result(command: Callable[..., CommandResult]) -> Any:
    """Add --json, and print the `CommandResult` that the command returns."""

    @functools.wraps(command)
    def printing(is_json: bool, **arguments: Any) -> None:
        result = command(**arguments)
        emit(result.values, is_json)
        if result.problem:
            complain(result.problem)
            raise SystemExit(EXIT_SOME_FAILED)

    return json_option(printing)


def execution_options(command: Callable[..., Any]) -> Any:
    """Add --workers and --scheduler. The command receives an `execution` with a progress bar.

    SIGTERM stops the command as Ctrl-C does, with exit code 130.
    """

    @functools.wraps(command)
    def stoppable(workers: int | None, scheduler: str | None, **arguments: Any) -> Any:
        raise_on_sigterm()
        num_workers = num_usable_cores() if workers is None else workers
        try:
            with shown_progress() as progress:
                execution = Execution(workers=num_workers, scheduler=scheduler, progress=progress)
                return command(execution=execution, **arguments)
        except KeyboardInterrupt:
            complain("stopped; run the same command again to continue")
            raise SystemExit(EXIT_INTERRUPTED) from None

    return workers_option(scheduler_option(stoppable))

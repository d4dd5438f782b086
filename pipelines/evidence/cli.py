"""The command line of the evidence runs."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from evidence.data import FULL, SMALL, TOY, full_stores, small_store
from evidence.grids import run_grids, write_grid
from evidence.leak import read_errors
from evidence.report import figure, markdown, read_lines
from mgm_shared.errors import UserError
from mgm_shared.progress import TerminalProgress

SEEDS = (0, 1, 2)


@click.group()
def main() -> None:
    """Measure what pretraining and the masks are worth. pipelines/bench/PROTOCOL.md says how, docs/evidence.md what."""


def options(seeds: Sequence[int]) -> Callable[[Any], Any]:
    """The options of both grids."""
    existing = click.Path(path_type=Path, exists=True)
    declared = (
        click.argument("out", type=click.Path(path_type=Path)),
        click.option("--corpus", required=True, type=existing, help="Folder of pipelines/corpus.py."),
        click.option(
            "--seed", "seeds", multiple=True, type=int, default=seeds, show_default=True, help="May be repeated."
        ),
        click.option("--table", "tables", multiple=True, help="Only this table; may be repeated.  [default: all]"),
        click.option("--dry-run", "is_dry_run", is_flag=True, help="Every row at toy size; it measures nothing."),
    )

    def decorate(command: Any) -> Any:
        for declare in reversed(declared):
            command = declare(command)
        return command

    return decorate


@main.command()
@options(SEEDS)
def small(out: Path, corpus: Path, seeds: tuple[int, ...], tables: tuple[str, ...], is_dry_run: bool) -> None:
    """Run the reduced grid on one core into OUT. The same call again continues where it stopped.

    A second program with other seeds can run beside it.
    """
    # One thread: the results do not depend on the number of cores, and two such programs do not slow each other down.
    os.environ["OMP_NUM_THREADS"] = "1"

    def run() -> list[dict[str, Any]]:
        store = small_store(corpus, out, TOY if is_dry_run else SMALL)
        grids = {seed: write_grid("small", out, seed, stores={}, is_dry_run=is_dry_run) for seed in seeds}
        return run_grids(grids, store, out / "small", tables=tables, progress=TerminalProgress())

    _report(run, out / "small")


@main.command()
@options(SEEDS[:1])
@click.option(
    "--motion50",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Folder of pipelines/motion50.",
)
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(1))
def full(
    out: Path,
    corpus: Path,
    motion50: Path,
    seeds: tuple[int, ...],
    tables: tuple[str, ...],
    gpus: int,
    is_dry_run: bool,
) -> None:
    """Run the full grid on a GPU into OUT. The same call again continues where it stopped."""

    def run() -> list[dict[str, Any]]:
        stores = full_stores(corpus, motion50, out, TOY if is_dry_run else FULL)
        more: dict[str, Any] = {
            "stores": {"corpus": stores["corpus"]},
            "boxes": motion50 / "boxes",
            "is_dry_run": is_dry_run,
        }
        grids = {seed: write_grid("full", out, seed, **more) for seed in seeds}
        where = stores["motion50"], out / "full"
        return run_grids(grids, *where, tables=tables, gpus=gpus, progress=TerminalProgress())

    _report(run, out / "full")


@main.command()
@click.argument("rows", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--figure", "figure_file", type=click.Path(path_type=Path), help="Draw the accuracies into this file.")
def report(rows: Path, figure_file: Path | None) -> None:
    """Print the tables of ROWS, the file rows.json of a grid, as Markdown."""
    lines = read_lines(rows)
    click.echo("\n".join(markdown(lines)).strip())
    if figure_file is not None:
        figure(lines).savefig(figure_file)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--store", required=True, type=click.Path(path_type=Path, exists=True), help="The store of the runs.")
def leak(runs: tuple[Path, ...], store: Path) -> None:
    """Print what pretraining RUNS predict of their targets with the pixels of a clip, and what by its mask alone."""
    click.echo("| run | target | clip | grey pixels | another clip | predicting 0 |\n|---|---|---|---|---|---|")
    for run in runs:
        for name, one in read_errors(run, store).items():
            errors = " | ".join(f"{value:.3f}" for value in (one.clip, one.grey, one.other_clip, one.zeros))
            click.echo(f"| {run.parent.name} | {name} | {errors} |")


def _report(run: Callable[[], list[dict[str, Any]]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    try:
        rows = run()
    except UserError as error:
        click.echo(f"evidence: {error}", err=True)
        sys.exit(2)
    click.echo(f"{len(rows)} finished runs in {out / 'rows.json'}")

"""The command line of the evidence runs."""

import os
import sys
from pathlib import Path

import click

from evidence.data import Sizes, make_stores
from evidence.grids import run_grid, write_grid
from mgm_shared.errors import UserError
from mgm_shared.progress import TerminalProgress


@click.group()
def main() -> None:
    """Measure what pretraining and the masks are worth. pipelines/bench/PROTOCOL.md says how, docs/evidence.md what."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--corpus", required=True, type=click.Path(path_type=Path, exists=True), help="Of pipelines/corpus.py.")
def small(out: Path, corpus: Path) -> None:
    """Run the reduced grid on one core into OUT. The same call again continues where it stopped."""
    # One thread: the results do not depend on the number of cores, and two such programs do not slow each other down.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        out.mkdir(parents=True, exist_ok=True)
        stores = make_stores(corpus, out, Sizes())
        grid = write_grid("small", out, {"mixed": stores["mixed"]}, {})
        with TerminalProgress() as progress:
            rows = run_grid(grid, stores["motion6"], out / "small", progress=progress)
    except UserError as error:
        click.echo(f"evidence: {error}", err=True)
        sys.exit(2)
    click.echo(f"{len(rows)} finished runs in {grid.with_suffix('.rows.json')}")

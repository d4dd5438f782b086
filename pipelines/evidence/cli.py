"""The command line of the evidence runs."""

import os
import sys
from pathlib import Path

import click

from evidence.data import Sizes, make_stores
from evidence.grids import run_grids, write_grid
from mgm_shared.errors import UserError
from mgm_shared.progress import TerminalProgress

SEEDS = (0, 1, 2)


@click.group()
def main() -> None:
    """Measure what pretraining and the masks are worth. pipelines/bench/PROTOCOL.md says how, docs/evidence.md what."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--corpus", required=True, type=click.Path(path_type=Path, exists=True), help="Of pipelines/corpus.py.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Run these seeds only.  [default: 0, 1 and 2]")
def small(out: Path, corpus: Path, seeds: tuple[int, ...]) -> None:
    """Run the reduced grid on one core into OUT. The same call again continues where it stopped.

    A second program with other seeds can run beside it.
    """
    # One thread: the results do not depend on the number of cores, and two such programs do not slow each other down.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        out.mkdir(parents=True, exist_ok=True)
        stores = make_stores(corpus, out, Sizes())
        others = {"mixed": stores["mixed"]}
        grids = {seed: write_grid("small", out, others, {"seeds": [seed]}) for seed in seeds or SEEDS}
        with TerminalProgress() as progress:
            rows = run_grids(grids, stores["motion6"], out / "small", progress=progress)
    except UserError as error:
        click.echo(f"evidence: {error}", err=True)
        sys.exit(2)
    click.echo(f"{len(rows)} finished runs in {out / 'small' / 'rows.json'}")

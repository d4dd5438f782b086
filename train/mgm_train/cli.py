"""The command line of stage 2: mgm-train. It declares options; the functions of `tasks/` do the work."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mgm_shared
import mgm_train
from mgm_shared.cli import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    Program,
    StoreType,
    complain,
    completion_command,
    dry_run_option,
    emit,
    emit_rows,
    force_option,
    json_option,
    say,
    shown_progress,
    store_argument,
    version_option,
)
from mgm_shared.config_options import RecipeType, config_options
from mgm_shared.errors import UserError
from mgm_shared.storage import StorePath
from mgm_train.config import (
    EXPORT_FORMATS,
    DetectConfig,
    EmbedConfig,
    EvaluateConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeConfig,
)
from mgm_train.model_config import MODEL_SIZES
from mgm_train.next_steps import NEXT_STEPS

if TYPE_CHECKING:
    from mgm_train import DetectionScores, Finding, TrainPreview, TrainResult
    from mgm_train.evaluation.metrics import Scores

path_argument = click.Path(path_type=Path)
# The second name is for torchrun, whose own parser takes any `--run` for its `--run-path`.
run_option = click.option(
    "--run", "--run-dir", "run", type=path_argument, required=True, metavar="DIR", help="Folder of the run."
)

# What --version names.
LIBRARIES = ("torch", "torchvision", "timm", "safetensors", "transformers", "numpy", "opencv-python", "zarr", "pyarrow")


@click.group("mgm-train", cls=Program, next_steps=NEXT_STEPS, context_settings={"help_option_names": ["-h", "--help"]})
@version_option(*LIBRARIES)
def main() -> None:
    """Pretrain a video masked autoencoder on a store, fine-tune it, and test it.

    With several GPUs: torchrun --nproc-per-node 8 -m mgm_train pretrain STORE --run-dir DIR …
    """


@main.command(epilog="Example: mgm-train pretrain ssv2.store --run runs/mgm --config ssv2")
@store_argument
@run_option
@config_options(PretrainConfig)
@dry_run_option
@force_option
@json_option
def pretrain(store: StorePath, run: Path, config: PretrainConfig, dry_run: bool, force: bool, is_json: bool) -> None:
    """Pretrain on the training videos of STORE. The same command again continues from the last checkpoint."""
    with shown_progress() as progress:
        if dry_run:
            _emit_preview(mgm_train.preview_pretrain(store, run, config, progress=progress), is_json)
        else:
            _emit_result(mgm_train.pretrain(store, run, config, force=force, progress=progress), is_json)


@main.command(epilog="Example: mgm-train finetune ssv2.store --run runs/ft --init runs/mgm --config ssv2")
@store_argument
@run_option
@config_options(FinetuneConfig)
@dry_run_option
@force_option
@json_option
def finetune(store: StorePath, run: Path, config: FinetuneConfig, dry_run: bool, force: bool, is_json: bool) -> None:
    """Fine-tune a pretrained encoder (--init) on the labels of STORE's training videos."""
    with shown_progress() as progress:
        if dry_run:
            _emit_preview(mgm_train.preview_finetune(store, run, config, progress=progress), is_json)
        else:
            _emit_result(mgm_train.finetune(store, run, config, force=force, progress=progress), is_json)


@main.command(epilog="Example: mgm-train probe ucf101.store --run runs/probe --init runs/mgm --config ucf101")
@store_argument
@run_option
@config_options(ProbeConfig)
@dry_run_option
@force_option
@json_option
def probe(store: StorePath, run: Path, config: ProbeConfig, dry_run: bool, force: bool, is_json: bool) -> None:
    """Fit linear classifiers to the features of a frozen encoder (--init) on STORE's training videos, and test them.

    Features are computed once and kept in the run folder. The same command again continues where it was stopped.
    """
    if dry_run:
        emit({"task": "probe", **asdict(mgm_train.preview_probe(store, config)), **config.to_dict()}, is_json)
        return
    with shown_progress() as progress:
        result = mgm_train.probe(store, run, config, force=force, progress=progress)
    if result is None:
        return
    say(f"trained on {result.num_training_videos} of {result.num_listed_training_videos} training samples")
    more = {**asdict(result.choice), "best_top1": result.best_top1, "knn_top1": result.knn_top1}
    _emit_scores(result.scores, more, result.files, is_json)
    _exit_if(result.has_unreadable)


@main.command(
    epilog="Example: mgm-train detect ava.store --run runs/ava --init runs/k400 --config ava "
    "--annotations ava_v2.2 --proposals ava_val_predicted_boxes.csv"
)
@store_argument
@run_option
@config_options(DetectConfig)
@dry_run_option
@force_option
@json_option
def detect(store: StorePath, run: Path, config: DetectConfig, dry_run: bool, force: bool, is_json: bool) -> None:
    """Fine-tune a pretrained encoder (--init) to detect actions of people in boxes, as in AVA, and test it.

    Training is on the labelled boxes of --annotations, the test on the boxes of --proposals and on the labelled ones.
    """
    with shown_progress() as progress:
        if dry_run:
            _emit_preview(mgm_train.preview_detect(store, run, config, progress=progress), is_json)
        else:
            _emit_result(mgm_train.detect(store, run, config, force=force, progress=progress), is_json)


@main.command(epilog="Example: mgm-train evaluate ssv2.store runs/ft --config ssv2")
@store_argument
@click.argument("weights", type=path_argument)
@click.option(
    "--out",
    type=path_argument,
    metavar="DIR",
    help="Folder of the CSV files.  [default: the run folder of the weights]",
)
@config_options(EvaluateConfig)
@dry_run_option
@json_option
def evaluate(
    store: StorePath, weights: Path, out: Path | None, config: EvaluateConfig, dry_run: bool, is_json: bool
) -> None:
    """Test a fine-tuned model, WEIGHTS (a run folder or a weights file), on a split of STORE with several views.

    An action detector is tested on the key frames of its annotations.
    """
    if dry_run:
        preview = mgm_train.preview_evaluate(store, weights, config, progress=shown_progress())
        emit({"task": "evaluate", **config.to_dict(), **asdict(preview)}, is_json)
        return
    with shown_progress() as progress:
        result = mgm_train.evaluate(store, weights, config, out=out, progress=progress)
    if result is not None:
        _emit_scores(result.scores, {"views": result.num_views}, result.files, is_json)
        _exit_if(bool(result.scores.unreadable))


@main.command(epilog="Example: mgm-train export runs/ft exported --to transformers --dataset SSv2")
@click.argument("run", type=path_argument)
@click.argument("out", type=path_argument)
@click.option("--to", type=click.Choice(EXPORT_FORMATS), required=True, help="The format.")
@click.option("--dataset", default="", metavar="NAME", help="Name of the training data, for the model card.")
@click.option("--license", default="", metavar="NAME", help="Licence of the weights, for the model card.")
@force_option
@json_option
def export(run: Path, out: Path, to: Any, dataset: str, license: str, force: bool, is_json: bool) -> None:
    """Write the model of RUN into the folder OUT, in the format of another program, with a model card.

    RUN is a run folder, a weights file, a folder of transformers or a checkpoint of VideoMAE. transformers: with its
    processors and class names. safetensors: one file with our names. timm: for create_model("local-dir:OUT"). onnx:
    encoder and classifier for any batch size, checked against torch.
    """
    with shown_progress() as progress:
        result = mgm_train.export(run, out, to, dataset=dataset, license=license, force=force, progress=progress)
    emit({name: value if name == "files" else str(value) for name, value in asdict(result).items()}, is_json)


@main.command(epilog="Example: mgm-train embed ucf101.store --init runs/mgm -o ucf101.parquet --knn")
@store_argument
@click.option(
    "-o",
    "--out",
    type=path_argument,
    required=True,
    metavar="FILE",
    help="Table to write, ending in .parquet or .zarr.",
)
@click.option("--knn", is_flag=True, help="Classify the other videos by their 20 nearest training videos.")
@click.option(
    "--nearest",
    default="",
    metavar="ID",
    help="List and draw the videos nearest to this one (a part of its id is enough).",
)
@config_options(EmbedConfig)
@force_option
@json_option
def embed(
    store: StorePath, out: Path, knn: bool, nearest: str, config: EmbedConfig, force: bool, is_json: bool
) -> None:
    """Write the features that a frozen model (--init) has of the videos of STORE, a row for each video.

    The same command again continues where it was stopped, and leaves a finished file as it is. `mgm-train probe` gives
    the accuracy of linear classifiers of such features, for comparison with the one of the nearest neighbours.
    """
    with shown_progress() as progress:
        result = mgm_train.embed(store, out, config, knn=knn, nearest_to=nearest, force=force, progress=progress)
    if result is not None:
        for video_id in result.unreadable:
            say(f"no features, it cannot be read: {video_id}")
        emit({**asdict(result), "file": str(result.file), "picture": str(result.picture or "")}, is_json)
        _exit_if(bool(result.unreadable))


@main.command(epilog="Example: mgm-train visualize tracking.store --run runs/mgm --video PETS09.mp4 --boxes gt.txt")
@store_argument
@run_option
@click.option(
    "--video",
    metavar="VIDEO",
    help="Video to show: an id, a path, or a part of one id.  [default: the first one of the training split]",
)
@click.option("--boxes", type=path_argument, metavar="MOT", help="Its boxes: a MOT file, or a folder with one a video.")
@click.option("--gif", "movies", flag_value="gif", multiple=True, help="Write each figure as an animated GIF too.")
@click.option("--mp4", "movies", flag_value="mp4", multiple=True, help="Write each figure as an MP4 movie too.")
@click.option(
    "--out", type=path_argument, metavar="DIR", help="Folder of the figures.  [default: figures in the run folder]"
)
@json_option
def visualize(
    store: StorePath,
    run: Path,
    video: str | None,
    boxes: Path | None,
    movies: tuple[Any, ...],
    out: Path | None,
    is_json: bool,
) -> None:
    """Draw a pretraining run: its loss, and of a clip the masks, the attention and the reconstruction (figures 2, 5-8).

    masks.png shows every masking strategy; saliency.png boxes, mask, motion vectors and attention; attention.png where
    the centre patch of the centre frame attends; reconstruction.png the prediction with and without ground truth.
    """
    files = mgm_train.visualize(store, run, video=video, boxes=boxes, out=out, movies=movies)
    emit({name: str(file) for name, file in files.items()}, is_json)


@main.command(epilog="Example: mgm-train report runs/mgm runs/tube -o report.html")
@click.argument("runs", type=path_argument, nargs=-1, required=True)
@click.option(
    "-o", "--out", type=path_argument, default="report.html", show_default=True, metavar="FILE", help="The HTML file."
)
@click.option(
    "--store", type=StoreType(), metavar="STORE", help="Store for pictures and clips.  [default: that of the runs]"
)
@click.option(
    "--clips", type=click.IntRange(min=0), default=8, show_default=True, help="Wrong videos of a test that play."
)
@json_option
def report(runs: tuple[Path, ...], out: Path, store: StorePath | None, clips: int, is_json: bool) -> None:
    """Write one HTML file about RUNS, side by side: run folders of pretrain, finetune and probe, folders of ablate.

    It shows losses, learning rates and throughput; masks, reconstructions and attention; accuracy by class, confusion
    and the worst clips, playing; and which options differ. It has no script and fetches nothing.
    """
    with shown_progress() as progress:
        result = mgm_train.report(runs, out, store=store, num_clips=clips, progress=progress)
    emit({**asdict(result), "report": str(result.report)}, is_json)


@main.command(epilog="Example: mgm-train ablate ablation ssv2.store --table 'mask type'")
@click.argument("grid", type=RecipeType(path_type=Path))
@store_argument
@click.option(
    "--run", "--run-dir", "run", type=path_argument, metavar="DIR", help="Folder of all runs.  [default: runs/GRID]"
)
@click.option("--table", "tables", multiple=True, metavar="NAME", help="Run only this table of GRID; may be repeated.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs that share the work of a run, by torchrun. Runs follow each other.",
)
@dry_run_option
@json_option
def ablate(
    grid: Path, store: StorePath, run: Path | None, tables: tuple[str, ...], gpus: int, dry_run: bool, is_json: bool
) -> None:
    """Pretrain, fine-tune and test every run of GRID; tabulate the accuracy, mean ± std over seeds.

    The same command again continues: finished runs are kept, failed ones are tried again. A run that fails is a row
    with its reason, and the exit code is 3. -n lists the runs. The tables are in results.md, results.json and
    results.png of the folder.
    """
    if dry_run:
        runs = mgm_train.preview_ablate(grid, str(store), run, tables=tables)
        lines = [*(f"{state:<14}  {name}" for name, state in runs.items()), f"{len(runs)} runs"]
        emit({"num_runs": len(runs), "runs": runs}, is_json) if is_json else click.echo("\n".join(lines))
        return
    with shown_progress() as progress:
        result = mgm_train.ablate(grid, str(store), run, tables=tables, gpus=gpus, progress=progress)
    emit(result.values, is_json=True) if is_json else click.echo("\n".join(result.tables))
    if result.is_stopped:
        _exit_if(True, EXIT_INTERRUPTED, "stopped; run the same command again to continue")
    _exit_if(result.is_partial, message="the tables are incomplete, see their remarks; run the same command again")


@main.command(epilog="Example: mgm-train recipe copy ssv2 my.yaml")
@click.argument("action", type=click.Choice(["list", "show", "copy"]), metavar="ACTION")
@click.argument("name", required=False)
@click.argument("file", type=path_argument, required=False)
@json_option
def recipe(action: str, name: str | None, file: Path | None, is_json: bool) -> None:
    """List the packaged recipes, show one, or copy one to edit it. ACTION is list, show NAME, or copy NAME FILE.

    `--config NAME` uses a recipe as it is.
    """
    if action == "list":
        heads = mgm_shared.list_recipes()
        emit(heads, is_json) if is_json else emit_rows({"name": key, "about": heads[key]} for key in heads)
        return
    if name is None or (action == "copy") == (file is None):
        raise UserError("use `recipe list`, `recipe show NAME` or `recipe copy NAME FILE`")
    result = mgm_shared.show_recipe(name) if file is None else str(mgm_shared.copy_recipe(name, file))
    emit({action: result}, is_json) if is_json else click.echo(result)


@main.command(epilog="Example: mgm-train doctor ssv2.store --model vit_base")
@click.argument("store", type=StoreType(), required=False)
@click.option("--model", type=click.Choice(list(MODEL_SIZES)), default="vit_base", show_default=True, help="Its speed.")
@json_option
def doctor(store: StorePath | None, model: str, is_json: bool) -> None:
    """Check this machine: Python, PyTorch, the GPU, video codecs, shared memory, and what will limit training.

    With STORE, its reading speed is measured. Each line says what was found, and what to do where something is wrong.
    """
    findings = mgm_train.doctor(store, model=model)
    emit({"findings": [asdict(finding) for finding in findings]}, is_json) if is_json else _emit_findings(findings)


main.add_command(completion_command)


def _emit_findings(findings: "list[Finding]") -> None:
    for finding in findings:
        click.echo(f"{'ok  ' if finding.is_good else 'look'}  {finding.name}: {finding.found}")
        if finding.advice:
            click.echo(f"      {finding.advice}")


def _emit_preview(preview: "TrainPreview", is_json: bool) -> None:
    values = asdict(preview)
    emit({**values, **values.pop("settings")}, is_json)


def _emit_result(result: "TrainResult", is_json: bool) -> None:
    if result.is_main:
        values = asdict(result)
        values.pop("is_main")
        emit({"run": str(values.pop("run")), **values}, is_json)
    _exit_if(not result.is_complete, EXIT_INTERRUPTED)


def _emit_scores(
    scores: "Scores | DetectionScores", more: dict[str, Any], files: dict[str, Path], is_json: bool
) -> None:
    say(f"scored {scores.scored} of {scores.listed} listed")
    for video_id, reason in scores.unreadable.items():
        complain(f"not scored: {video_id}: {reason}")
    emit({**asdict(scores), **more, **{name: str(file) for name, file in files.items()}}, is_json)


def _exit_if(is_wrong: bool, code: int = EXIT_SOME_FAILED, message: str = "") -> None:
    if is_wrong:
        if message:
            complain(message)
        raise SystemExit(code)


if __name__ == "__main__":
    main()

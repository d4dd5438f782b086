"""mgm-prep: from a folder of videos to a store of frames and motion."""

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgm_prep.config import ExtractSettings, FlowSettings, TranscodeSettings
from mgm_shared.cli import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    Program,
    config_options,
    dry_run_option,
    emit,
    force_option,
    is_terminal,
    json_option,
    move_aside,
    say,
    store_argument,
)
from mgm_shared.errors import UserError
from mgm_shared.storage import StorePath

if TYPE_CHECKING:
    from mgm_prep.extraction.extract import Summary

path_argument = click.Path(path_type=Path)
workers_option = click.option(
    "--workers", type=click.IntRange(min=0), help="Processes; 0 works in this one.  [default: the cores]"
)
scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS", help="Use the Dask cluster there instead; or its scheduler file."
)
fold_option = click.option(
    "--fold", type=click.IntRange(1, 3), default=1, show_default=True, help="Which official split, of a folder of them."
)


@click.group("mgm-prep", cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mgm")
def main() -> None:
    """Decode each video once; write its frames and the codec's motion vectors into a Zarr store."""


@main.command(epilog="Example: mgm-prep extract ~/ssv2/videos ssv2.store --workers 16")
@click.argument("videos", type=path_argument)
@store_argument
@config_options(ExtractSettings)
@click.option("--labels", type=path_argument, multiple=True, metavar="FILE", help="As `mgm-prep labels`.")
@fold_option
@click.option("--refresh", is_flag=True, help="Take files anew that changed since they were extracted.")
@click.option("--retry-failed", is_flag=True, help="Try rejected videos again.")
@workers_option
@scheduler_option
@dry_run_option
@force_option
@json_option
def extract(
    videos: Path,
    store: StorePath,
    config: ExtractSettings,
    labels: tuple[Path, ...],
    fold: int,
    refresh: bool,
    retry_failed: bool,
    workers: int | None,
    scheduler: str | None,
    dry_run: bool,
    force: bool,
    is_json: bool,
) -> None:
    """Extract every video of VIDEOS (class folders, or a list file) that STORE lacks.

    The same command again goes on where it was stopped. A folder train/, val/ or test/ sets the split, the folder below
    it the label. Rejected videos are in STORE/failures.jsonl, and the exit code is 3.
    """
    # Dask and a cluster manager stop us with SIGTERM; it should leave as clean a store as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from mgm_prep.extraction.extract import outlook

    if force and not dry_run and (aside := move_aside(store)):
        say(f"moved the old {store} to {aside}")
    if dry_run:
        emit(asdict(outlook(videos, store)), is_json)
        return
    choices = {"labels": labels, "fold": fold, "refresh": refresh, "retry_failed": retry_failed}
    num_workers = len(os.sched_getaffinity(0)) if workers is None else workers
    try:
        summary = _with_bar(videos, store, config, workers=num_workers, scheduler=scheduler, **choices)
    except KeyboardInterrupt:
        say("stopped; the same command again goes on from here")
        raise SystemExit(EXIT_INTERRUPTED) from None
    emit(asdict(summary), is_json)
    if summary.failed:
        say(f"{summary.failed} videos were rejected; the reasons are in {store / 'failures.jsonl'}")
        raise SystemExit(EXIT_SOME_FAILED)


def _with_bar(videos: Path, store: StorePath, config: ExtractSettings, **arguments: Any) -> "Summary":
    """Run the stage under a progress bar that counts videos and shows frames a second and failures."""
    from tqdm import tqdm

    from mgm_prep.extraction.extract import Progress
    from mgm_prep.extraction.extract import extract as run

    step = ""
    with tqdm(unit="video", disable=not is_terminal(), smoothing=0.1) as bar:

        def report(progress: Progress) -> None:
            nonlocal step
            if progress.step != step:
                step = progress.step
                bar.reset(progress.num_to_do)
                bar.set_description(step)
            bar.total = progress.num_to_do
            bar.update(progress.num_done + progress.num_failed - bar.n)
            rate = progress.num_frames / max(1e-9, bar.format_dict["elapsed"])
            speed = f"{rate:.0f} frames/s, " if progress.num_frames else ""
            bar.set_postfix_str(f"{speed}{progress.num_failed} failed")

        def say_above_bar(line: str) -> None:
            tqdm.write(line, file=sys.stderr)

        return run(videos, store, config, report=report, say=say_above_bar, **arguments)


@main.command(epilog="Example: mgm-prep labels ssv2.store train.json validation.json")
@store_argument
@click.argument("files", type=path_argument, nargs=-1, required=True)
@fold_option
@dry_run_option
@json_option
def labels(store: StorePath, files: tuple[Path, ...], fold: int, dry_run: bool, is_json: bool) -> None:
    """Attach the labels and splits that FILES give to STORE's videos; no frame is touched.

    FILES: a CSV with or without header (path, label, split), `path label` lines as VideoMAE's, the JSON of
    Something-Something v2 or Diving48, Kinetics' CSV, the split files of UCF101 or HMDB51, a directory of these, or one
    of videos in class folders. A class list among them turns numbers into names.
    """
    from mgm_prep.extraction.labels import attach_labels

    summary = attach_labels(store, files, fold=fold, is_dry_run=dry_run, say=say)
    emit(asdict(summary), is_json)
    if summary.ambiguous:
        raise SystemExit(EXIT_SOME_FAILED)


@main.command(epilog="Example: mgm-prep transcode ~/ssv2/webm ~/ssv2/mp4 --short-side 256")
@click.argument("videos", type=path_argument)
@click.argument("out", type=path_argument)
@config_options(TranscodeSettings)
@workers_option
@scheduler_option
@dry_run_option
@json_option
def transcode(
    videos: Path,
    out: Path,
    config: TranscodeSettings,
    workers: int | None,
    scheduler: str | None,
    dry_run: bool,
    is_json: bool,
) -> None:
    """Copy the videos of VIDEOS into OUT as H.264 whose vectors lead to the frame before, for any codec.

    The tree is kept. The same command again does what is missing; what failed is in OUT/failures.jsonl, exit code 3.
    """
    # As in `extract`.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from tqdm import tqdm

    from mgm_prep.transcode import TranscodeProgress
    from mgm_prep.transcode import transcode as run

    num_workers = len(os.sched_getaffinity(0)) if workers is None else workers
    with tqdm(unit="video", disable=not is_terminal(), smoothing=0.1) as bar:

        def report(progress: TranscodeProgress) -> None:
            bar.total = progress.num_to_do
            bar.update(progress.num_done + progress.num_failed - bar.n)
            bar.set_postfix_str(f"{progress.num_failed} failed")

        try:
            summary = run(
                videos, out, config, workers=num_workers, scheduler=scheduler, is_dry_run=dry_run, report=report
            )
        except KeyboardInterrupt:
            say("stopped; the same command again goes on from here")
            raise SystemExit(EXIT_INTERRUPTED) from None
    emit(asdict(summary), is_json)
    if summary.failed:
        say(f"{summary.failed} videos could not be transcoded; the reasons are in {out / 'failures.jsonl'}")
        raise SystemExit(EXIT_SOME_FAILED)


@main.command()
@store_argument
@json_option
def index(store: StorePath, is_json: bool) -> None:
    """Rebuild STORE's index.parquet from its parts."""
    from mgm_shared.index import numbers, write_index
    from mgm_shared.store import check_schema

    check_schema(store)
    table = write_index(store)
    emit({"store": str(store), "videos": len(table), "frames": int(numbers(table, "num_frames").sum())}, is_json)


@main.command(epilog="Example: mgm-prep verify ssv2.store --source ~/ssv2/videos --repair")
@store_argument
@click.option("--source", type=path_argument, metavar="VIDEOS", help="Decode some videos again, and compare.")
@click.option("--sample", type=click.IntRange(min=0), default=8, show_default=True, help="How many, with --source.")
@click.option("--repair", "is_repair", is_flag=True, help="Extract broken parts again from --source.")
@workers_option
@scheduler_option
@json_option
def verify(
    store: StorePath,
    source: Path | None,
    sample: int,
    is_repair: bool,
    workers: int | None,
    scheduler: str | None,
    is_json: bool,
) -> None:
    """Read every byte of STORE and compare checksums, counts and index. Exit code 3 when something is wrong."""
    from mgm_prep.store_tools.verify import verify as run

    if is_repair and source is None:
        raise UserError("--repair needs --source VIDEOS to extract from")
    verdict = run(store, source, sample)
    if is_repair and source is not None and verdict.problems:
        from mgm_prep.store_tools.repair import repair

        for problem in verdict.problems:
            say(problem)
        num_workers = len(os.sched_getaffinity(0)) if workers is None else workers
        verdict = repair(store, source, verdict, workers=num_workers, scheduler=scheduler, say=say)
    emit(asdict(verdict), is_json)
    if verdict.problems:
        what = "" if is_repair else "; --repair --source VIDEOS extracts again what is broken"
        say(f"{len(verdict.problems)} problems{what}")
        raise SystemExit(EXIT_SOME_FAILED)


@main.command()
@store_argument
@click.argument("video", required=False)
@click.option("--figure", type=path_argument, metavar="FILE", help="Draw frames and their motion: a .png, or a .gif.")
@click.option("--num-frames", type=click.IntRange(min=1), help="Frames in it.  [default: 8 of a PNG, 50 of a GIF]")
@json_option
def inspect(store: StorePath, video: str | None, figure: Path | None, num_frames: int | None, is_json: bool) -> None:
    """Show what STORE holds, or one VIDEO of it (an id, or the only one that contains the text).

    In a figure arrows and colours show the motion; a PNG has frames of the whole video, a GIF those of its middle.
    """
    from mgm_prep.store_tools.describe import describe_store, describe_video, draw_video, find_video
    from mgm_shared.store import open_store

    opened = open_store(store)
    if video is None and figure is None:
        emit(describe_store(opened), is_json)
        return
    chosen = find_video(opened, video)
    emit(describe_video(chosen), is_json)
    if figure is not None:
        draw_video(chosen, figure, num_frames)
        say(f"wrote {figure}")


@main.command(epilog="Example: mgm-prep flow ssv2.store --method raft-small --weights raft_small_C_T_V2-01064c6d.pth")
@store_argument
@config_options(FlowSettings)
@workers_option
@scheduler_option
@click.option("--force", is_flag=True, help="Replace flow that was made by another method or other weights.")
@json_option
def flow(
    store: StorePath, config: FlowSettings, workers: int | None, scheduler: str | None, force: bool, is_json: bool
) -> None:
    """Add optical flow to STORE, beside its motion vectors: `video.flow`, `mgm-train pretrain --guidance flow`.

    Only parts without it are computed, so the same command again goes on where it was stopped.
    """
    from tqdm import tqdm

    from mgm_prep.store_tools.add_flow import add_flow

    num_workers = len(os.sched_getaffinity(0)) if workers is None else workers
    # As in `extract`.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tqdm(unit="frame", disable=not is_terminal(), smoothing=0.1) as bar:

        def report(num_done: int, num_to_do: int) -> None:
            bar.total = num_to_do
            bar.update(num_done - bar.n)

        try:
            summary = add_flow(store, config, workers=num_workers, scheduler=scheduler, is_forced=force, report=report)
        except KeyboardInterrupt:
            say("stopped; the same command again goes on from here")
            raise SystemExit(EXIT_INTERRUPTED) from None
    emit(asdict(summary), is_json)
    if summary.damaged:
        say(f"{len(summary.damaged)} parts have frames that cannot be read; `mgm-prep verify {store}` names them")
        raise SystemExit(EXIT_SOME_FAILED)


@main.command(epilog="Example: mgm-prep saliency tracking.store --boxes gt.txt --video PETS09")
@store_argument
@click.option(
    "--boxes", type=path_argument, required=True, metavar="MOT", help="A MOT file, or a folder with one a video."
)
@click.option("--video", metavar="ID", help="The video of a single file (an id, or text that only one contains).")
@click.option(
    "--array", type=click.Choice(["motion", "flow"]), default="motion", show_default=True, help="What to measure."
)
@json_option
def saliency(store: StorePath, boxes: Path, video: str | None, array: str, is_json: bool) -> None:
    """Compare STORE's motion inside labelled boxes with the motion outside: is it a good guide for masks?

    A MOT file has lines `frame,id,left,top,width,height,…`, counted from 1, in pixels of the source as shown. In a
    folder the file of train/wave/17.mp4 is train/wave/17.txt, or train/wave/17/gt/gt.txt as in MOTChallenge.
    """
    from mgm_prep.store_tools.saliency import labelled_videos
    from mgm_prep.store_tools.saliency import saliency as measure
    from mgm_shared.store import open_store

    emit(asdict(measure(labelled_videos(open_store(store), boxes, video), array)), is_json)


if __name__ == "__main__":
    main()

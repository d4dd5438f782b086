"""The command line of stage 1: mgm-prep. It declares options; the functions of the package do the work."""

from pathlib import Path
from typing import Literal

import click

import mgm_prep
from mgm_prep.cli_options import CommandResult, execution_options, fold_option, path_argument, prints_result
from mgm_prep.config import CodebookSettings, ExtractSettings, FlowSettings, SegmentSettings, TranscodeSettings
from mgm_prep.next_steps import NEXT_STEPS
from mgm_prep.runtime.execution import Execution
from mgm_shared.cli import (
    Program,
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
from mgm_shared.config_options import config_options
from mgm_shared.errors import UserError
from mgm_shared.storage import StorePath

# What --version names.
LIBRARIES = ("av", "imageio-ffmpeg", "numpy", "opencv-python", "zarr", "numcodecs", "pyarrow", "numba", "distributed")


@click.group("mgm-prep", cls=Program, next_steps=NEXT_STEPS, context_settings={"help_option_names": ["-h", "--help"]})
@version_option(*LIBRARIES)
def main() -> None:
    """Decode each video once; write its frames and the codec's motion vectors into a Zarr store."""


@main.command(epilog="Example: mgm-prep extract ~/ssv2/videos ssv2.store --workers 16")
@click.argument("videos", type=path_argument)
@store_argument
@config_options(ExtractSettings)
@click.option("--labels", type=path_argument, multiple=True, metavar="FILE", help="As for `mgm-prep labels`.")
@fold_option
@click.option(
    "--camera", "cameras", multiple=True, metavar="NAME", help="Only this camera of a LeRobot dataset; may be repeated."
)
@click.option(
    "--images",
    is_flag=True,
    help="Take image files (JPEG, PNG, WebP, GIF) instead of videos; each is a video of one frame without motion.",
)
@click.option("--refresh", is_flag=True, help="Extract videos again whose files changed since they were extracted.")
@click.option("--retry-failed", is_flag=True, help="Try rejected videos again.")
@dry_run_option
@force_option
@prints_result
@execution_options
def extract(
    videos: Path,
    store: StorePath,
    config: ExtractSettings,
    labels: tuple[Path, ...],
    fold: int,
    cameras: tuple[str, ...],
    images: bool,
    refresh: bool,
    retry_failed: bool,
    dry_run: bool,
    force: bool,
    execution: Execution,
) -> CommandResult:
    """Extract the videos of VIDEOS (a folder, or a list file) that STORE does not have yet.

    The same command again continues where it was stopped. In a folder, train/, val/ and test/ set the split, and the
    folders below them the label. Of a LeRobot dataset the videos of all cameras are extracted. Rejected videos are
    listed in STORE/failures.jsonl, and the exit code is 3.
    """
    if dry_run:
        return CommandResult.of(mgm_prep.preview_extract(videos, store, cameras=cameras, images=images))
    choices = {"images": images, "refresh": refresh, "retry_failed": retry_failed, "force": force}
    summary = mgm_prep.extract(videos, store, config, execution, labels=labels, fold=fold, cameras=cameras, **choices)
    problems = []
    if summary.failed:
        problems.append(f"{summary.failed} videos were rejected; the reasons are in {store / 'failures.jsonl'}")
    if summary.rejected_segments:
        rows = f"{summary.rejected_segments} rows of the labels are no segments"
        problems.append(f"{rows}; the reasons are in {store / 'rejected_segments.jsonl'}")
    return CommandResult.of(summary, "\n".join(problems))


@main.command(epilog="Example: mgm-prep labels ssv2.store train.json validation.json")
@store_argument
@click.argument("files", type=path_argument, nargs=-1, required=True)
@fold_option
@config_options(SegmentSettings)
@dry_run_option
@prints_result
def labels(
    store: StorePath, files: tuple[Path, ...], fold: int, config: SegmentSettings, dry_run: bool
) -> CommandResult:
    """Attach the labels and splits of FILES to the videos of STORE, or its segments. No frame is read or written.

    FILES: CSV files with or without a header (path, label, split), lists of `path label` lines as for VideoMAE, the
    JSON files of Something-Something v2 and Diving48, the CSV files of Kinetics, the split files of UCF101 and HMDB51,
    a folder of these, or a folder of videos in class folders. A class list among them turns class numbers into names.
    A line that begins with # is a comment unless it names a video.

    Segments, places in videos, come from CSV files with path, start_s, end_s, label, split (or start_frame, end_frame),
    the files of EPIC-Kitchens, Charades, FineGym, ActivityNet, or the folder of a LeRobot dataset. They replace those
    attached before.
    """
    with shown_progress() as progress:
        summary = mgm_prep.attach_labels(
            store, files, fold=fold, segments=config, is_dry_run=dry_run, progress=progress
        )
    problems = []
    if summary.ambiguous:
        problems.append(f"{summary.ambiguous} entries fit several videos or contradict each other; they have no label")
    if summary.rejected_segments:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.rejected_segments.items())
        problems.append(f"{sum(summary.rejected_segments.values())} rows are no segments: {kinds}")
    return CommandResult.of(summary, "; ".join(problems))


@main.command(epilog="Example: mgm-prep transcode ~/ssv2/webm ~/ssv2/mp4 --short-side 256")
@click.argument("videos", type=path_argument)
@click.argument("out", type=path_argument)
@config_options(TranscodeSettings)
@dry_run_option
@prints_result
@execution_options
def transcode(videos: Path, out: Path, config: TranscodeSettings, dry_run: bool, execution: Execution) -> CommandResult:
    """Copy the videos of VIDEOS, of any codec, to OUT as H.264 whose motion vectors all lead to the frame before.

    The folders are kept, and a.webm becomes a.mp4, or a.webm.mp4 where another video needs that name. The same command
    again transcodes what is missing or outdated. Failures are listed in OUT/failures.jsonl, and the exit code is 3.
    """
    if dry_run:
        return CommandResult.of(mgm_prep.preview_transcode(videos, out))
    summary = mgm_prep.transcode(videos, out, config, execution)
    problem = f"{summary.failed} videos could not be transcoded; the reasons are in {out / 'failures.jsonl'}"
    return CommandResult.of(summary, problem if summary.failed else "")


@main.command()
@store_argument
@prints_result
def index(store: StorePath) -> CommandResult:
    """Rebuild STORE/index.parquet from the parts."""
    return CommandResult.of(mgm_prep.build_index(store))


@main.command(epilog="Example: mgm-prep verify ssv2.store --source ~/ssv2/videos --repair")
@store_argument
@click.option("--source", type=path_argument, metavar="VIDEOS", help="Decode some videos again and compare them.")
@click.option("--sample", type=click.IntRange(min=0), default=8, show_default=True, help="How many, with --source.")
@click.option("--repair", "is_repair", is_flag=True, help="Extract broken parts again from --source.")
@prints_result
@execution_options
def verify(store: StorePath, source: Path | None, sample: int, is_repair: bool, execution: Execution) -> CommandResult:
    """Read every byte of STORE; check checksums, lengths and the index. The exit code is 3 when something is wrong."""
    if is_repair and source is None:
        raise UserError("--repair needs --source VIDEOS to extract from")
    if is_repair and source is not None:
        verdict = mgm_prep.repair(store, source, execution, num_compared=sample)
    else:
        verdict = mgm_prep.verify(store, source, num_compared=sample, progress=execution.progress)
    advice = "" if is_repair else "; --repair --source VIDEOS extracts broken parts again"
    return CommandResult.of(verdict, f"{len(verdict.problems)} problems{advice}" if verdict.problems else "")


@main.command("list", epilog="Example: mgm-prep list ssv2.store --label wave --split val")
@store_argument
@click.option("--label", metavar="LABEL", help="Only videos with this label.")
@click.option("--split", metavar="SPLIT", help="Only videos of this split.")
@json_option
def list_videos(store: StorePath, label: str | None, split: str | None, is_json: bool) -> None:
    """List the videos of STORE, one a line: id, split, label, frames, frames a second, height and width.

    The columns are separated by tabs, and `-` is a missing label or split.
    """
    videos = mgm_prep.list_videos(store, label=label, split=split)
    emit({"videos": videos}, is_json) if is_json else emit_rows(videos)


@main.command()
@store_argument
@click.argument("video", required=False)
@click.option("--figure", type=path_argument, metavar="FILE", help="Draw frames and motion: .png, .gif or .mp4.")
@click.option(
    "--num-frames", type=click.IntRange(min=1), help="Frames in it.  [default: 8 in a PNG, 50 in a GIF or MP4]"
)
@prints_result
def inspect(store: StorePath, video: str | None, figure: Path | None, num_frames: int | None) -> CommandResult:
    """Describe STORE, or one VIDEO of it: an id, a path as given to extract, or text that only one id contains.

    A figure shows the motion as arrows and colours, and the optical flow where `mgm-prep flow` added it. A PNG has
    frames from the whole video, a GIF or an MP4 from its middle.
    """
    from mgm_shared import open_store

    opened = open_store(store)
    if video is None and figure is None:
        return CommandResult.of(mgm_prep.describe_store(opened))
    chosen = mgm_prep.find_video(opened, video)
    if figure is not None:
        mgm_prep.draw_video(chosen, figure, num_frames)
        say(f"wrote {figure}")
    return CommandResult(values=mgm_prep.describe_video(chosen).flat())


@main.command(epilog="Example: mgm-prep report ssv2.store -o report.html")
@store_argument
@click.option(
    "-o", "--out", type=path_argument, default="report.html", show_default=True, metavar="FILE", help="The HTML file."
)
@click.option(
    "--sample", type=click.IntRange(min=1), default=200, show_default=True, help="Videos whose motion is measured."
)
@click.option("--clips", type=click.IntRange(min=0), default=12, show_default=True, help="Videos that play in it.")
@prints_result
def report(store: StorePath, out: Path, sample: int, clips: int) -> CommandResult:
    """Write one HTML file that describes STORE: counts, lengths, labels, motion, rejected videos, clips that play.

    Everything is inside the file; it has no script and fetches nothing. Counts are of all videos, motion is measured on
    a sample.
    """
    with shown_progress() as progress:
        summary = mgm_prep.report(store, out, num_sampled=sample, num_clips=clips, progress=progress)
    problem = f"{summary.unreadable} sampled videos cannot be read; run `mgm-prep verify {store}`"
    return CommandResult.of(summary, problem if summary.unreadable else "")


@main.command(epilog="Example: mgm-prep flow ssv2.store --method raft-small --weights raft_small_C_T_V2-01064c6d.pth")
@store_argument
@config_options(FlowSettings)
@click.option("--force", is_flag=True, help="Replace flow of another method or of other weights.")
@prints_result
@execution_options
def flow(store: StorePath, config: FlowSettings, force: bool, execution: Execution) -> CommandResult:
    """Add optical flow to STORE, beside its motion vectors: for `video.flow` and `mgm-train --guidance flow`.

    Only parts without flow are computed, so the same command again continues where it was stopped.
    """
    summary = mgm_prep.add_flow(store, config, execution, force=force)
    problem = f"{len(summary.damaged)} parts have frames that cannot be read; run `mgm-prep verify {store}`"
    return CommandResult.of(summary, problem if summary.damaged else "")


@main.command(epilog="Example: mgm-prep codebook ssv2.store -o ssv2_codes.npz --num-codes 4096")
@store_argument
@click.option("-o", "--out", type=path_argument, required=True, metavar="FILE", help="The file to write, NAME.npz.")
@config_options(CodebookSettings)
@click.option("--force", is_flag=True, help="Replace FILE.")
@prints_result
def codebook(store: StorePath, out: Path, config: CodebookSettings, force: bool) -> CommandResult:
    """Fit k-means on patches of STORE: the codes that `mgm-train pretrain --target kmeans --codebook FILE` predicts.

    The same command writes the same codes.
    """
    with shown_progress() as progress:
        summary = mgm_prep.fit_codebook(store, out, config, force=force, progress=progress)
    problem = f"{summary.unreadable} frames cannot be read; run `mgm-prep verify {store}`"
    return CommandResult.of(summary, problem if summary.unreadable else "")


@main.command(epilog="Example: mgm-prep saliency tracking.store --boxes MOT15/train")
@store_argument
@click.option(
    "--boxes", type=path_argument, required=True, metavar="MOT", help="A MOT file, or a folder with one a video."
)
@click.option("--video", metavar="ID", help="The video of a single file: an id, a path, or a part of one id.")
@click.option(
    "--array", type=click.Choice(["motion", "flow"]), default="motion", show_default=True, help="What to measure."
)
@click.option(
    "--samples",
    type=click.Choice(["videos", "segments"]),
    default="videos",
    show_default=True,
    help="Measure whole videos, or only the segments of STORE.",
)
@prints_result
def saliency(
    store: StorePath,
    boxes: Path,
    video: str | None,
    array: Literal["motion", "flow"],
    samples: Literal["videos", "segments"],
) -> CommandResult:
    """Compare the motion of STORE inside labelled boxes with the motion outside: is it a good guide for masks?

    A MOT file has lines `frame,id,left,top,width,height,…`, counted from 1, in pixels of the source as shown. In a
    folder, the file of train/wave/17.mp4 is train/wave/17.txt, or train/wave/17/gt/gt.txt as in MOTChallenge.
    """
    return CommandResult.of(mgm_prep.saliency(store, boxes, video=video, array=array, samples=samples))


main.add_command(completion_command)


if __name__ == "__main__":
    main()

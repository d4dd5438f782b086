"""Write the report of a store: what it holds, how things move in it, and clips that play."""

import os
from dataclasses import dataclass
from pathlib import Path

from mgm_prep.store_report.clips import MASK_RATIO, reels, varied_rows
from mgm_prep.store_report.counts import durations, label_blocks, tiles, video_blocks, warnings
from mgm_prep.store_report.motion_sample import (
    FRAMES_OF_A_VIDEO,
    MotionSample,
    motion_blocks,
    sample_motion,
    sampled_rows,
)
from mgm_prep.store_report.rejected import rejected_by_reason, rejected_table
from mgm_shared.errors import UserError
from mgm_shared.index import numbers
from mgm_shared.progress import SILENT, Progress
from mgm_shared.report.blocks import Block, Details, Gallery, Notes, Page, Section, Table
from mgm_shared.report.page import write_page
from mgm_shared.storage import PathLike, file_sizes
from mgm_shared.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """A report that was written, and what it counted."""

    report: str
    videos: int
    hours: float
    rejected: int
    sampled: int
    """Videos whose motion was read."""
    unreadable: int
    """Sampled videos that cannot be read."""


def report(
    store: PathLike,
    out: str | os.PathLike[str],
    *,
    num_sampled: int = 200,
    num_clips: int = 12,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ReportSummary:
    """Write one HTML file that describes a store. It has no script, fetches nothing, and can be sent by mail.

    Counts, lengths, labels and rejected videos are of all videos. Motion is measured on `num_sampled` of them, and
    `num_clips` of these play in the page; the page says so. Memory does not grow with the number of videos, except for
    the table of videos itself.

    Args:
        store: Path or URL of a store.
        out: The HTML file to write or replace.
        num_sampled: Videos whose motion is read.
        num_clips: Videos that play in the page.
        seed: Which videos are drawn. The same store and seed give the same file.
        progress: Hears the number of videos that were read.

    Raises:
        UserError: There is no store, or it holds no video.
    """
    opened, file = open_store(store), Path(out)
    if not len(opened):
        raise UserError(f"{opened.path} holds no video")
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the HTML file to write, such as {file / 'report.html'}")
    rows = sampled_rows(len(opened), num_sampled, seed)
    sample = sample_motion(opened, rows, progress)
    reasons, examples = rejected_by_reason(opened.path)
    gallery = Gallery(reels=reels(opened, varied_rows(opened, rows, num_clips)), caption=_gallery_caption())
    sections = [
        Section(title="Clips", blocks=[gallery], about=_sampled_text(len(gallery.reels), len(opened))),
        Section(title="Videos", blocks=video_blocks(opened.table)),
        Section(title="Motion", blocks=motion_blocks(sample), about=_motion_text(sample, len(opened))),
        Section(title="Labels", blocks=label_blocks(opened.table)),
        Section(title="Rejected videos", blocks=[rejected_table(reasons, examples)] if reasons else [_none_rejected()]),
        Section(title="How it was made", blocks=_settings(opened)),
    ]
    num_bytes = sum(file_sizes(opened.path).values())
    found = [warnings(opened.table), _unreadable(sample)]
    opening: list[Block] = [tiles(opened.table, num_bytes, reasons.total()), *(note for note in found if note)]
    title = str(opened.path).rstrip("/").rpartition("/")[2]
    write_page(Page(title=title, subtitle=f"Store {opened.path}", sections=sections, opening=opening), file)
    return ReportSummary(
        report=str(file),
        videos=len(opened),
        hours=round(float(durations(opened.table).sum()) / 3600, 3),
        rejected=reasons.total(),
        sampled=len(rows),
        unreadable=len(sample.unreadable),
    )


def _sampled_text(num_shown: int, num_videos: int) -> str:
    chosen = f"{num_shown} of {num_videos:,} videos, drawn at random, different labels first" if num_shown else "None"
    return f"{chosen}; about two seconds from the middle of each." if num_shown < num_videos else ""


def _gallery_caption() -> str:
    return (
        "Darts are motion vectors: the tip leads, and the length is the speed. Hatched cells have no vector. The grey "
        f"rectangle is what motion-guided masking would hide at ratio {MASK_RATIO:g}, placed by the fastest cell of "
        "each pair of frames; training places it in its own crops, with jitter."
    )


def _motion_text(sample: MotionSample, num_videos: int) -> str:
    if sample.num_videos < num_videos:
        which = f"Measured on a sample: {sample.num_videos} of {num_videos:,} videos, drawn at random"
    else:
        which = f"Measured on all {num_videos:,} videos"
    return f"{which}, up to {FRAMES_OF_A_VIDEO} frames from the middle of each ({sample.num_frames:,} frames)."


def _unreadable(sample: MotionSample) -> Notes | None:
    if not sample.unreadable:
        return None
    video_id, reason = next(iter(sample.unreadable.items()))
    num_bad, num_all = len(sample.unreadable), sample.num_videos + len(sample.unreadable)
    line = f"{num_bad} of {num_all} sampled videos cannot be read, such as {video_id}: {reason}. Run `mgm-prep verify`."
    return Notes(lines=[line], is_warning=True)


def _none_rejected() -> Notes:
    return Notes(lines=["No video was rejected."])


def _settings(store: Store) -> list[Block]:
    parts = len(set(store.table["part"].unique().to_pylist()))
    source_gb = float(numbers(store.table, "size").sum()) / 1e9
    options = Table(columns=["option", "value"], rows=[[k, str(v)] for k, v in store.attributes["settings"].items()])
    libraries = Table(
        columns=["library", "version"], rows=[[k, str(v)] for k, v in store.attributes["libraries"].items()]
    )
    note = Notes(lines=[f"{parts:,} parts, from source files of {source_gb:,.3g} GB."])
    return [
        note,
        Details(summary="Options of the extraction", blocks=[options]),
        Details(summary="Libraries", blocks=[libraries]),
    ]

"""Copies of a data set whose motion vectors are exactly the paper's: each one leads to the frame before.

libx264 with one reference, no B pictures and an I picture every 12 (research code on codec vectors does the same). For
data sets whose codec has no vectors, such as Something-Something's VP9, or whose encoder is unknown.
"""

import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import ffmpeg
import imageio_ffmpeg

from mgm_prep.config import ExtractSettings, TranscodeSettings
from mgm_prep.decoding.container import OPEN_OPTIONS, Unreadable, main_stream, open_container
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.failures import Failure, failure_of, write_failures
from mgm_prep.extraction.tasks import Task, after_deaths
from mgm_prep.runtime.cluster import open_cluster
from mgm_prep.runtime.crash_journal import journal
from mgm_prep.runtime.lock import locked
from mgm_prep.sources.discover import Source, find_sources
from mgm_shared.errors import UserError
from mgm_shared.files import flush
from mgm_shared.schema import UNFINISHED_DIR

ENCODING = {"bf": 0, "refs": 1, "g": 12, "sc_threshold": 0, "pix_fmt": "yuv420p"}
# Times as they were, also where frames are unevenly spaced.
TIMING = {"fps_mode": "passthrough", "enc_time_base": "1/90000", "video_track_timescale": 90000}
UNFINISHED_SUFFIX = ".part.mp4"


@dataclass(frozen=True, kw_only=True)
class Copy(Task):
    """One video to transcode."""

    target: Path


@dataclass(frozen=True, kw_only=True)
class TranscodeSummary:
    """What a data set's transcoding came to."""

    out: str
    listed: int
    done: int
    failed: int
    transcoded_now: int


@dataclass(frozen=True, kw_only=True)
class TranscodeProgress:
    """Videos to do, done and failed, in this call."""

    num_to_do: int
    num_done: int = 0
    num_failed: int = 0


def transcode(
    videos: Path,
    out: Path,
    settings: TranscodeSettings,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    is_dry_run: bool = False,
    report: Callable[[TranscodeProgress], None] = lambda progress: None,
) -> TranscodeSummary:
    """Transcode all videos that `out` lacks, under their own names with the suffix .mp4; what failed is tried again.

    A copy that is older than its video is made anew.
    UserError for a data set without videos, an `out` that lies within it, or a listed video that would lead out of it.
    """
    if out.absolute().is_relative_to(videos.absolute()):
        raise UserError(f"{out} lies within {videos}, and its copies would be taken for more videos")
    sources = find_sources(videos).sources
    copies = _copies(sources, out)
    missing = [copy for copy in copies if _is_due(copy)]
    progress = TranscodeProgress(num_to_do=len(missing))
    failures: list[Failure] = []
    if missing and not is_dry_run:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            _tidy(out)
            report(progress)
            with open_cluster(workers, scheduler) as cluster:
                for failed in cluster.map(transcode_one, missing, out, settings, after_deaths=after_deaths(out)):
                    failures += failed
                    num_failed = progress.num_failed + len(failed)
                    progress = replace(progress, num_done=progress.num_done + 1 - len(failed), num_failed=num_failed)
                    report(progress)
            _tidy(out)
            write_failures(out, failures)
    num_done = sum(copy.target.exists() for copy in copies)
    return TranscodeSummary(
        out=str(out), listed=len(copies), done=num_done, failed=len(failures), transcoded_now=progress.num_done
    )


def transcode_one(copy: Copy, out: Path, settings: TranscodeSettings) -> list[Failure]:
    """Write one copy, whole or not at all; the failures that this came to, none or one."""
    for source in copy.sources:
        try:
            with journal(out, copy.name, settings.max_seconds) as notes:
                notes.opening(source.video_id)
                size = _size(source.path, settings)
            _encode(source.path, size, copy.target, settings)
        except Unreadable as error:
            return [failure_of(source, error)]
    return list(copy.rejected)


def _copies(sources: Sequence[Source], out: Path) -> list[Copy]:
    """The tree is kept. Where two names differ in the suffix only, the old one stays in front of the new."""
    stems = Counter(PurePosixPath(source.video_id).with_suffix("") for source in sources)
    copies = []
    for number, source in enumerate(sources):
        name = PurePosixPath(source.video_id)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{source.video_id} leads out of {out}; list videos by paths below the list's own folder")
        is_alone = stems[name.with_suffix("")] == 1
        target = out / (name.with_suffix(".mp4") if is_alone else f"{name}.mp4")
        copies.append(Copy(name=f"copy-{number}", sources=(source,), target=target))
    return copies


def _is_due(copy: Copy) -> bool:
    if not copy.target.exists():
        return True
    (source,) = copy.sources
    # A video that is gone has a copy all the same.
    return source.path.exists() and source.path.stat().st_mtime > copy.target.stat().st_mtime


def _size(path: Path, settings: TranscodeSettings) -> tuple[int, int]:
    """(height, width) as shown, the short side no longer than wanted, both even as 4:2:0 needs them."""
    with VideoFile(path, ExtractSettings(max_seconds=settings.max_seconds)) as video:
        height, width = video.header.display_height, video.header.display_width
    scale = min(1.0, settings.short_side / min(height, width)) if settings.short_side else 1.0
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _encode(path: Path, size: tuple[int, int], target: Path, settings: TranscodeSettings) -> None:
    with open_container(path, {}) as container:
        stream_index = main_stream(container).index
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: the ffmpeg of a run that was killed may still be writing.
    beside = target.with_name(f".{uuid.uuid4().hex}{UNFINISHED_SUFFIX}")
    # The protocol in front, so that a name is a name, whatever is in it.
    source = ffmpeg.input(f"file:{path.absolute()}", **OPEN_OPTIONS)[str(stream_index)]
    # ffmpeg has turned the picture upright before it comes to the filter.
    shown = source.filter("scale", size[1], size[0], flags="area").filter("setsar", 1)
    options = ENCODING | TIMING | {"preset": settings.preset, "crf": settings.crf, "threads": 1, "map_metadata": -1}
    command = ffmpeg.output(shown, f"file:{beside.absolute()}", vcodec="libx264", movflags="+faststart", **options)
    command = command.global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-filter_threads", "1")
    try:
        _run(command, settings.max_seconds)
        flush(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _run(command: Any, max_seconds: int) -> None:
    """Run ffmpeg; it is ended with us, which ffmpeg-python's own `run` does not see to. Unreadable when it fails."""
    # imageio-ffmpeg's own program, else that of the PATH, which may be too old to know our options.
    words = command.compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=max_seconds or None)
    except subprocess.TimeoutExpired:
        raise Unreadable(f"transcoding it takes longer than {max_seconds} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unreadable(lines[-1] if lines else "ffmpeg failed and did not say why")


def _tidy(out: Path) -> None:
    """Delete what runs that were killed have left."""
    shutil.rmtree(out / UNFINISHED_DIR, ignore_errors=True)
    for file in out.rglob(f".*{UNFINISHED_SUFFIX}"):
        file.unlink(missing_ok=True)

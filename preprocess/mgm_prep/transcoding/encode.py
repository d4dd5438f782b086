"""Encode one video as H.264 whose motion vectors all lead to the frame before, with the ffmpeg program.

libx264 with one reference, no B pictures and an I picture every 12, as in research on codec vectors.
"""

import errno
import os
import subprocess
import uuid
from pathlib import Path

import ffmpeg
import imageio_ffmpeg

from mgm_prep.config import ExtractSettings, TranscodeSettings
from mgm_prep.decoding.container import OPEN_OPTIONS, Unreadable, main_stream, open_container, reason_of
from mgm_prep.decoding.pyav import VideoFile
from mgm_shared.files import flush

ENCODING = {"bf": 0, "refs": 1, "g": 12, "sc_threshold": 0, "pix_fmt": "yuv420p"}
# Times as they were, also where frames are unevenly spaced.
TIMING = {"fps_mode": "passthrough", "enc_time_base": "1/90000", "video_track_timescale": 90000}
UNFINISHED_SUFFIX = ".part.mp4"
# ffmpeg-python takes names as UTF-8 only, so that it is given these in place of the files' names.
INPUT, OUTPUT = "input", "output"
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_fatal(error: Exception) -> bool:
    """Whether no other video could be written either: the disk is full or read-only."""
    return isinstance(error, OSError) and error.errno in FATAL


def size_of_copy(path: Path, settings: TranscodeSettings) -> tuple[int, int]:
    """(height, width) as shown, the short side no longer than wanted, both even as 4:2:0 needs them."""
    with VideoFile(path, ExtractSettings(max_seconds=settings.max_seconds)) as video:
        height, width = video.header.display_height, video.header.display_width
    scale = min(1.0, settings.short_side / min(height, width)) if settings.short_side else 1.0
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def encode(path: Path, size: tuple[int, int], target: Path, settings: TranscodeSettings) -> None:
    """Write the copy of a video to `target`, whole or not at all; `size` is (height, width).

    Unreadable when the video cannot be transcoded or its copy cannot be written; OSError when no copy can be written,
    because the disk is full or read-only.
    """
    with open_container(path, {}) as container:
        stream_index = main_stream(container).index
    words = _command(size, stream_index, settings)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(path, target, words, settings.max_seconds)
    except OSError as error:
        if is_fatal(error):
            raise
        raise Unreadable(f"its copy cannot be written: {reason_of(error)}") from error


def _write(path: Path, target: Path, words: list[str], max_seconds: int) -> None:
    # A name of its own: the ffmpeg of a run that was killed may still be writing.
    beside = target.with_name(f".{uuid.uuid4().hex}{UNFINISHED_SUFFIX}")
    # "file:" in front, so that ffmpeg takes the name for a name, whatever is in it.
    files = {INPUT: f"file:{path.absolute()}", OUTPUT: f"file:{beside.absolute()}"}
    try:
        _run([os.fsencode(files.get(word, word)) for word in words], max_seconds)
        flush(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _command(size: tuple[int, int], stream_index: int, settings: TranscodeSettings) -> list[str]:
    """The words of the ffmpeg command, with INPUT and OUTPUT in place of the files."""
    height, width = size
    # ffmpeg turns the picture upright before it comes to the filter.
    # Unaligned, so that a crop of the bitstream at the left is exact. That of the container is ffmpeg's default.
    shown = ffmpeg.input(INPUT, flags="unaligned", **OPEN_OPTIONS)[str(stream_index)]
    shown = shown.filter("scale", width, height, flags="area").filter("setsar", 1)
    options = ENCODING | TIMING | {"preset": settings.preset, "crf": settings.crf, "threads": 1, "map_metadata": -1}
    command = ffmpeg.output(shown, OUTPUT, vcodec="libx264", format="mp4", movflags="+faststart", **options)
    command = command.global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-filter_threads", "1")
    # imageio-ffmpeg's own program; that of the PATH may be too old to know the options.
    words: list[str] = command.compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    return words


def _run(words: list[bytes], max_seconds: int) -> None:
    """Run ffmpeg, and end it when this process is ended. Unreadable when it fails, OSError when the disk is full."""
    # Not ffmpeg-python's own `run`, which leaves the program running.
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=max_seconds or None)
    except subprocess.TimeoutExpired:
        raise Unreadable(f"transcoding it takes longer than {max_seconds} s") from None
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        for number in FATAL:
            if os.strerror(number) in message:
                raise OSError(number, os.strerror(number))
        raise Unreadable(message.splitlines()[-1] if message else "ffmpeg failed and did not say why")

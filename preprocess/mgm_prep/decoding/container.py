"""Open a video file, and no other whatever it says inside, and choose the stream that is the video.

The only file that opens what a data set holds.
"""

import re
import stat
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av

from mgm_prep.decoding.formats import ALLOWED_FORMATS

# FFmpeg opens this one file whatever it says inside: no playlist, concat script or image sequence is among these.
OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(ALLOWED_FORMATS)}
NOT_ALLOWED = "Format not on whitelist"
# Titles that are not UTF-8 are no reason to reject a video; from PyAV 19 on that goes without saying.
LENIENT: Any = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}

# Packets that tell streams apart which nothing is stated of. Two minutes of two streams; a preview is through by then.
COUNTED_PACKETS = 6000
# Where FFmpeg knows how long each stream is. Elsewhere it may call the file's duration that of a stream.
STREAM_DURATIONS = frozenset({"mov", "mpegts", "mpeg"})
TAGGED_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d*)?)")


class Unreadable(Exception):
    """A file that holds no decodable video; the message says why in one line."""


def open_container(path: Path, options: dict[str, str]) -> Any:
    """The file, and no other that it may name. Unreadable when FFmpeg does not know it or its format is not allowed."""
    try:
        # A pipe would be waited for, and a device read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("not a regular file")
        return _open(path, options)
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, av.ArgumentError) and (name := _name_of_refused(path)):
            raise Unreadable(f"container {name} is not allowed") from error
        raise Unreadable(reason_of(error)) from error


def _open(path: Path, options: dict[str, str]) -> Any:
    return av.open(str(path.absolute()), options=OPEN_OPTIONS | options, **LENIENT)


def _name_of_refused(path: Path) -> str | None:
    """FFmpeg's name of the file's container, where that is what it refuses.

    FFmpeg says so in its log only, so the file is opened, and refused, once more with the log turned on.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        # Without the capture the log would go on to Python's.
        with av.logging.Capture():
            _open(path, {}).close()
    except av.FFmpegError as error:
        log: Any = error.log  # (level, name, message); PyAV's stub has it otherwise
        return str(log[1]) if log and log[2].startswith(NOT_ALLOWED) else None
    finally:
        av.logging.set_level(level)
    return None


def size_without_decoding(path: Path) -> tuple[int, int]:
    """Coded (height, width) as the stream's own headers state it, (0, 0) where they do not."""
    try:
        with open_container(path, {"skip_frame": "all"}) as container:
            context = main_stream(container).codec_context
            return context.height, context.width
    except Unreadable:
        return 0, 0


def main_stream(container: Any) -> Any:
    """The video stream to take. Unreadable when there is none.

    The one with most frames, then the default, then the largest. Streams with at least half as many frames as the
    longest count as equally long: they show the same scene at another rate or size, and the file says which is the
    default. Those with fewer are previews, cover pictures, or the few large stills of a motion photo.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic]
    if not streams:
        raise Unreadable("no video stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise Unreadable("no decoder for its video codec")
    if len(decodable) == 1:
        return decodable[0]
    num_frames = count_frames(container, decodable)
    long = [stream for stream in decodable if 2 * num_frames[stream.index] >= max(num_frames.values())]
    return max(long, key=_merit)


def _merit(stream: Any) -> tuple[bool, int]:
    is_default = bool(stream.disposition & stream.disposition.default)
    return is_default, stream.codec_context.width * stream.codec_context.height


def count_frames(container: Any, streams: Sequence[Any]) -> dict[int, float]:
    """Frames of each stream by its index: as the container counts them, else the stream's duration times its rate.

    Where one of the streams has neither, packets are counted, up to COUNTED_PACKETS of all streams together.
    """
    has_durations = container.format.name.split(",")[0] in STREAM_DURATIONS
    stated = {stream.index: _stated_frames(stream, has_durations) for stream in streams}
    if all(stated.values()):
        return stated
    counts: Counter[int] = Counter({stream.index: 0 for stream in streams})
    # A second reader: this one's packets are still to be decoded.
    with open_container(Path(container.name), {}) as counted:
        chosen = [stream for stream in counted.streams.video if stream.index in counts]
        try:
            packets = counted.demux(chosen)
            counts.update(packet.stream_index for packet in islice(packets, COUNTED_PACKETS) if packet.size)
        except av.FFmpegError:
            # What could be counted has to do.
            return dict(counts)
    return dict(counts)


def _stated_frames(stream: Any, has_duration: bool) -> float:
    """0 where the container says nothing."""
    if stream.frames:
        return float(stream.frames)
    duration_s = tagged_duration_s(stream)
    if has_duration and stream.duration:
        duration_s = float(stream.duration * stream.time_base)
    return duration_s * float(stream.average_rate or 0)


def tagged_duration_s(stream: Any) -> float:
    """Length by the tag in which FFmpeg and mkvmerge put that of each track, as Matroska has none; 0 without one."""
    found = TAGGED_DURATION.fullmatch(stream.metadata.get("DURATION", ""))
    if not found:
        return 0.0
    hours, minutes, seconds = map(float, found.groups())
    return 3600 * hours + 60 * minutes + seconds


def reason_of(error: Exception) -> str:
    """What FFmpeg or the system says, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())

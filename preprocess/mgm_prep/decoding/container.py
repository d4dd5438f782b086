"""Open a video file, and no other whatever it says inside, and choose the stream that is the video.

The only file that opens what a data set holds.
"""

import stat
from pathlib import Path
from typing import Any

import av

# FFmpeg opens this one file whatever it says inside: no playlist, concat script or image sequence is among these.
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": (
        "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,m4v,h263,h264,hevc,ivf,obu,av1,vc1,"
        "dv,gif,mxf,nut,ogg,wtv"
    ),
}
# Titles that are not UTF-8 are no reason to reject a video; from PyAV 19 on that goes without saying.
LENIENT: Any = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


class Unreadable(Exception):
    """A file that holds no decodable video; the message says why in one line."""


def open_container(path: Path, options: dict[str, str]) -> Any:
    """The file, and no other that it may name. Unreadable when FFmpeg does not know it."""
    try:
        # A pipe would be waited for, and a device read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("not a regular file")
        return av.open(str(path.absolute()), options=OPEN_OPTIONS | options, **LENIENT)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Unreadable(reason_of(error)) from error


def size_without_decoding(path: Path) -> tuple[int, int]:
    """Coded (height, width) as the stream's own headers state it, (0, 0) where they do not."""
    try:
        with open_container(path, {"skip_frame": "all"}) as container:
            context = main_stream(container).codec_context
            return context.height, context.width
    except Unreadable:
        return 0, 0


def main_stream(container: Any) -> Any:
    """The video stream that moves, is the default and is largest, in that order. Unreadable when there is none."""
    streams = [stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic]
    if not streams:
        raise Unreadable("no video stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise Unreadable("no decoder for its video codec")
    return max(decodable, key=_merit)


def _merit(stream: Any) -> tuple[bool, bool, int]:
    # A track of one frame is a preview. Where the container does not count frames, it says 0.
    is_default = bool(stream.disposition & stream.disposition.default)
    return stream.frames != 1, is_default, stream.codec_context.width * stream.codec_context.height


def reason_of(error: Exception) -> str:
    """What FFmpeg or the system says, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())

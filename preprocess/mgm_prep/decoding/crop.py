"""The crop that a container asks for: `clap` of MP4 and QuickTime, PixelCrop of Matroska.

FFmpeg reads both, rounds them to pixels and ignores those that leave the picture, but libavcodec does not apply them;
the ffmpeg program does, and this module does the same. A crop in the bitstream is applied by the decoder before.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from threading import Lock
from typing import Any

import av
import av.logging
from av.filter import Graph

# Lines of av_dump_format. The text of a metadata entry cannot look like these: it follows its key and " : ".
STREAM_LINE = re.compile(r"\s+Stream #0:(\d+)\D.*")
CROP_LINE = re.compile(r"\s+Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", re.IGNORECASE)
# The log level and whether repeated lines are left out belong to the process.
_log_lock = Lock()


@dataclass(frozen=True, kw_only=True)
class Crop:
    """How many pixels are cut at each side."""

    left_px: int = 0
    right_px: int = 0
    top_px: int = 0
    bottom_px: int = 0


@dataclass(frozen=True, kw_only=True)
class Cropped:
    """A frame, and where its corner was before the cut."""

    frame: av.VideoFrame
    left_px: int = 0
    top_px: int = 0


def container_crop(container: Any, stream_index: int) -> Crop:
    """What the container says of the stream; nothing is cut where it does not say anything.

    PyAV gives no access to a stream's side data, so it is read from FFmpeg's description of the file.
    """
    is_ours = False
    for line in _description(container).splitlines():
        if stream := STREAM_LINE.fullmatch(line):
            is_ours = int(stream[1]) == stream_index
        elif is_ours and (sides := CROP_LINE.fullmatch(line)):
            left, right, top, bottom = map(int, sides.groups())
            return Crop(left_px=left, right_px=right, top_px=top, bottom_px=bottom)
    return Crop()


def _description(container: Any) -> str:
    """av_dump_format, which writes to the log."""
    with _log_lock:
        level, is_shortened = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.INFO)
        av.logging.set_skip_repeated(False)
        try:
            return str(container.dumps_format())
        finally:
            av.logging.set_level(level)
            av.logging.set_skip_repeated(is_shortened)


class Cropper:
    """Crops the frames of one video; keeps FFmpeg's filter between them."""

    def __init__(self, crop: Crop) -> None:
        self.crop = crop
        self._graph: Graph | None = None
        self._layout: tuple[str, int, int] | None = None

    def cropped(self, frame: av.VideoFrame) -> Cropped:
        """The frame as the container wants it shown, without a copy; one that is too small for the crop as it is.

        As the ffmpeg program does, the corner and the size are rounded down to whole chroma samples.
        """
        if self.crop == Crop():
            return Cropped(frame=frame)
        step_x, step_y = 4 // frame.format.chroma_width(4), 4 // frame.format.chroma_height(4)
        left, top = self.crop.left_px // step_x * step_x, self.crop.top_px // step_y * step_y
        width = (frame.width - self.crop.left_px - self.crop.right_px) // step_x * step_x
        height = (frame.height - self.crop.top_px - self.crop.bottom_px) // step_y * step_y
        if width <= 0 or height <= 0:
            return Cropped(frame=frame)
        graph = self._graph_for(frame, f"{width}:{height}:{left}:{top}")
        graph.push(frame)
        cropped: Any = graph.pull()
        return Cropped(frame=cropped, left_px=left, top_px=top)

    def _graph_for(self, frame: av.VideoFrame, options: str) -> Graph:
        layout = frame.format.name, frame.height, frame.width
        if self._graph is None or layout != self._layout:
            graph = Graph()
            graph.threads = 1
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
            )
            crop, sink = graph.add("crop", options), graph.add("buffersink")
            source.link_to(crop)
            crop.link_to(sink)
            graph.configure()
            self._graph, self._layout = graph, layout
        return self._graph

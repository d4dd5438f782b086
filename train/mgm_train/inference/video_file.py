"""A video file or an array of frames, decoded on the fly, with what `read_views` needs of a store's video.

FFmpeg opens the one local file, whatever it says inside. Frames differ a little from a store's, which are JPEG of a
smaller size. Axes: T frames · H,W pixels · C = RGB.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError

# Containers that hold their pictures themselves: no playlist, concat script or image sequence is among them.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,wtv,mxf,3gp,m4v"
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}


class ArrayVideo:
    """Frames (T, H, W, 3) uint8, as a video."""

    def __init__(self, frames_THWC: NDArray[np.uint8]) -> None:
        self._frames_THWC = frames_THWC
        self.num_frames, self.height, self.width, _ = frames_THWC.shape

    def pictures(self, indices_T: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """The frames at `indices_T`."""
        for index in indices_T.tolist():
            yield np.ascontiguousarray(self._frames_THWC[index])


class FileVideo:
    """A video file. UserError where it cannot be decoded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with self._open() as container:
                stream = _stream(container, path)
                self.num_frames = sum(1 for packet in container.demux(stream) if packet.size)
            first = next(self._decoded(), None)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{path} cannot be read as a video: {error}") from error
        if first is None:
            raise UserError(f"{path} cannot be read as a video: no frame could be decoded")
        self.height, self.width = first.shape[:2]

    def pictures(self, indices_T: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """The frames at ascending `indices_T`; the last one that decodes stands for those after it."""
        wanted = indices_T.tolist()
        frame_HWC = None
        for number, frame_HWC in enumerate(self._decoded()):
            while wanted and wanted[0] == number:
                wanted.pop(0)
                yield frame_HWC
            if not wanted:
                return
        for _ in wanted:
            if frame_HWC is not None:
                yield frame_HWC

    def _open(self) -> Any:
        if not self.path.is_file():
            raise UserError(f"there is no file {self.path}")
        return av.open(str(self.path.absolute()), options=OPTIONS)

    def _decoded(self) -> Iterator[NDArray[np.uint8]]:
        with self._open() as container:
            stream = _stream(container, self.path)
            shape = float(stream.sample_aspect_ratio or 1)
            for frame in container.decode(stream):
                yield _upright(frame, shape)


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise UserError(f"{path} has no video stream")
    return container.streams.best("video") or container.streams.video[0]


def _upright(frame: av.VideoFrame, pixel_aspect: float) -> NDArray[np.uint8]:
    """RGB as displayed: square pixels, turned as the container says."""
    frame_HWC = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    if pixel_aspect != 1:
        width = max(2, round(frame.width * pixel_aspect))
        frame_HWC = np.asarray(cv2.resize(frame_HWC, (width, frame.height), interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(np.rot90(frame_HWC, round(frame.rotation / 90)))

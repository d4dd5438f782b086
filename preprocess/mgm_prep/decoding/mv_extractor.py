"""The second decoder, `--decoder mv-extractor`: the package motion-vector-extractor, held to PyAV by a test.

It gives pictures and vectors and nothing else, so the container, the times and the orientation are still PyAV's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable, main_stream, open_container
from mgm_prep.decoding.crop import Crop
from mgm_prep.decoding.demuxer import Demuxer
from mgm_prep.decoding.h264 import ParameterSets, PictureHeader
from mgm_prep.decoding.pyav import VECTOR_DTYPE, Picture, VideoFile, read_header
from mgm_shared.schema import PICTURE_TYPES

Tag = tuple[int, float, int, PictureHeader | None]
"""What a packet tells of its picture: clock, time on it, place in decoding order, and for H.264 its header."""

# The columns of mv-extractor's vectors, int32 (K, 10).
COLUMNS = ("source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")


class CapturedFile(VideoFile):
    """A VideoFile whose pictures mv-extractor decodes. Those that it does not hand out count in `num_errors`."""

    def __init__(self, path: Path, settings: ExtractSettings | None = None) -> None:
        super().__init__(path, settings)
        self._path = path
        self._num_lost, self._is_last_cut = 0, False

    def pictures(self) -> Iterator[Picture]:
        """All that mv-extractor gives, in display order. Unreadable when that is nothing."""
        # The n-th picture shown is the one of the n-th packet by time.
        tags = iter(scheduled := sorted(self._tags()))
        num_pictures = 0
        for frame, vectors_K, picture_type in self._captured():
            self._check_time()
            if not num_pictures:
                self._check_shape(frame)
            _, time_s, decode_index, header = next(tags, (0, float("nan"), num_pictures, None))
            if header is None:
                is_referred = PICTURE_TYPES[picture_type] != "B"
                header = PictureHeader(is_reference=is_referred, sequence=self._default_sequence)
            num_pictures += 1
            yield Picture(
                frame=frame,
                left_px=header.sequence.left_px,
                top_px=header.sequence.top_px,
                vectors_K=vectors_K,
                time_s=time_s,
                dts_s=time_s,
                picture_type=picture_type,
                decode_index=decode_index,
                is_reference=header.is_reference,
                num_references=header.sequence.num_references,
                is_corrupt=False,
                codec=self._codec,
                orientation=self._first.orientation,
            )
        if not num_pictures:
            raise Unreadable("mv-extractor decodes no picture of it; the decoder pyav does")
        self.num_errors = self._num_lost + max(self._is_last_cut, len(scheduled) - num_pictures)

    def _check_shape(self, frame: av.VideoFrame) -> None:
        """Unreadable unless its first picture is the one that PyAV gives."""
        # It rounds a crop of the bitstream at the left down, and ignores that of the container.
        if self._first.left_px or self._cropper.crop != Crop():
            raise Unreadable("mv-extractor does not crop it as it should; the decoder pyav does")
        if (frame.height, frame.width) != (self.header.height, self.header.width):
            raise Unreadable("mv-extractor reads another stream of it than the main one")

    def _tags(self) -> Iterator[Tag]:
        """What the packets tell of the pictures."""
        with open_container(self._path, {}) as container:
            stream = main_stream(container)
            sets = ParameterSets(stream.codec_context.extradata) if self._codec == "h264" else None
            demuxer = Demuxer(self._path, container, stream)
            clock, last_dts = 0, None
            for decode_index, packet in enumerate(demuxer.packets()):
                if not packet.is_discard:
                    if packet.dts is not None:
                        # Decoding times always rise, unless streams were joined.
                        clock += last_dts is not None and packet.dts < last_dts
                        last_dts = packet.dts
                    ticks = packet.pts if packet.pts is not None else packet.dts
                    time_s = float("nan") if ticks is None else float(ticks * stream.time_base)
                    yield clock, time_s, decode_index, read_header(packet, sets) if sets else None
            self._num_lost, self._is_last_cut = demuxer.num_lost, demuxer.is_last_cut

    def _captured(self) -> Iterator[tuple[av.VideoFrame, NDArray[np.void] | None, int]]:
        from mvextractor.videocap import VideoCap

        capture = VideoCap()
        try:
            is_open = capture.open(str(self._path.absolute()))
        except SystemError as error:
            raise Unreadable("mv-extractor opens no file whose name is not UTF-8") from error
        if not is_open:
            raise Unreadable("mv-extractor cannot open it")
        try:
            while True:
                is_read, frame_HWC, vectors_K10, letter = capture.read()
                if not is_read:
                    return
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="bgr24")
                yield frame, _structured(vectors_K10), PICTURE_TYPES.index(letter) if letter in PICTURE_TYPES else 0
        finally:
            capture.release()


def _structured(vectors_K10: NDArray[Any]) -> NDArray[np.void] | None:
    if not len(vectors_K10):
        return None
    vectors_K = np.zeros(len(vectors_K10), VECTOR_DTYPE)
    for column, name in enumerate(COLUMNS):
        vectors_K[name] = vectors_K10[:, column]
    return vectors_K

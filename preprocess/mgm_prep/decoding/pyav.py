"""Decode a video once: pictures in display order, with the codec's motion vectors and what dates them.

PyAV, one thread: the same pictures and vectors in every run.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.codec.context import Flags, Flags2
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import PictureType
from numpy.typing import NDArray

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable, main_stream, open_container, reason_of, size_without_decoding
from mgm_prep.decoding.crop import Cropper, container_crop
from mgm_prep.decoding.demuxer import DEFAULT_FRAME_RATE, Demuxer
from mgm_prep.decoding.h264 import ParameterSets, PictureHeader
from mgm_prep.decoding.h264_sps import Sequence
from mgm_shared.geometry import Orientation

# Before H.264 a picture had one reference on each side.
ONE_REFERENCE = Sequence(num_references=1)

# AVMotionVector of libavutil/motion_vector.h. PyAV's `to_ndarray` builds this type anew for every picture.
VECTOR_DTYPE = np.dtype(
    [
        ("source", "<i4"),
        ("w", "u1"),
        ("h", "u1"),
        *((name, "<i2") for name in ("src_x", "src_y", "dst_x", "dst_y")),
        ("flags", "<u8"),
        ("motion_x", "<i4"),
        ("motion_y", "<i4"),
        ("motion_scale", "<u2"),
    ],
    align=True,
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One decoded picture and its place in the stream."""

    frame: av.VideoFrame
    """Cropped as the bitstream and the container say, not yet turned."""
    left_px: int = 0
    top_px: int = 0
    """The corner of `frame` in the coded picture."""
    vectors_K: NDArray[np.void] | None
    """FFmpeg's AVMotionVector records in px of the coded picture, None on a picture that has none."""
    time_s: float
    """When it is shown, NaN where the container does not say; timeline.py knows what then."""
    dts_s: float
    """When it is decoded, NaN where the container does not say."""
    picture_type: int
    """FFmpeg's: 1 = I, 2 = P, 3 = B."""
    decode_index: int
    """Its place in decoding order."""
    is_reference: bool
    """Whether later pictures may refer to it."""
    num_references: int
    """How many of the references decoded before it its vectors may point to, on either side."""
    is_corrupt: bool
    codec: str
    """FFmpeg's name, such as h264 or mpeg4: motion.py knows their habits."""
    orientation: Orientation

    @cached_property
    def luma_HW(self) -> NDArray[Any]:
        """The first plane, a view: 8-bit, or up to 16-bit where the stream has more."""
        is_interleaved = self.frame.format.name == "bgr24"
        plane = (self.frame.reformat(format="yuv420p") if is_interleaved else self.frame).planes[0]
        dtype = np.uint8 if self.grey_level == 1 else np.uint16
        return np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]

    @cached_property
    def grey_level(self) -> int:
        """What one of 256 grey levels is in the units of `luma_HW`."""
        return 1 << max(0, self.frame.format.components[0].bits - 8)

    @cached_property
    def points_forward(self) -> bool:
        """Whether some of its vectors point to a picture that is shown later."""
        is_b = self.picture_type == PictureType.B and self.vectors_K is not None
        return is_b and bool((self.vectors_K["source"] > 0).any())  # type: ignore[index]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What opening a file and decoding its first picture tell."""

    codec: str
    height: int
    width: int
    """Size of the first picture, cropped."""
    display_height: float
    display_width: float
    """Its size with the sample aspect ratio and the rotation applied."""
    rotation: int
    frame_rate: float
    """Frames a second as the container states them, 25 where it does not."""
    num_frames_estimate: int
    """From the container, so only good for dividing work."""


class VideoFile:
    """An open video file: `header`, then `pictures()` once. Use it as a context manager.

    Raises Unreadable, on opening or on the first picture, when there is nothing to decode or the settings' limits
    forbid it; on a later picture when `max_seconds` have passed since the opening.
    """

    def __init__(self, path: Path, settings: ExtractSettings | None = None) -> None:
        settings = settings or ExtractSettings()
        self.num_errors = 0
        self._cut_index: int | None = None
        self._max_pixels = settings.max_pixels
        self._max_seconds = settings.max_seconds
        self._deadline_s = time.monotonic() + (settings.max_seconds or float("inf"))
        self._last_error = "no frame could be decoded"
        # FFmpeg compares sides that it has rounded up. Told of all streams, it refuses a far larger picture wherever
        # one turns up, before it takes memory.
        ffmpeg_limit = {"max_pixels": str(2 * settings.max_pixels + 2**22)}
        self._container = open_container(path, ffmpeg_limit)
        try:
            self._stream = main_stream(self._container)
            self._cropper = Cropper(container_crop(self._container, self._stream.index))
            self._configure(ffmpeg_limit)
            self._demuxer = Demuxer(path, self._container, self._stream)
            self.max_pause_s = self._demuxer.max_pause_s
            self._pictures = self._decode()
            first = next(self._pictures, None)
            if first is None:
                self._check_size(*size_without_decoding(path))
                raise Unreadable(self._last_error)
            self._first = first
            # Now, and not when it is asked for: a transport stream may rebuild its streams while it is read.
            self.header = self._read_header(first)
            self._check_size(self.header.display_height, self.header.display_width)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def pictures(self) -> Iterator[Picture]:
        """All pictures in display order. Errors in the stream are counted in `num_errors`, not raised."""
        yield self._first
        yield from self._pictures

    def _configure(self, options: dict[str, str]) -> None:
        """One thread, so that every run gives the same; vectors; packets' tags on their frames."""
        context = self._stream.codec_context
        self._check_size(context.height, context.width)
        context.thread_type, context.thread_count = "NONE", 1
        # Else FFmpeg keeps some of the columns that are cropped at the left, so that rows begin at aligned addresses.
        context.flags |= Flags.unaligned
        context.flags2 |= Flags2.export_mvs
        context.copy_opaque = True
        context.options = options
        self._codec: str = context.codec.canonical_name
        self._time_base: Fraction = self._stream.time_base
        self._parameter_sets = ParameterSets(context.extradata) if self._codec == "h264" else None

    def _check_size(self, height: float, width: float) -> None:
        if height * width > self._max_pixels:
            pixels = f"{width:.0f}×{height:.0f} px"
            raise Unreadable(f"its pictures have {pixels}, more than max-pixels = {self._max_pixels}")

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise Unreadable(f"not done after max-seconds = {self._max_seconds}")

    def _decode(self) -> Iterator[Picture]:
        context, sets = self._stream.codec_context, self._parameter_sets
        for decode_index, packet in enumerate(self._packets()):
            self._check_time()
            if packet is not None:
                packet.opaque = (decode_index, read_header(packet, sets) if sets else None)
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                # As the ffmpeg program does: what the rest of the stream holds is still wanted.
                self._note(error)
                continue
            for frame in frames:
                if frame.width * frame.height <= self._max_pixels:
                    yield self._picture(frame)
                else:
                    self.num_errors += 1
        # Of a packet that the file's end cuts there is a picture, or an error, or neither.
        self.num_errors += self._cut_index is not None

    def _packets(self) -> Iterator["av.Packet[Any] | None"]:
        """The stream's packets, then None, which flushes the decoder; a read error is the end of the file."""
        for decode_index, packet in enumerate(self._demuxer.packets()):
            if self._demuxer.is_last_cut:
                self._cut_index = decode_index
            yield packet
        self.num_errors += self._demuxer.num_lost
        if self._demuxer.error is not None:
            self._last_error = reason_of(self._demuxer.error)
        yield None

    def _note(self, error: Exception) -> None:
        self.num_errors += 1
        self._cut_index = None
        self._last_error = reason_of(error)

    def _picture(self, frame: av.VideoFrame) -> Picture:
        vectors, matrix = side_data(frame, "MOTION_VECTORS"), side_data(frame, "DISPLAYMATRIX")
        tag: Any = frame.opaque
        decode_index, header = tag or (0, None)
        if header is None:
            # Outside H.264, I and P pictures are references and B pictures are not.
            header = PictureHeader(is_reference=frame.pict_type != PictureType.B, sequence=self._default_sequence)
        is_cut = decode_index == self._cut_index
        if is_cut:
            self._cut_index = None
        cropped = self._cropper.cropped(frame)
        pts, dts, base = frame.pts, frame.dts, self._time_base
        return Picture(
            frame=cropped.frame,
            left_px=header.sequence.left_px + cropped.left_px,
            top_px=header.sequence.top_px + cropped.top_px,
            vectors_K=None if vectors is None else np.frombuffer(vectors, VECTOR_DTYPE),
            # Not pts * base: making a Fraction of each picture's time takes longer than all else here.
            time_s=float("nan") if pts is None else pts * base.numerator / base.denominator,
            dts_s=float("nan") if dts is None else dts * base.numerator / base.denominator,
            picture_type=int(frame.pict_type),
            decode_index=decode_index,
            is_reference=header.is_reference,
            num_references=header.sequence.num_references,
            is_corrupt=frame.is_corrupt or is_cut,
            codec=self._codec,
            orientation=_orientation(matrix),
        )

    @property
    def _default_sequence(self) -> Sequence:
        """Of a picture whose packet is not known."""
        return self._parameter_sets.active if self._parameter_sets else ONE_REFERENCE

    def _read_header(self, first: Picture) -> Header:
        stream, frame = self._stream, first.frame
        height, width = float(frame.height), frame.width * float(stream.sample_aspect_ratio or 1)
        if first.orientation.is_transposed:
            height, width = width, height
        frame_rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE)
        if stream.duration and stream.time_base:
            duration_s = float(stream.duration * stream.time_base)
        else:
            duration_s = (self._container.duration or 0) / av.time_base
        return Header(
            codec=self._codec,
            height=frame.height,
            width=frame.width,
            display_height=height,
            display_width=width,
            rotation=first.orientation.degrees,
            frame_rate=frame_rate,
            num_frames_estimate=max(1, stream.frames or round(duration_s * frame_rate)),
        )


def read_header(packet: "av.Packet[Any]", sets: ParameterSets) -> PictureHeader:
    """What an H.264 packet tells of its picture; parameter sets that it brings are kept in `sets`."""
    if packet.has_sidedata("new_extradata"):
        sets.read_extradata(bytes(packet.get_sidedata("new_extradata")))
    return sets.read(bytes(packet))


def side_data(frame: av.VideoFrame, kind: str) -> Any:
    """The frame's side data of this kind as a buffer, None where it has none. Other kinds are ignored.

    Not by `frame.side_data`: that and the frame refer to each other, so that Python would hold a hundred frames which
    nobody needs any more, and of a long video's the more the longer it is.
    """
    _accept_unknown_kinds()
    return SideDataContainer(frame).get(kind)  # type: ignore[call-arg]


@cache
def _accept_unknown_kinds() -> None:
    """Let PyAV read a frame with side data of a kind that FFmpeg has and PyAV's table lacks, such as Exif.

    PyAV names all of a frame's side data before it gives any, and its enum raises ValueError for an unknown number
    (PyAV 18.1, sidedata.py; pull request 2392 completes the table, until FFmpeg's grows again). Here the enum makes a
    member of the number, as enum.Flag does. No other function of PyAV hands out side data or its numbers.
    """

    def unknown(cls: type[Type], number: object) -> Type:
        kind: Any = object.__new__(cls)
        kind._name_, kind._value_ = f"UNKNOWN_{number}", number
        return cast(Type, kind)

    Type._missing_ = classmethod(unknown)  # type: ignore[method-assign, assignment]


def _orientation(matrix: Any) -> Orientation:
    """From the display matrix (a, b, u, c, d, v, x, y, w): a pixel (x, y) is shown at (a·x + c·y, b·x + d·y)."""
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), "<i4").tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(is_flipped_x=a < 0, is_flipped_y=d < 0)
    return Orientation(is_transposed=True, is_flipped_x=c < 0, is_flipped_y=b < 0)

"""The packets of one stream, and how many of its frames are lost because the file ends early."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.stream import Discard

from mgm_prep.decoding.container import tagged_duration_s
from mgm_prep.decoding.file_end import promised_size
from mgm_prep.decoding.timestamps import MAX_PAUSE_DISCONTINUOUS_S, MAX_PAUSE_S

DEFAULT_FRAME_RATE = 25
# Formats whose header states the length of each stream; where a stream ends before, something is missing.
STREAM_DURATION = frozenset({"mxf", "gxf", "rm"})
# Formats that state one length for all streams, so that it says how much is missing, but not that something is.
FILE_DURATION = frozenset({"matroska", "flv"})
# A stated duration may be rounded up to a frame.
TOLERANCE_FRAMES = 1.5
TS_DISCONT = int(av.format.Flags.ts_discont.value)  # type: ignore[call-overload]


class Demuxer:
    """Reads one stream of an open container and skips all others."""

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self.error: av.FFmpegError | None = None
        """What ended the reading before the end of the file."""
        self.is_last_cut = False
        """Whether the end of the file cuts the packet that `packets` yields last; set before it does."""
        self.num_lost = 0
        """After `packets`: frames that the file promises and has no packet of. Where it ends early, at least 1 unless
        `is_last_cut`."""
        self._path, self._container, self._stream = path, container, stream
        self._format: str = container.format.name.split(",")[0]
        self._num_packets = 0
        self._end_ticks = 0
        # FFmpeg would seek to their packets too, and the first one beyond the end of the file ends the reading.
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all

    @property
    def max_pause_s(self) -> float:
        """The longest step of time that is no change of the clock, see `timestamps.rising`."""
        is_discontinuous = self._container.format.flags & TS_DISCONT
        return MAX_PAUSE_DISCONTINUOUS_S if is_discontinuous else MAX_PAUSE_S

    def packets(self) -> Iterator["av.Packet[Any]"]:
        """The packets in decoding order, without empty ones. A read error ends them and is not raised."""
        held = None
        try:
            for packet in self._container.demux(self._stream):
                self._note(packet)
                # An empty packet would end the decoding.
                if packet.size:
                    if held is not None:
                        yield held
                    held = packet
        except av.FFmpegError as error:
            self.error = error
        except IndexError:
            # All packets have been read. PyAV then flushes all streams, and fails on one that has turned up meanwhile.
            pass
        if held is not None:
            # FFmpeg marks the packet that the end of the file cuts. Marks on earlier ones concern the decoder.
            self.is_last_cut = held.is_corrupt
            yield held
        self.num_lost = self._count_lost()

    def _note(self, packet: "av.Packet[Any]") -> None:
        ticks = packet.pts if packet.pts is not None else packet.dts
        # PyAV's own last packet has neither. AVI has empty ones that repeat a frame, and counts them.
        self._num_packets += bool(packet.size) or ticks is not None
        if ticks is not None:
            self._end_ticks = max(self._end_ticks, ticks + (packet.duration or 0))

    def _count_lost(self) -> int:
        """Counted where the container has an index or a number of frames, else estimated from what is missing."""
        size = self._container.size
        try:
            promised = promised_size(self._path, self._format)
        except OSError:
            promised = size
        num_beyond = self._num_beyond() if self._format == "mov" else 0
        num_missing = self._num_missing()
        has_evidence = num_beyond or (num_missing and self._format in STREAM_DURATION) or promised > size
        if not has_evidence and not self.is_last_cut and self.error is None:
            return 0
        if self._format == "mov" and promised == size:
            num_lost = num_beyond
        elif self._format == "avi" and self._stream.frames >= self._num_packets:
            num_lost = self._stream.frames - self._num_packets
            if not num_lost and self.error is None:
                # Programs that never come back to write the file's size are not rare.
                return 0
        else:
            num_lost = max(num_beyond, num_missing) or round(self._num_packets * (promised / size - 1))
        return max(num_lost, not self.is_last_cut)

    def _num_beyond(self) -> int:
        """Samples in the index of an MP4 that do not lie wholly in the file, without one that was read in part."""
        entries, size = self._stream.index_entries, self._container.size
        if self._num_packets == len(entries) and not self.is_last_cut:
            return 0
        num_beyond: int = sum(entry.pos + entry.size > size for entry in entries)
        return num_beyond - self.is_last_cut

    def _num_missing(self) -> int:
        """Frames between the last packet and the end that the container states, at the rate of those before."""
        stream = self._stream
        start_s, end_s = (float(ticks * stream.time_base) for ticks in (stream.start_time or 0, self._end_ticks))
        if self._format in FILE_DURATION:
            stated_s = tagged_duration_s(stream) or (self._container.duration or 0) / av.time_base
        else:
            stated_s = float((stream.duration or 0) * stream.time_base)
        if end_s <= start_s:
            return 0
        num_missing = self._num_packets * (stated_s - end_s) / (end_s - start_s)
        return round(num_missing) if num_missing > TOLERANCE_FRAMES else 0

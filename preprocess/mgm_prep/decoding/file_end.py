"""Whether a file ends before its own structure says that it does: a download or a recording that was cut off.

FFmpeg ends such a file like a whole one, without an error, wherever the cut lies between two packets or in one of
another stream. The readers here look at sizes only, skip what they describe, and never allocate by them.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# The longest Ogg page (RFC 3533, 6), and enough transport packets to find their phase.
OGG_PAGE_BYTES = 27 + 255 + 255 * 255
TRANSPORT_TAIL_BYTES = 204 * 40
# Matroska's masters that hold other elements, down to the single frame (RFC 9559, 5.1).
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675
# A hostile file may have one every few bytes, and a day in fragments of a second has fewer.
MAX_ELEMENTS = 1_000_000
MAX_INDEX_BYTES = 32 + 12 * 65535
# Bytes of a frame of DV's two television systems (IEC 61834-2): 525 and 625 lines.
DV_FRAME_BYTES = (120_000, 144_000)

Reader = Callable[[BinaryIO, int], int]


def promised_size(path: Path, format_name: str) -> int:
    """Bytes that the file must have by its own structure, at least; its real size where nothing is missing or known.

    `format_name` is FFmpeg's, such as "matroska,webm". OSError when the file cannot be read.
    """
    reader = READERS.get(format_name.split(",")[0])
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            return max(size, reader(file, size)) if reader else size
        except (struct.error, IndexError, OverflowError):
            # The end lies in the very bytes that would say where it should be.
            return size + 1


def _iso_boxes(file: BinaryIO, size: int) -> int:
    """MP4 and QuickTime: boxes and the segment index (ISO/IEC 14496-12, 4.2, 8.16.3).

    Only of fragmented files: of the others FFmpeg's index knows each sample's place, and what else is lost is no frame.
    """
    position, promised, is_fragmented = 0, 0, False
    for _ in range(MAX_ELEMENTS):
        if position >= size:
            break
        file.seek(position)
        if size - position < 8 and not is_fragmented:
            break
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if length < 8:
            # 0 is a box that reaches to the end of the file, whatever that is.
            break
        is_fragmented |= kind == b"moof"
        if kind == b"sidx" and position + length <= size:
            promised = max(promised, position + length + _indexed_bytes(file.read(MAX_INDEX_BYTES)))
        position += length
    return max(position, promised) if is_fragmented else size


def _indexed_bytes(sidx: bytes) -> int:
    """What a segment index says that follows it."""
    layout, start = (">IHH", 16) if sidx[0] == 0 else (">QHH", 20)
    first_offset, _, num_references = struct.unpack_from(layout, sidx, start)
    references = sidx[start + struct.calcsize(layout) :]
    sizes = (struct.unpack_from(">I", references, 12 * k)[0] & 0x7FFFFFFF for k in range(num_references))
    return int(first_offset + sum(sizes))


def _matroska(file: BinaryIO, size: int) -> int:
    """Matroska and WebM: EBML elements (RFC 8794, 5 and 6); inside those of unknown size, their children."""
    position = 0
    for _ in range(MAX_ELEMENTS):
        if position >= size:
            break
        file.seek(position)
        header = file.read(12)
        identifier_bytes = 9 - header[0].bit_length()
        if identifier_bytes > 4:
            # Not an element: what follows cannot be walked.
            return size
        identifier = int.from_bytes(header[:identifier_bytes], "big")
        length_bytes = 9 - header[identifier_bytes].bit_length()
        if length_bytes > 8:
            return size
        coded = int.from_bytes(header[identifier_bytes : identifier_bytes + length_bytes], "big")
        ones = (1 << 7 * length_bytes) - 1
        position += identifier_bytes + length_bytes
        if coded & ones != ones:
            position += coded & ones
        elif identifier not in (SEGMENT, CLUSTER):
            return size
    return position


def _riff(file: BinaryIO, size: int) -> int:
    """AVI: RIFF chunks one behind the other (OpenDML has several)."""
    position = 0
    for _ in range(MAX_ELEMENTS):
        if position + 8 >= size:
            break
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or not length:
            return size
        position += 8 + length
        if position >= size:
            return int(position)
        position += length & 1
    return size


def _asf(file: BinaryIO, size: int) -> int:
    """ASF and WMV: the data object behind the header object (ASF specification, 3.1 and 5.1)."""
    file.seek(16)
    (start,) = struct.unpack("<Q", file.read(8))
    file.seek(min(start, size) + 16)
    (length,) = struct.unpack("<Q", file.read(8))
    return int(start + length)


def _flv(file: BinaryIO, size: int) -> int:
    """FLV: behind each tag stands its size (FLV specification 10.1, annex E.3)."""
    file.seek(max(0, size - 4))
    (length,) = struct.unpack(">I", file.read(4))
    file.seek(max(0, size - 4 - length))
    tag = file.read(4)
    is_whole = tag[0] & 31 in (8, 9, 18) and int.from_bytes(tag[1:4], "big") + 11 == length
    return size if is_whole else size + 1


def _ogg(file: BinaryIO, size: int) -> int:
    """Ogg: the last page is whole and ends its logical stream (RFC 3533, 6)."""
    start = max(0, size - 2 * OGG_PAGE_BYTES)
    file.seek(start)
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    num_segments = page[26]
    lengths = page[27 : 27 + num_segments]
    if len(lengths) < num_segments:
        return size + 1
    end = size - len(page) + 27 + num_segments + sum(lengths)
    is_last = bool(page[5] & 4)
    return end if is_last else max(end, size + 1)


def _transport_stream(file: BinaryIO, size: int) -> int:
    """MPEG-TS: packets of 188 bytes, with 4 in front in M2TS, with 16 of error correction behind in DVB's 204."""
    file.seek(max(0, size - TRANSPORT_TAIL_BYTES))
    tail = file.read()
    for packet_bytes, remainder in ((188, 0), (192, 188), (204, 0)):
        for start in range(min(packet_bytes, len(tail))):
            syncs = tail[start::packet_bytes]
            if len(syncs) > 3 and set(syncs) == {0x47}:
                missing = (remainder - (len(tail) - start)) % packet_bytes
                return size + missing
    return size


def _dv(file: BinaryIO, size: int) -> int:
    """Raw DV: frames of one size, by the bit DSF of the first header block."""
    file.seek(3)
    frame_bytes = DV_FRAME_BYTES[file.read(1)[0] >> 7]
    return size + -size % frame_bytes


def _gif(file: BinaryIO, size: int) -> int:
    """GIF: a trailer ends it (GIF89a, 27)."""
    file.seek(max(0, size - 1024))
    return size if file.read().rstrip(b"\0").endswith(b";") else size + 1


READERS: dict[str, Reader] = {
    "mov": _iso_boxes,
    "matroska": _matroska,
    "avi": _riff,
    "asf": _asf,
    "flv": _flv,
    "ogg": _ogg,
    "mpegts": _transport_stream,
    "dv": _dv,
    "gif": _gif,
}

"""What H.264's own headers tell and FFmpeg does not export: which pictures are references, how many are kept, the crop.

A stream may bring new parameter sets at any time (joined files, adaptive streams), so they are read from every packet.
Section and syntax element names are those of ITU-T H.264.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mgm_prep.decoding.h264_sps import Bits, Sequence, parse_sps

SLICES = frozenset({1, 2, 5})
SPS, PPS = 7, 8
START_CODE = b"\x00\x00\x01"
# Enough for the first three elements of a slice header, of which the first two are below 2^20.
SLICE_HEADER_BYTES = 16
# More than a parameter set ever has: with all scaling lists, an SPS has about 900.
MAX_UNIT_BYTES = 4096
UNKNOWN = Sequence()


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What the first slice of a packet tells of the picture."""

    is_reference: bool = True
    """Whether later pictures may refer to it."""
    sequence: Sequence = UNKNOWN
    """The parameter set that is active."""


@dataclass
class ParameterSets:
    """The parameter sets of a stream so far; give it the packets in decoding order."""

    extradata: bytes | None = None
    _length_bytes: int = 0
    _sequences: dict[int, Sequence] = field(default_factory=dict)
    """By seq_parameter_set_id; a later set replaces an earlier one of the same id."""
    _sps_ids: dict[int, int] = field(default_factory=dict)
    """seq_parameter_set_id by pic_parameter_set_id."""
    _active: Sequence = UNKNOWN

    def __post_init__(self) -> None:
        self.read_extradata(self.extradata)

    @property
    def active(self) -> Sequence:
        """The set that the last slice used, or else the last one that was read."""
        return self._active

    def read_extradata(self, extradata: bytes | None) -> None:
        """Read avcC (ISO/IEC 14496-15, 5.3.3.1) or NAL units behind start codes; a packet's side data may be either."""
        length_bytes = nal_length_bytes(extradata)
        self._length_bytes = length_bytes or self._length_bytes
        units = _avcc_units(extradata or b"") if length_bytes else nal_units(extradata or b"", 0)
        for unit in units:
            self._read_set(unit)

    def read(self, packet: bytes) -> PictureHeader:
        """Read a packet's parameter sets and its first slice; of a packet without a slice the defaults."""
        # Some MP4 writers leave start codes in; FFmpeg reads those too.
        length_bytes = 0 if packet.startswith(b"\x00" + START_CODE) else self._length_bytes
        for unit in nal_units(packet, length_bytes):
            if unit[0] & 31 in SLICES:
                self._activate(unit)
                return PictureHeader(is_reference=bool(unit[0] >> 5 & 3), sequence=self._active)
            self._read_set(unit)
        return PictureHeader(sequence=self._active)

    def _read_set(self, unit: bytes) -> None:
        """Keep a parameter set. A damaged one is ignored, as FFmpeg does, and the one before it stays."""
        try:
            if unit[0] & 31 == SPS:
                sps_id, self._active = parse_sps(_payload(unit))
                self._sequences[sps_id] = self._active
            elif unit[0] & 31 == PPS:
                bits = Bits(_payload(unit[:SLICE_HEADER_BYTES]))
                pps_id = bits.unsigned()
                self._sps_ids[pps_id] = bits.unsigned()
        except (IndexError, ValueError):
            return

    def _activate(self, unit: bytes) -> None:
        """Slice → picture parameter set → sequence parameter set (7.4.1.2.1)."""
        try:
            bits = Bits(_payload(unit[:SLICE_HEADER_BYTES]))
            bits.unsigned()  # first_mb_in_slice
            bits.unsigned()  # slice_type
            self._active = self._sequences[self._sps_ids[bits.unsigned()]]
        except (IndexError, KeyError):
            return


def nal_length_bytes(extradata: bytes | None) -> int:
    """Bytes of the length in front of each NAL unit (avcC), or 0 for start codes (Annex B)."""
    is_avcc = bool(extradata) and len(extradata or b"") > 6 and (extradata or b"")[0] == 1
    return ((extradata or b"")[4] & 3) + 1 if is_avcc else 0


def nal_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The NAL units, none of them empty and each one's first MAX_UNIT_BYTES only; the last one as far as it goes."""
    position = 0 if length_bytes else _behind_start_code(data, 0)
    while position < len(data):
        start = position + length_bytes
        longest = start + MAX_UNIT_BYTES
        if length_bytes:
            position = start + int.from_bytes(data[position:start], "big")
            end = min(position, longest)
        else:
            found = data.find(START_CODE, start, longest)
            end = longest if found < 0 else found
        unit = data[start:end]
        if not length_bytes:
            # trailing_zero_8bits (B.1.1) are of no unit, and none ends in a zero.
            unit = unit.rstrip(b"\x00")
            position = _behind_start_code(data, end)
        if unit:
            yield unit


def _behind_start_code(data: bytes, position: int) -> int:
    """Where the next NAL unit begins, the end of the data where none does."""
    found = data.find(START_CODE, position)
    return len(data) if found < 0 else found + len(START_CODE)


def _avcc_units(extradata: bytes) -> Iterator[bytes]:
    """The parameter sets of avcC: a count, then each with its length in two bytes; for SPS, then for PPS."""
    position = 5
    for mask in (31, 255):
        num_sets = extradata[position] & mask if position < len(extradata) else 0
        position += 1
        for _ in range(num_sets):
            start = position + 2
            position = start + int.from_bytes(extradata[position:start], "big")
            if extradata[start:position]:
                yield extradata[start:position]


def _payload(unit: bytes) -> bytes:
    """7.4.1: a 3 behind two zeros only keeps the payload from looking like a start code."""
    return unit[1:].replace(b"\x00\x00\x03", b"\x00\x00")

"""What H.264's own headers tell and FFmpeg does not hand on: which pictures are references, and how many are kept.

Section and syntax element names are those of ITU-T H.264.
"""

from itertools import repeat

# A decoder never keeps more (A.3.1).
MAX_REFERENCES = 16
SPS = 7
# Profiles whose sequence parameter set says more about its samples (7.3.2.1.1).
HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def nal_length_bytes(extradata: bytes | None) -> int:
    """Bytes of the length in front of each NAL unit (avcC), or 0 for start codes (Annex B)."""
    is_avcc = bool(extradata) and len(extradata or b"") > 6 and (extradata or b"")[0] == 1
    return ((extradata or b"")[4] & 3) + 1 if is_avcc else 0


def is_reference(packet: bytes, length_bytes: int) -> bool:
    """nal_ref_idc of the packet's first slice (7.3.1): 0 says that no picture refers to this one."""
    position = 0
    while True:
        if length_bytes:
            start = position + length_bytes
            position = start + int.from_bytes(packet[position:start], "big")
        else:
            start = packet.find(b"\x00\x00\x01", position) + 3
            position = start
            if start < 3:
                return True
        if start >= len(packet):
            return True
        if packet[start] & 31 in (1, 2, 5):
            return bool(packet[start] >> 5 & 3)


def num_references(extradata: bytes | None) -> int:
    """max_num_ref_frames of the first sequence parameter set; the most that there can be when none is to be read."""
    try:
        return min(MAX_REFERENCES, _max_num_ref_frames(_first_sps(extradata or b"")))
    except (IndexError, ValueError):
        return MAX_REFERENCES


def _first_sps(extradata: bytes) -> bytes:
    """Its payload, behind the NAL unit's header; IndexError when there is none."""
    if extradata[0] == 1:
        start = 8
        end = start + int.from_bytes(extradata[6:8], "big")
    else:
        start = extradata.find(b"\x00\x00\x01") + 3
        while extradata[start] & 31 != SPS:
            start = extradata.index(b"\x00\x00\x01", start) + 3
        end = len(extradata)
    # 7.4.1: a 3 behind two zeros only keeps the payload from looking like a start code.
    return extradata[start + 1 : end].replace(b"\x00\x00\x03", b"\x00\x00")


def _max_num_ref_frames(sps: bytes) -> int:
    """7.3.2.1.1, as far as the element that is wanted."""
    bits = _Bits(sps[3:])
    bits.unsigned()  # seq_parameter_set_id
    if sps[0] in HIGH_PROFILES:
        is_444 = bits.unsigned() == 3  # chroma_format_idc
        bits.skip(is_444)  # separate_colour_plane_flag
        bits.unsigned()  # bit_depth_luma_minus8
        bits.unsigned()  # bit_depth_chroma_minus8
        bits.skip(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.take(1):  # seq_scaling_matrix_present_flag
            raise ValueError("scaling lists are not read")
    bits.unsigned()  # log2_max_frame_num_minus4
    order_type = bits.unsigned()  # pic_order_cnt_type
    if order_type == 0:
        bits.unsigned()  # log2_max_pic_order_cnt_lsb_minus4
    elif order_type == 1:
        bits.skip(1)  # delta_pic_order_always_zero_flag
        bits.unsigned()  # offset_for_non_ref_pic
        bits.unsigned()  # offset_for_top_to_bottom_field
        for _ in repeat(None, min(255, bits.unsigned())):  # num_ref_frames_in_pic_order_cnt_cycle
            bits.unsigned()
    return bits.unsigned()


class _Bits:
    """Reads bits from the left; IndexError beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._text = "".join(f"{byte:08b}" for byte in data)
        self._position = 0

    def skip(self, count: int) -> None:
        self._position += count

    def take(self, count: int) -> int:
        self._position += count
        if self._position > len(self._text):
            raise IndexError("the parameter set ends early")
        return int(self._text[self._position - count : self._position] or "0", 2)

    def unsigned(self) -> int:
        """ue(v), an Exp-Golomb code (9.1)."""
        num_zeros = 0
        while not self.take(1):
            num_zeros += 1
        return (1 << num_zeros) - 1 + self.take(num_zeros)

"""The sequence parameter set of H.264: how many references a picture may have, and where the shown picture begins.

Section and syntax element names are those of ITU-T H.264.
"""

from dataclasses import dataclass
from itertools import repeat

# A decoder never keeps more (A.3.1).
MAX_REFERENCES = 16
# Profiles whose sequence parameter set says more about its samples (7.3.2.1.1).
HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
MACROBLOCK_PX = 16


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """What a sequence parameter set says that FFmpeg does not export. The defaults are for a set that is not known."""

    num_references: int = MAX_REFERENCES
    """max_num_ref_frames."""
    left_px: int = 0
    top_px: int = 0
    """The corner of the shown picture in the coded picture: frame_crop_left_offset and frame_crop_top_offset."""


def parse_sps(payload: bytes) -> tuple[int, Sequence]:
    """seq_parameter_set_id, and what the set says. IndexError or ValueError for a damaged set.

    `payload` is the NAL unit without its header and without emulation prevention bytes.
    """
    bits = Bits(payload[3:])
    sps_id = bits.unsigned()
    chroma_format = _skip_sample_format(bits) if payload[0] in HIGH_PROFILES else 1
    bits.unsigned()  # log2_max_frame_num_minus4
    _skip_picture_order(bits)
    num_references = min(MAX_REFERENCES, bits.unsigned())
    bits.skip(1)  # gaps_in_frame_num_value_allowed_flag
    width_px = (bits.unsigned() + 1) * MACROBLOCK_PX
    height_px = (bits.unsigned() + 1) * MACROBLOCK_PX
    num_fields = 2 - bits.take(1)  # frame_mbs_only_flag
    bits.skip(num_fields - 1)  # mb_adaptive_frame_field_flag
    bits.skip(1)  # direct_8x8_inference_flag
    left = right = top = bottom = 0
    if bits.take(1):  # frame_cropping_flag
        left, right, top, bottom = (bits.unsigned() for _ in repeat(None, 4))
    # CropUnitX and CropUnitY (7.4.2.1.1).
    unit_x = 2 if chroma_format in (1, 2) else 1
    unit_y = (2 if chroma_format == 1 else 1) * num_fields
    if (left + right) * unit_x >= width_px or (top + bottom) * unit_y >= height_px * num_fields:
        raise ValueError("the crop leaves nothing of the picture")
    return sps_id, Sequence(num_references=num_references, left_px=left * unit_x, top_px=top * unit_y)


def _skip_sample_format(bits: "Bits") -> int:
    """The elements that only HIGH_PROFILES have; returns chroma_format_idc, 0 where the planes are coded separately."""
    chroma_format = bits.unsigned()
    has_separate_planes = chroma_format == 3 and bool(bits.take(1))  # separate_colour_plane_flag
    bits.unsigned()  # bit_depth_luma_minus8
    bits.unsigned()  # bit_depth_chroma_minus8
    bits.skip(1)  # qpprime_y_zero_transform_bypass_flag
    if bits.take(1):  # seq_scaling_matrix_present_flag
        for number in range(12 if chroma_format == 3 else 8):
            if bits.take(1):  # seq_scaling_list_present_flag
                _skip_scaling_list(bits, 16 if number < 6 else 64)
    return 0 if has_separate_planes else chroma_format


def _skip_scaling_list(bits: "Bits", size: int) -> None:
    """7.3.2.1.1.1: the list ends early where the next value would be 0."""
    value = 8
    for _ in repeat(None, size):
        value = (value + bits.signed()) % 256  # delta_scale
        if value == 0:
            return


def _skip_picture_order(bits: "Bits") -> None:
    order_type = bits.unsigned()  # pic_order_cnt_type
    if order_type == 0:
        bits.unsigned()  # log2_max_pic_order_cnt_lsb_minus4
    elif order_type == 1:
        bits.skip(1)  # delta_pic_order_always_zero_flag
        bits.unsigned()  # offset_for_non_ref_pic
        bits.unsigned()  # offset_for_top_to_bottom_field
        for _ in repeat(None, min(255, bits.unsigned())):  # num_ref_frames_in_pic_order_cnt_cycle
            bits.unsigned()


class Bits:
    """Reads bits from the left; IndexError beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._text = f"{int.from_bytes(data):0{8 * len(data)}b}" if data else ""
        self._position = 0

    def skip(self, count: int) -> None:
        self._position += count

    def take(self, count: int) -> int:
        self._position += count
        if self._position > len(self._text):
            raise IndexError("the data end early")
        return int(self._text[self._position - count : self._position] or "0", 2)

    def unsigned(self) -> int:
        """ue(v), an Exp-Golomb code (9.1)."""
        first_one = self._text.find("1", self._position)
        if first_one < 0:
            raise IndexError("the data end early")
        num_zeros = first_one - self._position
        self._position = first_one + 1
        return (1 << num_zeros) - 1 + self.take(num_zeros)

    def signed(self) -> int:
        """se(v): 0, 1, −1, 2, −2, … (9.1.1)."""
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)

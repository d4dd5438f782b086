"""H.264's parameter sets, against ffmpeg's own trace of the headers and the speed of a pan behind a later set."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from synthetic import FFMPEG, ffmpeg, moving_pattern, pan, texture, write_video

from mgm_prep.decoding.h264 import PPS, SLICES, SPS, ParameterSets, nal_units
from mgm_prep.decoding.h264_sps import Sequence, parse_sps
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.motion.codec import motion_grid, with_references

SPEED = 3


def _traced(path: Path, name: Any) -> list[Any]:
    """The values of a syntax element, in the stream's order, as ffmpeg's bitstream filter trace_headers reads them."""
    command = [FFMPEG, "-hide_banner", "-i", str(path), "-c", "copy", "-bsf:v", "trace_headers", "-f", "null", "-"]
    trace = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [int(line.split("=")[-1]) for line in trace.splitlines() if f" {name} " in line]


def _units(path: Path) -> list[Any]:
    """The NAL units of an Annex B file."""
    return list(nal_units(path.read_bytes(), 0))


def _joined(units: Any) -> Any:
    return b"".join(b"\x00\x00\x00\x01" + unit for unit in units)


def _sps_of(path: Path) -> Any:
    return next(unit for unit in _units(path) if unit[0] & 31 == SPS)


def _unescaped(unit: Any) -> Any:
    return unit[1:].replace(b"\x00\x00\x03", b"\x00\x00")


SETTINGS = {
    "defaults": [],
    "one reference": ["-refs", "1", "-bf", "0"],
    "16 references": ["-refs", "16"],
    "baseline": ["-profile:v", "baseline"],
    "4:2:2, 10 bits": ["-pix_fmt", "yuv422p10le"],
    "4:4:4": ["-pix_fmt", "yuv444p"],
    "lossless": ["-qp", "0"],
    "grey": ["-pix_fmt", "gray"],
    "interlaced": ["-x264-params", "interlaced=1"],
    "sps id": ["-x264-params", "sps-id=5"],
    "VUI": ["-x264-params", "nal-hrd=vbr:vbv-maxrate=900:vbv-bufsize=900:bframes=0"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_set_says_what_ffmpeg_reads(tmp_path: Path, name: Any) -> None:
    options = ["-pix_fmt", "yuv420p", *SETTINGS[name]]
    plain = moving_pattern(tmp_path / "plain.h264", "-c:v", "libx264", *options, size="120x88", seconds=0.2)
    path = tmp_path / "cut.h264"
    ffmpeg("-i", str(plain), "-c", "copy", "-bsf:v", "h264_metadata=crop_left=12:crop_top=8", str(path))
    sps_id, sequence = parse_sps(_unescaped(_sps_of(path)))
    assert sps_id == _traced(path, "seq_parameter_set_id")[0]
    assert sequence.num_references == _traced(path, "max_num_ref_frames")[0]
    unit_x = 1 if name in ("4:4:4", "grey") else 2
    unit_y = {"4:2:2, 10 bits": 1, "4:4:4": 1, "grey": 1, "interlaced": 4}.get(name, 2)
    assert sequence.left_px == unit_x * _traced(path, "frame_crop_left_offset")[0] == 12
    assert sequence.top_px == unit_y * _traced(path, "frame_crop_top_offset")[0] == 8


def _ue(value: Any) -> str:
    text = f"{value + 1:b}"
    return "0" * (len(text) - 1) + text


def _se(value: Any) -> Any:
    return _ue(2 * value - 1 if value > 0 else -2 * value)


def _bits(data: Any) -> Any:
    return "".join(f"{byte:08b}" for byte in data)


def _with_scaling_lists(sps: Any, lists: Any) -> bytes:
    """The unit with seq_scaling_matrix_present_flag and, for each list, its deltas or None for no list."""
    bits = _bits(_unescaped(sps))
    # Profile, flags, level; sps id 0; chroma_format_idc 1, or 3 and one more flag; 8 bits twice; no bypass.
    prefix = bits[:24] + {8: "1010110", 12: "10010001 10".replace(" ", "")}[len(lists)]
    assert bits.startswith(prefix + "0")
    coded = "".join("0" if deltas is None else "1" + "".join(map(_se, deltas)) for deltas in lists)
    bits = prefix + "1" + coded + bits[len(prefix) + 1 :]
    bits += "0" * (-len(bits) % 8)
    payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
    escaped = bytearray(sps[:1])
    for byte in payload:
        if escaped[-2:] == b"\x00\x00" and byte <= 3 and len(escaped) > 2:
            escaped.append(3)
        escaped.append(byte)
    return bytes(escaped)


FLAT = [8] + [0] * 15, [8] + [0] * 63
LISTS = {
    "flat": [FLAT[number >= 6] for number in range(8)],
    "some": [FLAT[0], None, [-8], None, [8] + [1] * 4 + [-20], [-8], None, [20, -12, 4] + [0] * 61],
    "flat, 4:4:4": [FLAT[number >= 6] for number in range(12)],
    "some, 4:4:4": [None] * 6 + [[-8], FLAT[1], None, [-128, 127] + [1] * 62, None, [120, -128]],
}


@pytest.mark.parametrize("name", LISTS)
def test_scaling_lists(tmp_path: Path, name: str) -> None:
    """ffmpeg reads the same behind them, and where all are 16 decodes the same pictures."""
    lists: Any = LISTS[name]
    pix_fmt = "yuv420p" if len(lists) == 8 else "yuv444p"
    options = ["-c:v", "libx264", "-pix_fmt", pix_fmt, "-refs", "3", "-bf", "0"]
    plain = moving_pattern(tmp_path / "plain.h264", *options, size="118x86", seconds=0.2)
    units = [_with_scaling_lists(unit, lists) if unit[0] & 31 == SPS else unit for unit in _units(plain)]
    path = tmp_path / "lists.h264"
    path.write_bytes(_joined(units))
    assert set(_traced(path, "seq_scaling_matrix_present_flag")) == {1}
    assert parse_sps(_unescaped(_sps_of(path)))[1] == Sequence(num_references=_traced(path, "max_num_ref_frames")[0])
    with VideoFile(path) as video:
        assert {picture.num_references for picture in video.pictures()} == {3}
    if "flat" in name:
        raw = ["-f", "rawvideo", "-"]
        assert ffmpeg("-i", str(path), *raw) == ffmpeg("-i", str(plain), *raw)


def test_a_damaged_set_leaves_the_one_before(tmp_path: Path) -> None:
    """One that ends early is ignored, unless what is wanted of it is there."""
    two, five = (
        _units(moving_pattern(tmp_path / f"{n}.h264", "-c:v", "libx264", "-refs", n, "-bf", "0", seconds=0.2))
        for n in ("2", "5")
    )
    (sps,) = (unit for unit in five if unit[0] & 31 == SPS)
    found = []
    for keep in range(1, len(sps) + 1):
        sets = ParameterSets(_joined(two[:2]))
        found.append(sets.read(_joined([sps[:keep], two[-1]])).sequence.num_references)
    assert found == sorted(found)
    assert (found[:8], found[-8:]) == ([2] * 8, [5] * 8)


def test_random_bytes_raise_nothing() -> None:
    rng = np.random.default_rng(0)
    for length in rng.integers(0, 60, 400):
        data = rng.integers(0, 256, length).astype(np.uint8).tobytes()
        sets = ParameterSets(bytes([1, 100, 0, 31, 255]) + data)
        sets.read(data)
        for kind in (SPS, PPS, 5):
            ParameterSets().read(b"\x00\x00\x01" + bytes([0x60 | kind]) + data)


def _refs_clip(path: Path, num_references: Any, *params: str) -> Path:
    """Two scenes in turn that move by SPEED; with one reference only ever the picture before, with more that of two."""
    scenes = texture(seed=1), texture(seed=2)
    is_alternating = num_references > 1

    def frames() -> Iterator[Any]:
        for t in range(20):
            scene_HWC = scenes[t % 2 if is_alternating else 0]
            yield np.ascontiguousarray(np.roll(scene_HWC, SPEED * t, 1)[:240, :320])

    options = {"bf": "0", "refs": str(num_references), "sc_threshold": "0", "preset": "slow"}
    return write_video(path, frames(), options=options | ({"x264-params": ":".join(params)} if params else {}))


def _check_speeds(path: Path, num_references: Any) -> None:
    """`num_references`: of each of the clips that were joined."""
    with VideoFile(path) as video:
        pictures = list(with_references(video.pictures()))
    assert [picture.num_references for picture, _ in pictures] == [n for n in num_references for _ in range(20)]
    for number, (picture, references) in enumerate(pictures):
        # What alternates has nothing to refer to at first.
        if number % 20 > 1:
            motion_YX2 = motion_grid(picture, references)
            assert np.abs(np.nanmedian(motion_YX2, axis=(0, 1)) - (SPEED, 0)).max() <= 0.25, number


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Annex B files of 1 and 4 references, the ids of their sets 0 and 1."""
    root = tmp_path_factory.mktemp("clips")
    return [_refs_clip(root / "one.h264", 1, "sps-id=0"), _refs_clip(root / "four.h264", 4, "sps-id=1")]


@pytest.mark.parametrize("suffix", ["h264", "ts", "mkv", "mp4", "avi"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0)], ids=str)
def test_each_sequence_has_its_own_number_of_references(
    clips: list[Path], tmp_path: Path, order: Any, suffix: str
) -> None:
    """In-band sets in an elementary and a transport stream, in Matroska and AVI, and in MP4 as avc3."""
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(clips[number].read_bytes() for number in order))
    if suffix == "ts":
        joined.with_suffix(".ts").write_bytes(b"".join(_remuxed(clips[n], tmp_path / f"{n}.ts") for n in order))
    elif suffix != "h264":
        tag = ["-tag:v", "avc3"] if suffix == "mp4" else []
        _remuxed(joined, joined.with_suffix(f".{suffix}"), *tag)
    _check_speeds(joined.with_suffix(f".{suffix}"), [(1, 4)[number] for number in order])


def _remuxed(source: Path, target: Path, *options: str) -> bytes:
    ffmpeg("-r", "25", "-i", str(source), "-c", "copy", *options, str(target))
    return target.read_bytes()


def test_sets_of_the_same_id(tmp_path: Path) -> None:
    """As in joined files of one encoder."""
    clips = [_refs_clip(tmp_path / f"{n}.h264", n) for n in (1, 4)]
    (tmp_path / "joined.h264").write_bytes(b"".join(clip.read_bytes() for clip in clips))
    _check_speeds(tmp_path / "joined.h264", [1, 4])


def test_new_extradata_beside_a_packet(clips: list[Path], tmp_path: Path) -> None:
    """A joined FLV: FFmpeg hands the second avcC out as side data of a packet."""
    data = b""
    for number, clip in enumerate(clips):
        ffmpeg("-r", "25", "-i", str(clip), "-c", "copy", "-output_ts_offset", str(number), str(tmp_path / "a.flv"))
        file = (tmp_path / "a.flv").read_bytes()
        # Header of 9 bytes, and the length of no tag.
        data += file if number == 0 else file[13:]
    path = tmp_path / "joined.flv"
    path.write_bytes(data)
    with av.open(str(path)) as container:
        kinds = [packet.has_sidedata("new_extradata") for packet in container.demux(video=0)]
    assert any(kinds[1:])
    _check_speeds(path, [1, 4])


def test_slices_choose_among_sets_sent_before(clips: list[Path]) -> None:
    """Both at the start, and the slices say which one is active; avcC and Annex B."""
    units = [_units(clip) for clip in clips]
    sets = [unit for clip in units for unit in clip if unit[0] & 31 in (SPS, PPS)]
    slices = [next(unit for unit in clip if unit[0] & 31 in SLICES) for clip in units]
    sps, pps = ([unit for unit in sets if unit[0] & 31 == kind] for kind in (SPS, PPS))
    counted = [
        bytes([first | len(kind)]) + b"".join(len(unit).to_bytes(2, "big") + unit for unit in kind)
        for first, kind in ((0xE0, sps), (0, pps))
    ]
    avcc = bytes([1, *sps[0][1:4], 0xFF]) + b"".join(counted)
    for extradata, is_avcc in ((avcc, True), (_joined(sets), False)):
        found = ParameterSets(extradata)
        for number in (0, 1, 0, 0, 1):
            packet = _joined([slices[number]])
            if is_avcc:
                packet = len(slices[number]).to_bytes(4, "big") + slices[number]
            assert found.read(packet).sequence.num_references == (1, 4)[number]
    # Start codes in spite of avcC, as some writers leave them.
    assert ParameterSets(avcc).read(_joined([slices[1]])).sequence.num_references == 4


def test_an_unknown_set_allows_the_most_references(clips: list[Path]) -> None:
    slices = [unit for unit in _units(clips[0]) if unit[0] & 31 in SLICES]
    assert ParameterSets().read(_joined(slices[:1])).sequence == Sequence(num_references=16)
    assert ParameterSets(b"").active == ParameterSets(None).active == Sequence()


def test_a_pan_is_not_disturbed_by_a_change_of_size(tmp_path: Path) -> None:
    """References of another size are none."""
    clips = [
        write_video(tmp_path / f"{n}.h264", pan((3, -2), 12, *size), options={"refs": "4", "bf": "2"})
        for n, size in enumerate([(240, 320), (128, 160)])
    ]
    (tmp_path / "joined.h264").write_bytes(b"".join(clip.read_bytes() for clip in clips))
    with VideoFile(tmp_path / "joined.h264") as video:
        grids = [(p.picture_type, motion_grid(p, references)) for p, references in with_references(video.pictures())]
    assert [grid_YX2.shape[:2] for _, grid_YX2 in grids] == [(30, 40)] * 12 + [(16, 20)] * 12
    for picture_type, grid_YX2 in grids:
        if picture_type != 1:
            assert np.abs(np.nanmedian(grid_YX2, axis=(0, 1)) - (3, -2)).max() <= 0.25

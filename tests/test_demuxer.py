"""Files that end early: what they still hold is read, and what they lost is counted, in every container.

The oracle is the ffmpeg program's count of frames, in the whole file and in what is left of it.
"""

import struct
from pathlib import Path
from typing import Any

import av
import pytest
from synthetic import ffmpeg, pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.file_end import promised_size
from mgm_prep.decoding.mv_extractor import CapturedFile
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.failures import read_failures
from mgm_shared.store import open_store

SOURCES = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2.4", "-f", "lavfi", "-i", "sine=d=2.4")
NUM_FRAMES = 60
H264 = ("-c:v", "libx264", "-bf", "2", "-g", "15")
FASTSTART, FRAGMENTS = ("-movflags", "+faststart"), ("-movflags", "frag_keyframe+empty_moov")
INDEXED_FRAGMENTS = ("-movflags", "frag_keyframe+dash+global_sidx")

# Name → options, and whether the container says how much it should hold.
CONTAINERS = {
    "a.mp4": ((*H264, *FASTSTART), True),
    "a.mov": (("-c:v", "mjpeg", *FASTSTART), True),
    "fragments.mp4": ((*H264, *FRAGMENTS), False),
    "indexed.mp4": ((*H264, *INDEXED_FRAGMENTS), True),
    "a.mkv": (H264, True),
    "live.mkv": ((*H264, "-live", "1"), False),
    "a.webm": (("-c:v", "libvpx", "-deadline", "realtime"), True),
    "mpeg4.avi": (("-c:v", "mpeg4", "-bf", "2"), True),
    "mjpeg.avi": (("-c:v", "mjpeg"), True),
    "a.ts": (H264, False),
    "a.m2ts": (H264, False),
    "mpeg2.ts": (("-c:v", "mpeg2video", "-bf", "2"), False),
    "a.mpg": (("-c:v", "mpeg2video", "-bf", "2"), False),
    "a.vob": (("-c:v", "mpeg2video"), False),
    "h264.flv": (H264, True),
    "flv1.flv": (("-c:v", "flv1"), True),
    "a.ogv": (("-c:v", "libtheora", "-g", "10"), False),
    "a.wmv": (("-c:v", "wmv2"), True),
    "a.rm": (("-c:v", "rv20", "-c:a", "ac3"), True),
    "a.mxf": (("-c:v", "mpeg2video", "-c:a", "pcm_s16le", "-ar", "48000"), True),
    "a.h264": ((*H264, "-an"), False),
    "a.m2v": (("-c:v", "mpeg2video", "-an"), False),
}


def _counts(path: Path, reader: type[VideoFile] = VideoFile) -> tuple[int, int]:
    """Pictures, and how many are counted as damaged or missing."""
    with reader(path) as video:
        num_pictures = num_corrupt = 0
        for picture in video.pictures():
            num_pictures += 1
            num_corrupt += picture.is_corrupt
        return num_pictures, num_corrupt + video.num_errors


def _num_frames(path: Path) -> int:
    """How many frames the ffmpeg program makes of the video."""
    rows = ffmpeg("-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "-").splitlines()
    return sum(not row.startswith(b"#") for row in rows)


def _cut(path: Path, num_bytes: int) -> Path:
    path.write_bytes(path.read_bytes()[:num_bytes])
    return path


@pytest.mark.parametrize("share", [0.35, 0.6, 0.85])
@pytest.mark.parametrize("name", CONTAINERS)
def test_an_early_end_is_counted(tmp_path: Path, name: Any, share: float) -> None:
    options, states_length = CONTAINERS[name]
    path = tmp_path / name
    ffmpeg(*SOURCES, *options, str(path))
    assert _counts(path) == (NUM_FRAMES, 0)
    _cut(path, int(path.stat().st_size * share))
    num_pictures, num_damaged = _counts(path)
    assert num_pictures == _num_frames(path) <= NUM_FRAMES
    assert num_damaged > 0 or num_pictures == NUM_FRAMES
    if states_length:
        # A damaged picture may be there and be counted too.
        assert num_pictures + num_damaged == pytest.approx(NUM_FRAMES, abs=max(2, 0.12 * NUM_FRAMES))


def _not_interleaved(path: Path) -> Path:
    """All of the video, then all of the sound, behind their index."""
    ffmpeg(*SOURCES, *H264, str(path.with_name("interleaved.mp4")))
    options = {"movflags": "+faststart", "max_interleave_delta": "1"}
    with av.open(str(path.with_name("interleaved.mp4"))) as source, av.open(str(path), "w", options=options) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.dts is not None]
        for packet in sorted(packets, key=lambda packet: packet.stream.index):
            packet.stream = streams[packet.stream.index]
            out.mux_one(packet)
    return path


@pytest.mark.parametrize("reader", [VideoFile, CapturedFile])
def test_samples_of_another_track_beyond_the_end(tmp_path: Path, reader: Any) -> None:
    """Issue 56 of rbyte: the sound's first sample lies beyond the cut, and FFmpeg ends there with half the video."""
    if reader is CapturedFile:
        pytest.importorskip("mvextractor")
    path = _not_interleaved(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        last = container.streams.video[0].index_entries[-4]
    _cut(path, last.pos + 1)
    assert _num_frames(path) == NUM_FRAMES - 4
    # mv-extractor has an FFmpeg of its own, which still ends early; that counts too.
    num_pictures = NUM_FRAMES - 4 if reader is VideoFile else NUM_FRAMES // 2
    assert _counts(path, reader) == (num_pictures, NUM_FRAMES - num_pictures)


@pytest.mark.parametrize("num_bytes", [0, 1])
def test_a_cut_between_two_samples(tmp_path: Path, num_bytes: int) -> None:
    """No byte of the next sample is there, or one: the same frames are lost."""
    path = tmp_path / "a.mp4"
    ffmpeg(*SOURCES[:4], *H264, *FASTSTART, str(path))
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[40]
    assert _counts(_cut(path, entry.pos + num_bytes)) == (40, 20)


def test_sound_beyond_the_end_is_no_loss(tmp_path: Path) -> None:
    path = _not_interleaved(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        last = container.streams.video[0].index_entries[-1]
    assert _counts(_cut(path, last.pos + last.size)) == (NUM_FRAMES, 0)


def test_a_cut_between_two_fragments(tmp_path: Path) -> None:
    """Nothing is cut, but the segment index in front knows of more."""
    path = tmp_path / "a.mp4"
    ffmpeg(*SOURCES[:4], *H264, *INDEXED_FRAGMENTS, str(path))
    content = path.read_bytes()
    third = [k for k in range(len(content)) if content.startswith(b"moof", k)][2] - 4
    num_pictures, num_damaged = _counts(_cut(path, third))
    assert num_pictures == 30
    assert num_pictures + num_damaged == pytest.approx(60, abs=10)


def test_an_avi_whose_size_was_never_written(tmp_path: Path) -> None:
    """A recorder that does not come back to the header: all frames are there."""
    path = tmp_path / "a.avi"
    ffmpeg(*SOURCES[:4], "-c:v", "mpeg4", str(path))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 4, 0x7FFFFFF0)
    path.write_bytes(content)
    assert _counts(path) == (NUM_FRAMES, 0)


def test_frames_that_an_edit_list_hides_are_not_lost(tmp_path: Path) -> None:
    ffmpeg(*SOURCES, *H264, str(tmp_path / "long.mp4"))
    ffmpeg("-ss", "0.9", "-i", str(tmp_path / "long.mp4"), "-c", "copy", *FASTSTART, str(tmp_path / "a.mp4"))
    num_pictures, num_damaged = _counts(tmp_path / "a.mp4")
    assert (num_pictures, num_damaged) == (_num_frames(tmp_path / "a.mp4"), 0)


@pytest.mark.parametrize(("max_corrupt", "is_kept"), [(0.5, False), (0.8, True)])
def test_what_is_missing_counts_for_max_corrupt(tmp_path: Path, max_corrupt: float, is_kept: bool) -> None:
    (tmp_path / "in").mkdir()
    path = write_video(tmp_path / "in/a.mp4", pan((2, 1), num_frames=40, height=64, width=96))
    ffmpeg("-i", str(path), "-c", "copy", *FASTSTART, str(tmp_path / "in/b.mp4"))
    path.unlink()
    with av.open(str(tmp_path / "in/b.mp4")) as container:
        end = container.streams.video[0].index_entries[10].pos
    _cut(tmp_path / "in/b.mp4", end)
    extract(tmp_path / "in", tmp_path / "out.store", ExtractSettings(max_corrupt=max_corrupt))
    if is_kept:
        record = open_store(tmp_path / "out.store")["b.mp4"].record
        assert (record["num_frames"], record["num_corrupt"]) == (10, 30)
    else:
        (failure,) = read_failures(tmp_path / "out.store").values()
        assert failure.reason == "75% of it is missing or damaged, more than max-corrupt = 50%"


@pytest.mark.parametrize("content", [b"", b"\0", b"\x1a\x45\xdf\xa3", b"\0\0\0\x01moof", b"RIFF\xff\xff", b"G" * 500])
@pytest.mark.parametrize(
    "format_name", ["mov", "matroska,webm", "avi", "asf", "flv", "ogg", "mpegts", "dv", "gif", "rm"]
)
def test_any_bytes_promise_a_size(tmp_path: Path, content: Any, format_name: str) -> None:
    """Whatever a file holds, the answer is a number no smaller than the file."""
    path = tmp_path / "a"
    path.write_bytes(content)
    assert promised_size(path, format_name) >= len(content)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.mpg", "a.wmv"])
@pytest.mark.parametrize("num_bytes", [1, 5, 3000])
def test_zeros_behind_a_file_are_no_loss(tmp_path: Path, name: str, num_bytes: int) -> None:
    """Some cameras and file systems leave them."""
    codec = {"a.mpg": "mpeg2video", "a.wmv": "wmv2"}.get(name, "mpeg4")
    path = tmp_path / name
    ffmpeg(*SOURCES[:4], "-c:v", codec, str(path))
    path.write_bytes(path.read_bytes() + bytes(num_bytes))
    assert _counts(path) == (NUM_FRAMES, 0)

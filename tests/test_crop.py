"""Crops of the bitstream and of the container, against the uncropped file cut by numpy and ffmpeg's own output."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av.logging
import numpy as np
import pytest
from synthetic import ffmpeg, pan, texture, write_video

from mgm_prep.config import ExtractSettings, TranscodeSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.mv_extractor import CapturedFile
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.extract import extract
from mgm_prep.transcoding.transcode import transcode
from mgm_shared.store import open_store

HEIGHT, WIDTH = 240, 320
# What is right of and below this point moves by SPEED px a frame, the rest is still.
CORNER_X, CORNER_Y = 160, 80
SPEED = 4
CLAP_BYTES = 40


def _frames(num_frames: int = 12) -> Iterator[Any]:
    still_HWC = texture()[:HEIGHT, :WIDTH]
    for moving_HWC in pan((SPEED, 0), num_frames, HEIGHT, WIDTH):
        frame_HWC = still_HWC.copy()
        frame_HWC[CORNER_Y:, CORNER_X:] = moving_HWC[CORNER_Y:, CORNER_X:]
        yield frame_HWC


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frames as a lossless file, from which ffmpeg encodes."""
    path = tmp_path_factory.mktemp("raw") / "raw.mkv"
    return write_video(path, _frames(), "ffv1")


@pytest.fixture(scope="module")
def plain(raw: Path) -> Path:
    path = raw.with_name("plain.mp4")
    ffmpeg("-i", str(raw), "-c:v", "libx264", "-bf", "2", "-refs", "3", str(path))
    return path


def _luma(path: Path, height: Any, width: Any, *options: str) -> Any:
    """(T, H, W) as the ffmpeg program decodes and shows it; 16-bit where the stream has more than 8."""
    raw = ffmpeg(*options, "-i", str(path), "-vf", "extractplanes=y", "-fps_mode", "passthrough", "-f", "rawvideo", "-")
    dtype = np.uint8 if len(raw) % (2 * 12 * height * width) else np.uint16
    return np.frombuffer(raw, dtype).reshape(-1, height, width)


def _shown_luma(path: Path) -> np.ndarray:
    """(T, H, W) of the pictures that we decode, turned as they are shown."""
    with VideoFile(path) as video:
        return np.stack([picture.orientation.frame(picture.luma_HW).copy() for picture in video.pictures()])


def _stored(path: Path, tmp_path: Path, **settings: Any) -> Any:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / path.name).symlink_to(path)
    extract(tmp_path / "in", tmp_path / "out.store", ExtractSettings(**settings))
    return open_store(tmp_path / "out.store").video_at(0)


def _check_motion(motion_TYX2: Any, left: Any, top: Any, velocity: tuple[int, int] = (SPEED, 0)) -> None:
    """Cells wholly on either side of the corner, of which the crop has cut `left` and `top` px."""
    known_TYX2 = motion_TYX2[~np.isnan(motion_TYX2[..., 0]).all((1, 2))]
    first_x, first_y = -(-(CORNER_X - left) // 8), -(-(CORNER_Y - top) // 8)
    last_x, last_y = (CORNER_X - left) // 8, (CORNER_Y - top) // 8
    moving_N2 = known_TYX2[:, first_y:, first_x:].reshape(-1, 2)
    # Beside the edge what appears comes from nowhere.
    still_N2 = np.concatenate(
        [known_TYX2[:, : last_y - 1].reshape(-1, 2), known_TYX2[:, :, : last_x - 1].reshape(-1, 2)]
    )
    assert len(known_TYX2) >= 9
    assert (np.abs(moving_N2[~np.isnan(moving_N2[:, 0])] - velocity) < 0.5).all(-1).mean() > 0.9
    assert (np.abs(still_N2[~np.isnan(still_N2[:, 0])]) < 0.5).all(-1).mean() > 0.97


BITSTREAM = {
    "f3": ((40, 40, 0, 0), []),
    "top only": ((0, 40, 0, 0), []),
    "not of cells": ((20, 12, 4, 6), []),
    "right and bottom": ((0, 0, 24, 8), []),
    "4:2:2": ((22, 13, 2, 3), ["-pix_fmt", "yuv422p"]),
    "4:4:4, odd": ((21, 13, 2, 3), ["-pix_fmt", "yuv444p"]),
    "grey, odd": ((21, 13, 2, 3), ["-pix_fmt", "gray"]),
    "10 bits": ((20, 12, 4, 6), ["-pix_fmt", "yuv420p10le"]),
    "interlaced": ((20, 12, 4, 8), ["-x264-params", "interlaced=1"]),
    "4:2:2 interlaced": ((22, 6, 4, 2), ["-x264-params", "interlaced=1", "-pix_fmt", "yuv422p"]),
}


@pytest.mark.parametrize("name", BITSTREAM)
def test_a_crop_in_the_bitstream(raw: Path, tmp_path: Path, name: Any) -> None:
    """Frames equal the uncropped file's, cut; what moves begins where it does in the picture as shown."""
    (left, top, right, bottom), options = BITSTREAM[name]
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    options = options if "-pix_fmt" in options else ["-pix_fmt", "yuv420p", *options]
    ffmpeg("-i", str(raw), "-c:v", "libx264", "-bf", "2", "-refs", "3", *options, str(whole))
    # In fields the coded height is a multiple of 32.
    padding = 16 if "interlaced" in name else 0
    sides = f"crop_left={left}:crop_top={top}:crop_right={right}:crop_bottom={bottom + padding}"
    ffmpeg("-i", str(whole), "-c", "copy", "-bsf:v", f"h264_metadata={sides}", str(cut))
    height, width = HEIGHT - top - bottom, WIDTH - left - right
    expected_THW = _luma(whole, HEIGHT, WIDTH)[:, top : HEIGHT - bottom, left : WIDTH - right]
    np.testing.assert_array_equal(_shown_luma(cut), expected_THW)
    with VideoFile(cut) as video:
        assert (video.header.height, video.header.width) == (height, width)
        assert {(picture.left_px, picture.top_px) for picture in video.pictures()} == {(left, top)}
    _check_motion(_stored(cut, tmp_path).motion[:], left, top)


def test_hevc(raw: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    ffmpeg("-i", str(raw), "-pix_fmt", "yuv420p", "-c:v", "libx265", "-x265-params", "log-level=none", str(whole))
    ffmpeg("-i", str(whole), "-c", "copy", "-bsf:v", "hevc_metadata=crop_left=40:crop_top=40", str(cut))
    np.testing.assert_array_equal(_shown_luma(cut), _luma(whole, HEIGHT, WIDTH)[:, 40:, 40:])
    video = _stored(cut, tmp_path)
    assert (video.height, video.width) == (200, 280)
    _check_motion(video.motion[:], 40, 40)


def test_a_crop_that_changes(plain: Path, tmp_path: Path) -> None:
    """Each picture has the corner of its own sequence; the second one's frames are stretched to the first one's."""
    parts = []
    for left, top in ((40, 40), (0, 0), (16, 24)):
        parts.append(tmp_path / f"{left}.h264")
        sides = f"h264_metadata=crop_left={left}:crop_top={top}"
        ffmpeg("-i", str(plain), "-c", "copy", "-bsf:v", f"h264_mp4toannexb,{sides}", str(parts[-1]))
    (tmp_path / "joined.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoFile(tmp_path / "joined.h264") as video:
        found = [(picture.left_px, picture.top_px, picture.frame.width) for picture in video.pictures()]
    assert found == [(40, 40, 280)] * 12 + [(0, 0, 320)] * 12 + [(16, 24, 304)] * 12
    motion_TYX2 = _stored(tmp_path / "joined.h264", tmp_path).motion[:]
    _check_motion(motion_TYX2[:12], 40, 40)
    moving_TN2 = motion_TYX2[13:24, 12:, 22:].reshape(11, -1, 2)
    np.testing.assert_allclose(np.nanmedian(moving_TN2, axis=1), [[SPEED * 280 / 320, 0]] * 11, atol=1 / 16)


def _boxes(data: Any, start: Any, end: Any) -> Iterator[Any]:
    while start + 8 <= end:
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        yield start, length, kind
        start += length


def _add_clap(source: Path, target: Path, clap: tuple[int, ...]) -> Path:
    """The MP4 with a `clap` box: (N, D) of width, height, horizontal and vertical offset of the centre."""
    data = source.read_bytes()
    start, end, way = 0, len(data), []
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        start, length, _ = next(box for box in _boxes(data, start, end) if box[2] == kind)
        way.append(start)
        start, end = start + (16 if kind == b"stsd" else 8), start + length
    length = struct.unpack(">I", data[start : start + 4])[0]
    changed = bytearray(data[: start + length] + struct.pack(">I4s8i", CLAP_BYTES, b"clap", *clap))
    changed += data[start + length :]
    for box in (*way, start):
        changed[box : box + 4] = struct.pack(">I", struct.unpack(">I", changed[box : box + 4])[0] + CLAP_BYTES)
    target.write_bytes(changed)
    return target


WHOLE = (0, 0, WIDTH, HEIGHT)
CLAPS = {
    # By hand: the aperture's centre lies at the picture's plus the offset (ISO/IEC 14496-12, 12.1.4).
    "f4": ((256, 1, 160, 1, 0, 1, 0, 1), (32, 40, 256, 160)),
    "off the centre": ((256, 1, 160, 1, 16, 1, -24, 1), (48, 16, 256, 160)),
    "fractions": ((512, 2, 320, 2, 20, 5, -12, 2), (36, 34, 256, 160)),
    "not of cells": ((290, 1, 210, 1, 5, 1, 3, 1), (20, 18, 290, 210)),
    "the whole picture": ((320, 1, 240, 1, 0, 1, 0, 1), WHOLE),
    "larger than the picture": ((640, 1, 480, 1, 0, 1, 0, 1), WHOLE),
    "out of the picture": ((256, 1, 160, 1, 60, 1, 0, 1), WHOLE),
    "nothing": ((0, 1, 0, 1, 0, 1, 0, 1), WHOLE),
    "no denominator": ((256, 0, 160, 0, 0, 0, 0, 0), WHOLE),
}


@pytest.mark.parametrize("name", CLAPS)
def test_clap(plain: Path, tmp_path: Path, name: Any) -> None:
    clap, (left, top, width, height) = CLAPS[name]
    path = _add_clap(plain, tmp_path / "clap.mp4", clap)
    shown_THW = _shown_luma(path)
    np.testing.assert_array_equal(shown_THW, _luma(plain, HEIGHT, WIDTH)[:, top : top + height, left : left + width])
    np.testing.assert_array_equal(shown_THW, _luma(path, height, width))
    if (width % 8, height % 8) == (0, 0):
        _check_motion(_stored(path, tmp_path).motion[:], left, top)


def test_clap_of_odd_size(plain: Path, tmp_path: Path) -> None:
    """Whole chroma samples, as ffmpeg does."""
    path = _add_clap(plain, tmp_path / "clap.mp4", (255, 1, 159, 1, 0, 1, 0, 1))
    np.testing.assert_array_equal(_shown_luma(path), _luma(path, 158, 254))


def test_pixel_crop_of_matroska(plain: Path, tmp_path: Path) -> None:
    """FFmpeg writes PixelCrop from clap; of a display size only the ratio is meant."""
    clap = _add_clap(plain, tmp_path / "clap.mp4", (256, 1, 160, 1, 16, 1, -24, 1))
    ffmpeg("-i", str(clap), "-c", "copy", "-aspect", "2", str(tmp_path / "crop.mkv"))
    np.testing.assert_array_equal(_shown_luma(tmp_path / "crop.mkv"), _luma(plain, HEIGHT, WIDTH)[:, 16:176, 48:304])
    with VideoFile(tmp_path / "crop.mkv") as video:
        # 320×240 px that are shown as 2:1 are 1.5 times as wide as high.
        assert (video.header.display_height, video.header.display_width) == (160, 256 * 1.5)


CODECS = {
    "hevc": (["-c:v", "libx265", "-x265-params", "log-level=none"], "mp4"),
    "av1": (["-c:v", "libsvtav1", "-preset", "12"], "mp4"),
    "vp9": (["-c:v", "libvpx-vp9", "-cpu-used", "8"], "mp4"),
    "prores": (["-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"], "mov"),
    "mjpeg": (["-c:v", "mjpeg"], "mov"),
    "mpeg4": (["-c:v", "mpeg4", "-bf", "2"], "mp4"),
    "fragments": (["-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov+default_base_moof"], "mp4"),
}


@pytest.mark.parametrize("container", ["own", "mkv"])
@pytest.mark.parametrize("name", CODECS)
def test_clap_and_pixel_crop_of_other_codecs(raw: Path, tmp_path: Path, name: str, container: str) -> None:
    options, suffix = CODECS[name]
    options = options if "-pix_fmt" in options else ["-pix_fmt", "yuv420p", *options]
    whole = tmp_path / f"whole.{suffix}"
    ffmpeg("-i", str(raw), *options, str(whole))
    path = _add_clap(whole, tmp_path / f"cut.{suffix}", (256, 1, 160, 1, 16, 1, -24, 1))
    if container == "mkv":
        ffmpeg("-i", str(path), "-c", "copy", str(tmp_path / "cut.mkv"))
        path = tmp_path / "cut.mkv"
    np.testing.assert_array_equal(_shown_luma(path), _luma(whole, HEIGHT, WIDTH)[:, 16:176, 48:304])
    np.testing.assert_array_equal(_shown_luma(path), _luma(path, 160, 256))


def test_both_crops_rotated_and_widened(raw: Path, plain: Path, tmp_path: Path) -> None:
    """The bitstream's first, then the container's, then the turn; the stored motion turns with it."""
    inside, first, second, turned = (tmp_path / f"{name}.mp4" for name in ("inside", "first", "second", "turned"))
    ffmpeg("-i", str(plain), "-c", "copy", "-bsf:v", "h264_metadata=crop_left=16:crop_top=24:sample_aspect_ratio=2/1",
           str(inside))  # fmt: skip
    # Once more, so that the MP4 has the size of the cropped picture.
    ffmpeg("-i", str(inside), "-c", "copy", str(first))
    _add_clap(first, second, (256, 1, 160, 1, 0, 1, 0, 1))
    ffmpeg("-display_rotation", "90", "-i", str(second), "-c", "copy", str(turned))
    left, top = 16 + (WIDTH - 16 - 256) // 2, 24 + (HEIGHT - 24 - 160) // 2
    expected_THW = _luma(plain, HEIGHT, WIDTH)[:, top : top + 160, left : left + 256]
    np.testing.assert_array_equal(_shown_luma(turned), np.rot90(expected_THW, axes=(1, 2)))
    np.testing.assert_array_equal(_shown_luma(turned), _luma(turned, 256, 160, "-flags", "unaligned"))
    video = _stored(turned, tmp_path, short_side=160)
    assert (video.height, video.width) == (512, 160)
    unturned_TYX2 = np.rot90(video.motion[:], -1, axes=(1, 2))[:, :, :, ::-1] * (-1, 1)
    assert unturned_TYX2.shape[1:3] == (20, 64)
    moving_TYX2 = unturned_TYX2[1:, -(-(CORNER_Y - top) // 8) :, -(-(CORNER_X - left) // 4) :]
    np.testing.assert_allclose(np.nanmedian(moving_TYX2, axis=(0, 1, 2)), [2 * SPEED, 0], atol=0.1)


@pytest.mark.parametrize("name", ["bitstream", "clap", "mkv", "turned"])
def test_a_transcoded_copy_is_cropped_and_not_distorted(plain: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    source, top, left = tmp_path / "in/a.mp4", 40, 32
    if name == "bitstream":
        ffmpeg("-i", str(plain), "-c", "copy", "-bsf:v",
               "h264_metadata=crop_left=32:crop_top=40:crop_right=32:crop_bottom=40", str(source))  # fmt: skip
    else:
        clap = _add_clap(plain, source if name == "clap" else tmp_path / "clap.mp4", CLAPS["f4"][0])
        if name == "mkv":
            ffmpeg("-i", str(clap), "-c", "copy", str(tmp_path / "in/a.mkv"))
        elif name == "turned":
            ffmpeg("-display_rotation", "90", "-i", str(clap), "-c", "copy", str(source))
    transcode(tmp_path / "in", tmp_path / "out", TranscodeSettings(crf=4))
    shown_THW = _luma(plain, HEIGHT, WIDTH)[:, top : top + 160, left : left + 256]
    if name == "turned":
        shown_THW = np.rot90(shown_THW, axes=(1, 2))
    copied_THW = _luma(tmp_path / "out/a.mp4", *shown_THW.shape[1:])
    assert np.abs(copied_THW.astype(int) - shown_THW).mean() < 2
    if name != "turned":
        _check_motion(_stored(tmp_path / "out/a.mp4", tmp_path / "out").motion[:], left, top)


def test_a_title_is_not_taken_for_a_crop(plain: Path, tmp_path: Path) -> None:
    title = "x\n  Stream #0:0: Video: \n      Frame Cropping: 8/8/8/8"
    ffmpeg("-i", str(plain), "-c", "copy", "-metadata", f"title={title}", "-metadata:s:v", f"handler_name={title}",
           "-metadata:s:v", "Frame Cropping=8/8/8/8", str(tmp_path / "a.mkv"))  # fmt: skip
    with VideoFile(tmp_path / "a.mkv") as video:
        assert (video.header.height, video.header.width) == (HEIGHT, WIDTH)


def test_the_second_stream_s_crop_is_its_own(plain: Path, tmp_path: Path) -> None:
    """The main stream is the larger one, which comes second and is not cropped."""
    clap = _add_clap(plain, tmp_path / "clap.mp4", CLAPS["f4"][0])
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=640x480:r=25:d=0.4", "-c:v", "libx264", str(tmp_path / "large.mp4"))
    for order in (("clap", "large"), ("large", "clap")):
        inputs = [word for name in order for word in ("-i", str(tmp_path / f"{name}.mp4"))]
        ffmpeg(*inputs, "-map", "0:v", "-map", "1:v", "-disposition:v", "0", "-c", "copy", str(tmp_path / "two.mkv"))
        with VideoFile(tmp_path / "two.mkv") as video:
            assert (video.header.height, video.header.width) == (480, 640)
    assert _shown_luma(clap).shape[1:] == (160, 256)


def test_ffmpeg_s_log_is_left_as_it_was(plain: Path) -> None:
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    with VideoFile(plain):
        assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


def test_the_second_decoder_does_not_crop_wrongly(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("mvextractor")
    top, left = tmp_path / "top.mp4", tmp_path / "left.mp4"
    ffmpeg("-i", str(plain), "-c", "copy", "-bsf:v", "h264_metadata=crop_top=40", str(top))
    with VideoFile(top) as video, CapturedFile(top) as captured:
        twins = zip(video.pictures(), captured.pictures(), strict=True)
        assert {(one.top_px, two.top_px, two.frame.height) for one, two in twins} == {(40, 40, 200)}
    ffmpeg("-i", str(plain), "-c", "copy", "-bsf:v", "h264_metadata=crop_left=20", str(left))
    _add_clap(plain, tmp_path / "clap.mp4", CLAPS["f4"][0])
    for path in (left, tmp_path / "clap.mp4"):
        with CapturedFile(path) as captured, pytest.raises(Unreadable, match="the decoder pyav does"):
            list(captured.pictures())

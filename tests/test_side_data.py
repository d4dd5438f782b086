"""What a decoder says of a frame beside its pixels: two kinds are wanted, and no other may cost the frame."""

import struct
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from synthetic import ffmpeg, pan, write_video

from mgm_prep.decoding.pyav import VideoFile, side_data


def _with_exif(jpeg: bytes) -> bytes:
    """The picture with a camera's name (TIFF 6.0: one entry, 0x010F, ASCII)."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x010F, 2, 4, b"Cam\0", 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]


@pytest.mark.parametrize("suffix", [".avi", ".mov", ".mkv"])
def test_exif_in_motion_jpeg(tmp_path: Path, suffix: str) -> None:
    """PyAV's table of side data lacks Exif, so that it raises for the frame."""
    frames = [cv2.imencode(".jpg", frame)[1].tobytes() for frame in pan((3, 2), num_frames=8, height=64, width=96)]
    (tmp_path / "a.mjpeg").write_bytes(b"".join(map(_with_exif, frames)))
    path = tmp_path / f"a{suffix}"
    ffmpeg("-f", "mjpeg", "-framerate", "25", "-i", str(tmp_path / "a.mjpeg"), "-c", "copy", str(path))
    with VideoFile(path) as video:
        pictures = list(video.pictures())
    assert len(pictures) == 8
    expected = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for jpeg in frames]
    for picture, grey_HW in zip(pictures, expected, strict=True):
        assert np.abs(picture.luma_HW.astype(int) - grey_HW).max() <= 2


def test_vectors_behind_side_data_that_is_unknown(tmp_path: Path) -> None:
    """An SEI message of LCEVC (V-Nova's provider code, ITU-T T.35) in each picture: its vectors come after that."""
    plain, marked = tmp_path / "plain.h264", tmp_path / "marked.h264"
    write_video(plain, pan((4, 0), num_frames=12, height=96, width=160), options={"bf": "0"})
    sei = b"\0\0\0\1\x06\x04\x08" + b"\xb4\x00\x50\x00" + b"\x01\x02\x03\x04" + b"\x80"
    with av.open(str(plain)) as container:
        marked.write_bytes(b"".join(sei + bytes(packet) for packet in container.demux(video=0) if packet.size))
    vectors = []
    for path in (plain, marked):
        with VideoFile(path) as video:
            pictures = list(video.pictures())
            vectors.append([None if p.vectors_K is None else p.vectors_K.tolist() for p in pictures])
    assert len(vectors[0]) == 12
    assert vectors[0] == vectors[1]
    assert sum(found is not None for found in vectors[0]) == 11
    everything: Any = pictures[-1].frame.side_data
    kinds = {int(data.type.value) for data in everything}
    assert kinds - {8, 20}, "FFmpeg does not export the message, and the test shows nothing"
    assert side_data(pictures[-1].frame, "DISPLAYMATRIX") is None

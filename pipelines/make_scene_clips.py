"""Make a small labelled video set from real videos, whose classes are their scenes.

    python pipelines/make_scene_clips.py OUT bikes.mp4 bigbuckbunny.mp4

Each video is divided at its cuts; what lies between two cuts is a scene, and a class. A clip is a square window of a
scene, at a random place, size and time. Training clips are of the first 60 % of a scene, test clips of the last 30 %.

The layout is OUT/{train,test}/<scene>/<k>.mp4, H.264 with B-frames. The same seed gives the same files.

Axes: S source frames · T frames · H,W pixels · C = RGB.
"""

import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import cv2
import numpy as np
from make_motion_clips import CUT_LEVELS, TEST_SHARE, TRAIN_SHARE, read_video, write_mp4
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from mgm_shared.errors import UserError

# Short side of the source frames.
SOURCE_SIDE_PX = 272
# Side of a window, as a share of that.
MIN_WINDOW, MAX_WINDOW = 0.4, 1.0


def find_scenes(frames_SHWC: NDArray[np.uint8], min_frames: int) -> list[NDArray[np.uint8]]:
    """The runs of frames between two cuts, without those that are shorter than `min_frames`."""
    # Every fourth pixel tells a cut as well, in a sixteenth of the time.
    small_SHWC = frames_SHWC[:, ::4, ::4].astype(np.int16)
    changes = np.abs(np.diff(small_SHWC, axis=0)).mean((1, 2, 3))
    edges = [0, *(np.flatnonzero(changes > CUT_LEVELS) + 1).tolist(), len(frames_SHWC)]
    runs = [frames_SHWC[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]
    return [run_SHWC for run_SHWC in runs if len(run_SHWC) >= min_frames]


def split_scene(scene_SHWC: NDArray[np.uint8], num_frames: int) -> dict[str, NDArray[np.uint8]]:
    """The first 60 % for training, the last 30 % for the test, but at least `num_frames`."""
    num_test = max(num_frames, int(TEST_SHARE * len(scene_SHWC)))
    return {"train": scene_SHWC[: int(TRAIN_SHARE * len(scene_SHWC))], "test": scene_SHWC[-num_test:]}


def min_scene(num_frames: int) -> int:
    """The shortest scene whose training and test frames, `num_frames` or more of each, do not overlap."""
    return max(math.ceil(num_frames / TRAIN_SHARE), math.ceil(num_frames / (1 - TRAIN_SHARE)))


def cut_window(frames_SHWC: NDArray[np.uint8], num_frames: int, size_px: int, rng: Generator) -> NDArray[np.uint8]:
    """A square window that stands still, `num_frames` long: (T, H, W, 3)."""
    height, width = frames_SHWC.shape[1:3]
    side = round(min(height, width) * rng.uniform(MIN_WINDOW, MAX_WINDOW))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    start = int(rng.integers(len(frames_SHWC) - num_frames + 1))
    window_THWC = frames_SHWC[start : start + num_frames, top : top + side, left : left + side]
    resized = [cv2.resize(frame_HWC, (size_px, size_px), interpolation=cv2.INTER_AREA) for frame_HWC in window_THWC]
    return np.stack(resized).astype(np.uint8)


def make_set(
    out: Path, scenes: dict[str, NDArray[np.uint8]], num_clips: dict[str, int], num_frames: int, size_px: int, seed: int
) -> None:
    """Write the clips of every scene under `out`; `num_clips` a scene for each split."""

    def make(scene: int, split: int, clip: int) -> None:
        name, frames_SHWC = list(scenes.items())[scene]
        split_name = list(num_clips)[split]
        part_SHWC = split_scene(frames_SHWC, num_frames)[split_name]
        rng = np.random.default_rng((seed, scene, split, clip))
        write_mp4(cut_window(part_SHWC, num_frames, size_px, rng), out / split_name / name / f"{clip:04d}.mp4")

    jobs = [
        (scene, split, clip)
        for scene in range(len(scenes))
        for split, count in enumerate(num_clips.values())
        for clip in range(count)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(make, *job) for job in jobs]
        for done in tqdm(waiting, unit="clip", desc="scene clips", disable=None):
            done.result()


def read_scenes(videos: tuple[Path, ...], num_frames: int) -> dict[str, NDArray[np.uint8]]:
    """The scenes of all videos by name. UserError when there are fewer than two."""
    scenes: dict[str, NDArray[np.uint8]] = {}
    for video in videos:
        for number, scene_SHWC in enumerate(find_scenes(read_video(video, SOURCE_SIDE_PX), min_scene(num_frames))):
            scenes[f"{video.stem}-{number}"] = scene_SHWC
    if len(scenes) < 2:
        raise UserError(f"the videos have {len(scenes)} scenes of {min_scene(num_frames)} frames; it takes two or more")
    return scenes


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--per-class", default=60, show_default=True, type=click.IntRange(1), help="Training clips a scene.")
@click.option("--test-per-class", default=30, show_default=True, type=click.IntRange(1), help="Test clips a scene.")
@click.option("--size", "size_px", default=80, show_default=True, type=click.IntRange(32), help="Side in pixels.")
@click.option("--frames", "num_frames", default=8, show_default=True, type=click.IntRange(2), help="Frames a clip.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def main(
    out: Path,
    videos: tuple[Path, ...],
    per_class: int,
    test_per_class: int,
    size_px: int,
    num_frames: int,
    seed: int,
) -> None:
    """Make a labelled set in OUT: clips of the scenes of the VIDEOS."""
    beside = out.with_name(f".{out.name}.unfinished")
    try:
        if size_px % 2:
            raise UserError(f"--size is {size_px}; H.264 needs an even number")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not empty; remove it or name another directory")
        scenes = read_scenes(videos, num_frames)
        shutil.rmtree(beside, ignore_errors=True)
        make_set(beside, scenes, {"train": per_class, "test": test_per_class}, num_frames, size_px, seed)
        beside.replace(out)
    except UserError as error:
        click.echo(f"make_scene_clips: {error}", err=True)
        sys.exit(2)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    main()

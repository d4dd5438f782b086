"""Make a small labelled video set from real frames, whose classes differ in motion alone.

    python pipelines/make_motion_clips.py OUT bikes.mp4 bigbuckbunny.mp4 --test-backgrounds carphone_pristine.mp4

A textured object, cut out of one real frame, moves over another: left, right, up, down, nearer or turning. Clip k of
every class has the same object, background and position at mid-clip, so nothing but motion tells the classes apart.
Objects and backgrounds of test clips come from other videos, or else from later parts of the same ones.

The layout is OUT/{train,test}/<class>/<k>.mp4, H.264 with B-frames. The same seed gives the same files.

Axes: T frames · S source frames · H,W pixels · C = RGB · 4 = RGB times alpha, then alpha, in 0…1.
"""

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import click
import cv2
import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from mgm_shared.errors import UserError

FPS = 25
MAX_SOURCE_FRAMES = 600
# Without test backgrounds, each video is divided in time, with a gap between.
TRAIN_SHARE, TEST_SHARE = 0.6, 0.3
# A mean change of the picture above this is a cut, which no background runs over.
CUT_LEVELS = 20.0
# A small model from scratch finds the moving object in 200 steps over such a background (top-1 0.8), and over a sharp
# and bright one not in 360 (top-1 0.2): measured with vit_tiny, 8 frames of 64 px, batches of 16.
BACKGROUND_BLUR_PX, BACKGROUND_LIGHT = 2.0, 0.5


@dataclass(frozen=True, kw_only=True)
class Path2D:
    """Where the object is in each frame, seen from mid-clip: offset in px, scale, angle in degrees; each (T,) long."""

    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    scale: NDArray[np.float64]
    angle: NDArray[np.float64]


def _shift(x: int, y: int) -> Callable[[NDArray[np.float64], int, Generator], Path2D]:
    def path(phase_T: NDArray[np.float64], size_px: int, rng: Generator) -> Path2D:
        step_T = rng.uniform(0.010, 0.018) * size_px * phase_T
        return Path2D(x_px=x * step_T, y_px=y * step_T, scale=np.ones_like(step_T), angle=0 * step_T)

    return path


def _nearer(phase_T: NDArray[np.float64], size_px: int, rng: Generator) -> Path2D:
    still_T = np.zeros_like(phase_T)
    return Path2D(x_px=still_T, y_px=still_T, scale=rng.uniform(1.025, 1.04) ** phase_T, angle=still_T)


def _turning(phase_T: NDArray[np.float64], size_px: int, rng: Generator) -> Path2D:
    still_T = np.zeros_like(phase_T)
    speed = rng.choice([-1, 1]) * rng.uniform(4, 7)
    return Path2D(x_px=still_T, y_px=still_T, scale=still_T + 1, angle=speed * phase_T)


MOTIONS = {
    "left": _shift(-1, 0),
    "right": _shift(1, 0),
    "up": _shift(0, -1),
    "down": _shift(0, 1),
    "nearer": _nearer,
    "turning": _turning,
}


def read_video(path: Path, short_side_px: int) -> NDArray[np.uint8]:
    """The first 600 frames, (S, H, W, 3), with this short side. UserError when the file is no video."""
    frames = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                scale = short_side_px / min(frame.width, frame.height)
                width, height = round(frame.width * scale), round(frame.height * scale)
                frames.append(frame.to_ndarray(format="rgb24", width=width, height=height))
                if len(frames) == MAX_SOURCE_FRAMES:
                    break
    except (av.FFmpegError, IndexError, OSError) as error:
        raise UserError(f"{path} is not a video that can be read: {error}") from None
    if len(frames) < 2:
        raise UserError(f"{path} has {len(frames)} frames; a background needs at least 2")
    return np.stack(frames)


def cut_object(frames_SHWC: NDArray[np.uint8], size_px: int, rng: Generator) -> NDArray[np.float32]:
    """The most detailed of eight random pieces, its contrast raised, its edge irregular and soft: (D, D, 4)."""
    side = round(size_px * rng.uniform(0.36, 0.48))
    pieces = [_random_crop(frames_SHWC[rng.integers(len(frames_SHWC))], side, rng) for _ in range(8)]
    piece_HWC = max(pieces, key=_detail).astype(np.float32)
    # A dull piece on a dull background could hardly be seen to move.
    piece_HWC = (piece_HWC - piece_HWC.mean()) / (piece_HWC.std() + 1) * 0.3 + rng.uniform(0.35, 0.65)
    alpha_HW1 = _blob(side, rng)[..., None]
    return np.concatenate([piece_HWC[..., rng.permutation(3)].clip(0, 1) * alpha_HW1, alpha_HW1], axis=-1)


def _detail(piece_HWC: NDArray[np.uint8]) -> float:
    """Mean step from one pixel to the next: what a codec's motion search and an eye hold on to."""
    return float(np.abs(np.diff(piece_HWC.astype(np.int16), axis=1)).mean())


def _blob(side: int, rng: Generator) -> NDArray[np.float32]:
    """Alpha of a round shape with three random waves on its edge, (side, side)."""
    axis = np.arange(side) + 0.5 - side / 2
    angle_HW = np.arctan2(axis[:, None], axis[None])
    waves_HW = sum(rng.uniform(0.03, 0.1) * np.cos(k * angle_HW + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    distance_HW = np.hypot(axis[:, None], axis[None]) / (side / 2)
    # The edge fades over about three pixels.
    alpha_HW: NDArray[np.float32] = (
        ((0.75 * (1 + waves_HW) - distance_HW) * side / 6 + 0.5).clip(0, 1).astype(np.float32)
    )
    return alpha_HW


def _random_crop(frame_HWC: NDArray[np.uint8], side: int, rng: Generator) -> NDArray[np.uint8]:
    top, left = (int(rng.integers(length - side + 1)) for length in frame_HWC.shape[:2])
    return frame_HWC[top : top + side, left : left + side]


def draw_background(frames_SHWC: NDArray[np.uint8], num_frames: int, size_px: int, rng: Generator) -> NDArray[np.uint8]:
    """A square cut out of one frame that stands still, or of some that run at a quarter speed: (T, H, W, 3)."""
    num_run = 1 + (num_frames - 1) // 4
    start = int(rng.integers(max(1, len(frames_SHWC) - num_run)))
    run_SHWC = frames_SHWC[start : start + num_run]
    top, left = (int(rng.integers(length - size_px + 1)) for length in frames_SHWC.shape[1:3])
    run_SHWC = run_SHWC[:, top : top + size_px, left : left + size_px]
    changes = np.abs(np.diff(run_SHWC.astype(np.int16), axis=0)).mean((1, 2, 3))
    if rng.random() < 0.5 or len(run_SHWC) < num_run or changes.max(initial=0) > CUT_LEVELS:
        run_SHWC = run_SHWC[:1]
    # Out of focus and in the shade, as behind something that is filmed from near.
    soft_SHWC = [cv2.GaussianBlur(frame_HWC, (0, 0), BACKGROUND_BLUR_PX) * BACKGROUND_LIGHT for frame_HWC in run_SHWC]
    return np.stack(soft_SHWC).astype(np.uint8)[np.minimum(np.arange(num_frames) // 4, len(run_SHWC) - 1)]


def render(
    background_THWC: NDArray[np.uint8], object_HW4: NDArray[np.float32], centre: NDArray[np.float64], path: Path2D
) -> NDArray[np.uint8]:
    """The object over the background; at mid-clip it is at `centre` (x, y). Positions are kept below the pixel."""
    num_frames, height, width = background_THWC.shape[:3]
    middle = np.full(2, object_HW4.shape[0] / 2 - 0.5)
    out_THWC = np.empty_like(background_THWC)
    for t in range(num_frames):
        angle = np.deg2rad(path.angle[t])
        turn = path.scale[t] * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        place = centre + np.array([path.x_px[t], path.y_px[t]])
        matrix = np.column_stack([turn, place - turn @ middle])
        warped_HW4 = cv2.warpAffine(object_HW4, matrix, (width, height), flags=cv2.INTER_LINEAR)
        blended_HWC = warped_HW4[..., :3] * 255 + (1 - warped_HW4[..., 3:]) * background_THWC[t]
        out_THWC[t] = np.rint(blended_HWC)
    return out_THWC


def make_clip(
    sources: list[NDArray[np.uint8]], motion: str, num_frames: int, size_px: int, seed: tuple[int, ...]
) -> NDArray[np.uint8]:
    """One clip, (T, H, W, 3). `seed` decides object, background and place; with the motion's name, its speed."""
    rng = np.random.default_rng(seed)
    object_HW4 = cut_object(sources[rng.integers(len(sources))], size_px, rng)
    background_THWC = draw_background(sources[rng.integers(len(sources))], num_frames, size_px, rng)
    centre = size_px * rng.uniform(0.38, 0.62, 2)
    phase_T = np.arange(num_frames, dtype=np.float64) - (num_frames - 1) / 2
    motion_rng = np.random.default_rng((*seed, list(MOTIONS).index(motion)))
    return render(background_THWC, object_HW4, centre, MOTIONS[motion](phase_T, size_px, motion_rng))


def write_mp4(frames_THWC: NDArray[np.uint8], path: Path) -> None:
    """H.264 with x264's own settings and 3 B-frames, as videos in the wild have them."""
    height, width = frames_THWC.shape[1:3]
    raw = {"format": "rawvideo", "pix_fmt": "rgb24", "s": f"{width}x{height}", "framerate": FPS}
    encoded = {"vcodec": "libx264", "pix_fmt": "yuv420p", "bf": 3, "crf": 18, "threads": 1, "movflags": "+faststart"}
    program = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        ffmpeg.input("pipe:", **raw).output(str(path), **encoded).run(
            cmd=program, input=frames_THWC.tobytes(), quiet=True
        )
    except ffmpeg.Error as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()[-1]
        raise UserError(f"{program} could not write {path}: {reason}") from None


def split_sources(train: list[NDArray[np.uint8]], test: list[NDArray[np.uint8]]) -> dict[str, list[NDArray[np.uint8]]]:
    """Source frames of each split: of different videos, or of the first 60 % and the last 30 % of each."""
    if test:
        return {"train": train, "test": test}
    return {
        "train": [frames_SHWC[: max(1, int(TRAIN_SHARE * len(frames_SHWC)))] for frames_SHWC in train],
        "test": [frames_SHWC[-max(1, int(TEST_SHARE * len(frames_SHWC))) :] for frames_SHWC in train],
    }


def make_set(
    out: Path,
    sources: dict[str, list[NDArray[np.uint8]]],
    num_clips: dict[str, int],
    num_frames: int,
    size_px: int,
    seed: int,
) -> None:
    """Write every clip under `out`; `num_clips` a class for each split."""

    def make(split: str, motion: str, clip: int) -> None:
        clip_seed = (seed, list(sources).index(split), clip)
        frames_THWC = make_clip(sources[split], motion, num_frames, size_px, clip_seed)
        write_mp4(frames_THWC, out / split / motion / f"{clip:04d}.mp4")

    jobs = [(split, motion, clip) for split in sources for motion in MOTIONS for clip in range(num_clips[split])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(make, *job) for job in jobs]
        for done in tqdm(waiting, unit="clip", desc="motion clips", disable=None):
            done.result()


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("backgrounds", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--test-backgrounds", multiple=True, type=click.Path(path_type=Path), help="Video for test clips only.")
@click.option("--per-class", default=40, show_default=True, type=click.IntRange(1), help="Training clips a class.")
@click.option("--test-per-class", default=10, show_default=True, type=click.IntRange(1), help="Test clips a class.")
@click.option("--size", "size_px", default=128, show_default=True, type=click.IntRange(32), help="Side in pixels.")
@click.option("--frames", "num_frames", default=32, show_default=True, type=click.IntRange(2), help="Frames a clip.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def main(
    out: Path,
    backgrounds: tuple[Path, ...],
    test_backgrounds: tuple[Path, ...],
    per_class: int,
    test_per_class: int,
    size_px: int,
    num_frames: int,
    seed: int,
) -> None:
    """Make a labelled set of clips in OUT from real frames of the BACKGROUNDS; its classes differ in motion alone."""
    beside = out.with_name(f".{out.name}.unfinished")
    try:
        if size_px % 2:
            raise UserError(f"--size is {size_px}; H.264 needs an even number")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not empty; remove it or name another directory")
        train, test = (
            [read_video(path, round(1.3 * size_px)) for path in paths] for paths in (backgrounds, test_backgrounds)
        )
        shutil.rmtree(beside, ignore_errors=True)
        num_clips = {"train": per_class, "test": test_per_class}
        make_set(beside, split_sources(train, test), num_clips, num_frames, size_px, seed)
        beside.replace(out)
    except UserError as error:
        click.echo(f"make_motion_clips: {error}", err=True)
        sys.exit(2)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    main()

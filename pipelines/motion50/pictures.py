"""Real pictures for surfaces and backgrounds, taken from a folder of clips as `pipelines/corpus.py` makes it.

Clips of one original video serve either training or test clips, never both.

Axes: T frames · H,W pixels · C = RGB.
"""

import csv
import re
from collections import defaultdict
from functools import cache, lru_cache
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_shared.errors import UserError

TEST_EVERY = 4
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
# An 8-px patch whose deviation is under this many grey levels is flat.
SQUARE_PX, FLAT_LEVELS = 8, 4.0
MAX_FLAT_SHARE, MAX_TRIES = 0.03, 10
# Frames that pictures are taken from; few, so that a process can keep them.
STARTS = (0, 10, 20)


def _original(name: str) -> str:
    """The original of a clip that no table names: what stands before `-crop1-0000` or `-0000`."""
    return re.sub(r"(-crop\d+)?-\d+$", "", Path(name).stem)


@cache
def split_clips(corpus: Path) -> dict[str, list[Path]]:
    """Clips for each split: every fourth original is for the test. UserError for fewer than two originals."""
    folder = corpus / "clips" if (corpus / "clips").is_dir() else corpus
    originals: dict[str, str] = {}
    if (corpus / "sources.csv").exists():
        with (corpus / "sources.csv").open(newline="") as file:
            originals = {row["file"]: f"{row['package']}/{row['original']}" for row in csv.DictReader(file)}
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            groups[originals.get(path.name, _original(path.name))].append(path)
    if len(groups) < 2:
        raise UserError(
            f"{corpus} holds clips of {len(groups)} videos; make it with pipelines/corpus.py, at least 2 videos"
        )
    members = [groups[name] for name in sorted(groups)]
    every = min(TEST_EVERY, len(members))
    splits: dict[str, list[Path]] = {"train": [], "test": []}
    for index, paths in enumerate(members):
        splits["test" if index % every == 1 else "train"] += paths
    return splits


def read_run(path: Path, start: int, num_frames: int) -> NDArray[np.uint8]:
    """`num_frames` frames from frame `start`, (T, H, W, 3); fewer when the clip ends."""
    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for index, frame in enumerate(container.decode(video=0)):
            if index >= start:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == num_frames:
                break
    return np.stack(frames) if frames else read_run(path, 0, num_frames)


def flat_share(picture_HWC: NDArray[np.uint8], levels: float = FLAT_LEVELS) -> float:
    """Share of 8×8-px patches whose grey levels deviate by less than `levels`."""
    grey_HW = picture_HWC.mean(-1)
    height, width = (length // SQUARE_PX * SQUARE_PX for length in grey_HW.shape)
    patches = grey_HW[:height, :width].reshape(height // SQUARE_PX, SQUARE_PX, width // SQUARE_PX, SQUARE_PX)
    return float((patches.std((1, 3)) < levels).mean())


@lru_cache(maxsize=2048)
def read_frame(path: Path, start: int) -> NDArray[np.uint8]:
    """Frame `start` of a clip, (H, W, 3)."""
    frame_HWC: NDArray[np.uint8] = read_run(path, start, 1)[0]
    return frame_HWC


def _square(frame_HWC: NDArray[np.uint8], share: float, rng: Generator) -> NDArray[np.uint8]:
    side = int(share * min(frame_HWC.shape[:2]))
    top, left = (int(rng.integers(length - side + 1)) for length in frame_HWC.shape[:2])
    return frame_HWC[top : top + side, left : left + side]


def _resized(picture_HWC: NDArray[np.uint8], size_px: int, interpolation: int) -> NDArray[np.uint8]:
    return cv2.resize(picture_HWC, (size_px, size_px), interpolation=interpolation).astype(np.uint8, copy=False)


def draw_picture(clips: list[Path], size_px: int, rng: Generator) -> NDArray[np.uint8]:
    """A square of a random frame, (size_px, size_px, 3). Squares with flat parts are drawn again, a few times."""
    best_HWC: NDArray[np.uint8] | None = None
    best_share = 2.0
    for _ in range(MAX_TRIES):
        frame_HWC = read_frame(clips[rng.integers(len(clips))], int(rng.choice(STARTS)))
        picture_HWC = _square(frame_HWC, rng.uniform(0.7, 1), rng)
        # Judged at half the texture's size, about as large as it appears.
        share = flat_share(_resized(picture_HWC, size_px // 2, cv2.INTER_AREA))
        if share < best_share:
            best_HWC, best_share = picture_HWC, share
        if share <= MAX_FLAT_SHARE:
            break
    assert best_HWC is not None
    return _resized(best_HWC, size_px, cv2.INTER_LINEAR)


def draw_background(clips: list[Path], num_frames: int, size_px: int, rng: Generator) -> NDArray[np.uint8]:
    """Consecutive frames of a clip as squares, (T, size_px, size_px, 3); a clip that is too short runs to and fro."""
    for _ in range(MAX_TRIES):
        run_THWC = read_run(clips[rng.integers(len(clips))], int(rng.choice(STARTS)), num_frames)
        if len(run_THWC) > 1 and flat_share(run_THWC[0]) < 0.2:
            break
    height, width = run_THWC.shape[1:3]
    side = min(height, width)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    to_and_fro = np.concatenate([np.arange(len(run_THWC)), np.arange(len(run_THWC) - 2, 0, -1)])
    order = np.resize(to_and_fro, num_frames)
    squares = (run_THWC[t, top : top + side, left : left + side] for t in order)
    return np.stack([cv2.resize(square, (size_px, size_px), interpolation=cv2.INTER_LINEAR) for square in squares])

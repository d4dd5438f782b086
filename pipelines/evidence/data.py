"""The data of the runs: the labelled set Motion6, what is pretrained on, and their stores.

Motion6 is what `make_motion_clips.py` makes of the corpus: six classes that differ in motion alone. The corpus is split
by original video, so that no video serves both training and test; the test videos are not pretrained on either.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from motion50.pictures import split_clips

from mgm_shared.errors import UserError

PIPELINES = Path(__file__).parents[1]
# Clips of one original video that Motion6 takes its objects and backgrounds from.
CLIPS_PER_VIDEO = 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much data: labelled clips a class, the short side in the stores, and the frames of the stores' codec."""

    per_class: int = 100
    test_per_class: int = 100
    short_side: int = 96
    frame_codec: str = "planes"


def make_stores(corpus: Path, out: Path, sizes: Sizes, motion50: Path | None = None) -> dict[str, Path]:
    """The stores `motion6`, `mixed` (to pretrain on) and, if it is given, `motion50`; what is there is kept."""
    videos = out / "motion6"
    splits = split_clips(corpus)
    if not videos.exists():
        _make_motion6(videos, splits, sizes)
    stores = {"motion6": out / "motion6.store", "mixed": out / "mixed.store"}
    _extract(videos, stores["motion6"], sizes)
    # One label for all: pretraining reads none, and a list file needs one.
    labelled = sorted((videos / "train").rglob("*.mp4"))
    rows = "".join(f"{path.absolute()},any,train\n" for path in [*splits["train"], *labelled])
    (out / "mixed.csv").write_text(rows)
    _extract(out / "mixed.csv", stores["mixed"], sizes)
    if motion50 is not None:
        stores["motion50"] = out / "motion50.store"
        _extract(motion50 / "videos", stores["motion50"], sizes)
    return stores


def _make_motion6(videos: Path, splits: dict[str, list[Path]], sizes: Sizes) -> None:
    sources = {split: whole_clips(paths) for split, paths in splits.items()}
    tests = [word for path in sources["test"] for word in ("--test-backgrounds", str(path))]
    counts = ("--per-class", str(sizes.per_class), "--test-per-class", str(sizes.test_per_class))
    run([PIPELINES / "make_motion_clips.py", videos, *sources["train"], *tests, *counts])


def whole_clips(paths: Sequence[Path]) -> list[Path]:
    """Some clips of each original video, evenly spread over it; moving crops only of videos that have nothing else."""
    by_video: dict[str, list[Path]] = {}
    for path in paths:
        by_video.setdefault(path.stem.rpartition("-")[0].partition("-crop")[0], []).append(path)
    chosen = []
    for members in by_video.values():
        whole = [path for path in members if "-crop" not in path.name] or members
        chosen += whole[:: -(-len(whole) // CLIPS_PER_VIDEO)]
    return chosen


def _extract(videos: Path, store: Path, sizes: Sizes) -> None:
    options = ("--short-side", str(sizes.short_side), "--frame-codec", sizes.frame_codec, "--workers", "0")
    run(["-m", "mgm_prep", "extract", videos, store, *options, "--json"])


def run(arguments: Sequence[object]) -> str:
    """Run Python with these arguments; what it printed. UserError with its last line where it fails."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with exit code {done.returncode}")
    return done.stdout

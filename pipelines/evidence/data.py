"""The data of the runs: the labelled set Motion6, what is pretrained on, and their stores.

Motion6 is what `make_motion_clips.py` makes of the corpus: six classes that differ in motion alone. The corpus is split
by original video, so that no video serves both training and test. The training clips are pretrained on without labels.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from motion50.pictures import split_clips

from mgm_shared.errors import UserError

PIPELINES = Path(__file__).parents[1]
# The settings of the grid were chosen with the clips of seed 0, so it is run with others.
MOTION6_SEED = 1
# Clips of one original video that Motion6 takes its objects and backgrounds from.
CLIPS_PER_VIDEO = 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much data: Motion6's clips a class, and the short side and the codec of the frames in the stores."""

    per_class: int
    test_per_class: int
    short_side: int
    frame_codec: str


SMALL = Sizes(per_class=100, test_per_class=100, short_side=96, frame_codec="planes")
FULL = Sizes(per_class=0, test_per_class=0, short_side=128, frame_codec="jpeg")
TOY = Sizes(per_class=10, test_per_class=2, short_side=32, frame_codec="planes")


def small_store(corpus: Path, out: Path, sizes: Sizes) -> Path:
    """The store of the reduced grid, Motion6, made if it is not there."""
    videos, store = out / "motion6", out / "motion6.store"
    if not videos.exists():
        _make_motion6(videos, split_clips(corpus), sizes)
    _extract(videos, store, sizes)
    return store


def full_stores(corpus: Path, motion50: Path, out: Path, sizes: Sizes) -> dict[str, Path]:
    """The stores of the full grid: `motion50` with its optical flow, and `corpus`, of the training videos alone."""
    stores = {"motion50": out / "motion50.store", "corpus": out / "corpus.store"}
    _extract(motion50 / "videos", stores["motion50"], sizes)
    run(["-m", "mgm_prep", "flow", stores["motion50"], "--method", "farneback", "--json"])
    (out / "corpus.csv").write_text("".join(f"{path.absolute()},any,train\n" for path in split_clips(corpus)["train"]))
    _extract(out / "corpus.csv", stores["corpus"], sizes)
    return stores


def _make_motion6(videos: Path, splits: dict[str, list[Path]], sizes: Sizes) -> None:
    sources = {split: whole_clips(paths) for split, paths in splits.items()}
    tests = [word for path in sources["test"] for word in ("--test-backgrounds", str(path))]
    counts = ("--per-class", str(sizes.per_class), "--test-per-class", str(sizes.test_per_class))
    seed = ("--seed", str(MOTION6_SEED))
    run([PIPELINES / "make_motion_clips.py", videos, *sources["train"], *tests, *counts, *seed])


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

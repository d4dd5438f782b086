"""The pieces of gpu.sh: clips to measure on, the hardware's own rate, JPEG decoding on the GPU, a test.

Each appends what it measured to a file of JSON lines, from which `gpu_table.py` makes the Markdown of RESULTS.md.

Axes: T frames · H,W pixels · C = RGB.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mgm_shared.codec import decode_jpeg
from mgm_shared.store import Store, open_store
from mgm_train.checkpoint.weights import load_weights
from mgm_train.config import EvaluateConfig
from mgm_train.evaluation.multiview import ViewDataset, classifier, score_views
from mgm_train.models.flops import matmul_rate, peak
from mgm_train.runtime.distributed import init_distributed

path_type = click.Path(path_type=Path)
LABELS = ("left", "right", "up", "down")


@click.group()
def main() -> None:
    """See gpu.sh."""


def note(file: Path, line: str, **values: Any) -> None:
    """Append one measured line, and say it."""
    with file.open("a") as opened:
        opened.write(json.dumps({"line": line, **values}) + "\n")
    click.echo(f"{line}: {values}")


def scene(number: int, num_frames: int, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """A textured square that moves over a panning texture, (H, W, C) a frame; as rich in detail as a photograph."""
    rng = np.random.default_rng(number)
    background_HWC, square_HWC = texture(rng, 2 * height, 2 * width), texture(rng, height // 3, height // 3)
    side = len(square_HWC)
    dx, dy = {"left": (-3, 0), "right": (3, 0), "up": (0, -3), "down": (0, 3)}[LABELS[number % len(LABELS)]]
    for t in range(num_frames):
        frame_HWC = np.roll(background_HWC, (t // 2, t // 3), (0, 1))[:height, :width].copy()
        y, x = (height // 3 + dy * t) % (height - side), (width // 3 + dx * t) % (width - side)
        frame_HWC[y : y + side, x : x + side] = square_HWC
        yield frame_HWC


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Noise whose octaves fall off as those of a photograph do."""
    total_HWC = np.zeros((height, width, 3), np.float32)
    for octave in range(6):
        shape = (max(1, height >> octave), max(1, width >> octave), 3)
        coarse_HWC = rng.standard_normal(shape, np.float32)
        total_HWC += 2.0**octave * cv2.resize(coarse_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
    pictures_HWC: NDArray[np.uint8] = np.clip(128 + 1.3 * total_HWC, 0, 255).astype(np.uint8)
    return pictures_HWC


def write_clip(folder: Path, number: int, num_frames: int, height: int, width: int) -> None:
    """One clip as H.264 with x264's defaults, but for one thread and speed."""
    path = folder / "train" / LABELS[number % len(LABELS)] / f"{number}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=width, height=height, pix_fmt="yuv420p")
        stream.options = {"threads": "1", "preset": "veryfast"}
        for frame_HWC in scene(number, num_frames, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


@main.command()
@click.argument("folder", type=path_type)
@click.option("--videos", default=512)
@click.option("--frames", default=96)
@click.option("--height", default=256)
@click.option("--width", default=344)
def clips(folder: Path, videos: int, frames: int, height: int, width: int) -> None:
    """Make clips in FOLDER, on all cores."""
    with ProcessPoolExecutor() as pool:
        for done in [pool.submit(write_clip, folder, number, frames, height, width) for number in range(videos)]:
            done.result()


@main.command()
@click.argument("results", type=path_type)
@click.option("--device", default="cuda")
def rate(results: Path, device: str) -> None:
    """How fast the hardware multiplies bfloat16 matrices, against its data sheet."""
    place = torch.device(device)
    measured = matmul_rate(place, torch.bfloat16)
    known = peak(place, torch.bfloat16)
    name = torch.cuda.get_device_name(place) if device == "cuda" else f"{os.cpu_count()} CPU cores"
    note(results, "matmul", device=name, measured=measured, peak=known.flops_per_s, source=known.source)


@main.command()
@click.argument("store", type=path_type)
@click.argument("results", type=path_type)
@click.option("--device", default="cuda")
@click.option("--frames", default=1024)
@click.option("--batch", default=256)
def jpeg(store: Path, results: Path, device: str, frames: int, batch: int) -> None:
    """Milliseconds a frame for decoding the store's raw JPEG chunks: nvJPEG through torchvision, and one CPU core."""
    cv2.setNumThreads(1)
    chunks = raw_chunks(open_store(store), frames)
    values: dict[str, Any] = {"frames": len(chunks), "kib": statistics.mean(map(len, chunks)) / 1024}
    values["cpu_ms"] = milliseconds(lambda: [decode_jpeg(chunk) for chunk in chunks]) / len(chunks)
    from torchvision.io import decode_jpeg as decode_by_torchvision

    tensors = [torch.frombuffer(bytearray(chunk), dtype=torch.uint8) for chunk in chunks]

    def on_gpu() -> None:
        for first in range(0, len(tensors), batch):
            decode_by_torchvision(tensors[first : first + batch], device=device)
        torch.cuda.synchronize()

    def on_cpu() -> None:
        decode_by_torchvision(tensors)

    name = "gpu_ms" if device == "cuda" else "torchvision_cpu_ms"
    values[name] = milliseconds(on_gpu if device == "cuda" else on_cpu) / len(chunks)
    if device == "cuda":
        difference = decode_by_torchvision(tensors[0], device=device).cpu().permute(1, 2, 0).int().numpy()
        values["mean_difference"] = float(np.abs(difference - decode_jpeg(chunks[0])).mean())
    note(results, "jpeg", **values)


def raw_chunks(store: Store, num_frames: int) -> list[bytes]:
    """The encoded frames of the first videos, as they lie in the shards."""
    chunks: list[bytes] = []
    for video_id in store.videos.index:
        video = store[video_id]
        first = int(video.record["start"])
        chunks += map(bytes, video.frames.array.encoded(range(first, first + video.num_frames)))
        if len(chunks) >= num_frames:
            break
    return chunks[:num_frames]


def milliseconds(work: Callable[[], object]) -> float:
    """Best of three, after one that is not counted."""
    work()
    seconds = []
    for _ in range(3):
        start_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start_s)
    return 1e3 * min(seconds)


@main.command()
@click.argument("store", type=path_type)
@click.argument("run", type=path_type)
@click.argument("results", type=path_type)
@click.option("--videos", default=256)
def testing(store: Path, run: Path, results: Path, videos: int) -> None:
    """Test the fine-tuned RUN with 5×3 views of each video: views a second, from the store to the scores."""
    config = EvaluateConfig(split="train")
    opened = open_store(store)
    loaded = load_weights(run)
    dataset = ViewDataset(opened.select(), loaded.classes, loaded.model, config)
    dataset.rows, dataset.labels = dataset.rows[:videos], dataset.labels[:videos]
    with init_distributed() as distributed:
        model = classifier(loaded).to(distributed.device)
        start_s = time.perf_counter()
        score_views(model, dataset, distributed)
        taken_s = time.perf_counter() - start_s
    note(results, "testing", model=loaded.model.name, views_per_s=len(dataset) * dataset.num_views / taken_s)


@main.command("stand-in", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def stand_in(arguments: tuple[str, ...]) -> None:
    """mgm-train with ARGUMENTS, where the CPU does what a GPU would: decoding, RandAugment. For --dry-run."""
    from mgm_train.cli import main as train

    def nothing(*arguments: object) -> None:
        """It would say that there is no GPU."""

    with (
        patch("mgm_train.tasks.device_work.check_device_decoding", nothing),
        patch("mgm_train.tasks.finetune.check_device_augmentation", nothing),
    ):
        train(arguments, prog_name="mgm-train")


if __name__ == "__main__":
    main()

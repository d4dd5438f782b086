"""Every kind of damage is found, and a sound store has none."""

import json
import random
import shutil

import pytest
from click.testing import CliRunner

from mgm_prep.cli import main
from mgm_prep.verify import verify
from mgm_shared import shards
from mgm_shared.errors import UserError


@pytest.fixture
def store(pan_store, tmp_path):
    shards._shard_index.cache_clear()
    return shutil.copytree(pan_store.path, tmp_path / "copy.store")


def test_a_sound_store_has_no_problem(store):
    result = CliRunner().invoke(main, ["verify", str(store), "--json"])
    verdict = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (verdict["parts"], verdict["videos"], verdict["chunks"], verdict["problems"]) == (1, 8, 192 + 12, [])


def test_single_bit_flips_are_found(store):
    rng = random.Random(0)
    files = [file for file in store.rglob("c*") if file.is_file()]
    assert {file.parent.name for file in files} == {"frames", "motion", "time", "picture_type"}
    for file in files:
        content = file.read_bytes()
        for _ in range(8):
            damaged = bytearray(content)
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            shards._shard_index.cache_clear()
            assert verify(store).problems, file
        file.write_bytes(content)
    shards._shard_index.cache_clear()
    assert not verify(store).problems


@pytest.mark.parametrize("array", ["frames", "motion", "time", "picture_type"])
def test_a_missing_file_is_found(store, array):
    next(file for file in store.rglob("c*") if file.parent.name == array).unlink()
    (problem, *_) = verify(store).problems
    assert array in problem


def test_a_wrong_place_a_stale_index_and_lost_metadata_are_found(store):
    (part,) = (store / "parts").glob("128x160-*")
    metadata = json.loads((part / "zarr.json").read_text())
    metadata["attributes"]["videos"][3]["start"] += 1
    (part / "zarr.json").write_text(json.dumps(metadata))
    assert "starts at frame 73, and the one before ends at 72" in verify(store).problems[0]
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

"""The direct reader and writer against zarr-python, and what they do with damaged bytes."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_shared import objects, shard_reader
from mgm_shared.codec import decode_jpeg, encode_jpeg
from mgm_shared.objects import Url
from mgm_shared.schema import ArraySpec, frames_spec, motion_spec
from mgm_shared.shard_reader import DamagedChunk, ShardedArray
from mgm_shared.shard_writer import ShardWriter

SMALL_SHARDS = ArraySpec(
    name="numbers",
    dtype="int16",
    inner_shape=(3, 2),
    dimension_names=("time", "a", "b"),
    chunk_frames=4,
    max_shard_frames=8,
    codec="zstd",
)


def _write(part: Path, spec: ArraySpec, frames: Any) -> ShardedArray:
    writer = ShardWriter(part, spec)
    for frame in frames:
        writer.append(frame)
    writer.close()
    return ShardedArray.open(part / spec.name)


@pytest.mark.parametrize("num_frames", [1, 4, 7, 8, 9, 16, 21])
def test_zarr_reads_what_we_write(tmp_path: Path, num_frames: int) -> None:
    values = np.arange(num_frames * 6, dtype=np.int16).reshape(num_frames, 3, 2)
    ours = _write(tmp_path, SMALL_SHARDS, values)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "numbers", mode="r")[:], values)
    np.testing.assert_array_equal(ours.read(np.arange(num_frames)), values)


@pytest.mark.parametrize("num_frames", [3, 20])
def test_we_read_what_zarr_writes(tmp_path: Path, num_frames: int) -> None:
    values = np.random.default_rng(0).integers(0, 99, (num_frames, 3, 2)).astype(np.int16)
    SMALL_SHARDS.create(tmp_path, num_frames)
    zarr.open_array(tmp_path / "numbers", mode="r+")[:] = values
    np.testing.assert_array_equal(ShardedArray.open(tmp_path / "numbers").read(np.arange(num_frames)), values)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One array of each kind, ours and zarr's view of it."""
    part = tmp_path_factory.mktemp("part")
    rng = np.random.default_rng(0)
    opened = {}
    for name, spec, frames in (
        ("jpeg", frames_spec(16, 24, "jpeg", 90), rng.integers(0, 255, (19, 16, 24, 3)).astype(np.uint8)),
        ("planes", frames_spec(16, 24, "planes", 90), rng.integers(0, 255, (19, 16, 24, 3)).astype(np.uint8)),
        ("lossless", frames_spec(16, 24, "lossless", 90), rng.integers(0, 255, (19, 16, 24, 3)).astype(np.uint8)),
        ("motion", motion_spec(16, 24), rng.integers(-99, 99, (19, 2, 3, 2)).astype(np.int16)),
    ):
        (part / name).mkdir()
        ours = _write(part / name, spec, frames)
        opened[name] = (ours, zarr.open_array(part / name / spec.name, mode="r"), frames)
    return opened


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 18), max_size=8), st.sampled_from(["jpeg", "planes", "lossless", "motion"]))
def test_any_selection_equals_zarr(arrays: dict[str, Any], indices: list[int], kind: str) -> None:
    ours, theirs, _ = arrays[kind]
    got = pickle.loads(pickle.dumps(ours)).read(np.array(indices, np.int64))
    expected = theirs[:][indices]
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_lossless_is_lossless_and_jpeg_is_close(arrays: dict[str, Any]) -> None:
    ours, _, frames = arrays["lossless"]
    np.testing.assert_array_equal(ours.read(np.arange(19)), frames)
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    smooth[..., 0] //= 2
    assert np.abs(decode_jpeg(encode_jpeg(smooth, 95)).astype(int) - smooth).max() <= 4


def test_the_metadata_is_what_other_readers_know(tmp_path: Path) -> None:
    """Codec names and keys of the Zarr v3 specification, and of the imagecodecs package for JPEG."""
    frames_spec(16, 24, "jpeg", 80).create(tmp_path, 5)
    metadata = json.loads((tmp_path / "frames/zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["index_location"] == "end"
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    jpeg, checksum = sharding["configuration"]["codecs"]
    settings = {"level": 80, "colorspace_data": "RGB", "colorspace_jpeg": "YCBCR"}
    assert jpeg == {"name": "imagecodecs_jpeg", "configuration": settings}
    assert checksum["name"] == "crc32c"
    assert metadata["dimension_names"] == ["time", "y", "x", "channel"]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [5, 16, 24, 3]


@pytest.mark.parametrize("kept", [0, 3, 4, 6, 8, 11])
def test_a_rewound_video_leaves_no_trace(tmp_path: Path, kept: int) -> None:
    values = np.random.default_rng(2).integers(0, 9, (30, 3, 2)).astype(np.int16)
    writer = ShardWriter(tmp_path / "rewound", SMALL_SHARDS)
    for value in values[:kept]:
        writer.append(value)
    mark = writer.mark()
    for value in values[kept : kept + 13]:
        writer.append(value)
    writer.rewind(mark)
    writer.rewind(mark)
    for value in values[20:]:
        writer.append(value)
    writer.close()
    _write(tmp_path / "straight", SMALL_SHARDS, [*values[:kept], *values[20:]])
    for file in sorted((tmp_path / "straight").rglob("*")):
        if file.is_file():
            assert (tmp_path / "rewound" / file.relative_to(tmp_path / "straight")).read_bytes() == file.read_bytes()
    assert len(os.listdir(tmp_path / "rewound/numbers")) == len(os.listdir(tmp_path / "straight/numbers"))


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    ours = _write(tmp_path, SMALL_SHARDS, np.ones((8, 3, 2), np.int16))
    shard = tmp_path / "numbers/c.0.0.0"
    whole = shard.read_bytes()
    for position in range(len(whole)):
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        shard_reader._shard_index.cache_clear()
        with pytest.raises(DamagedChunk, match=r"checksum|ends early"):
            ours.read(np.arange(8))
    shard_reader._shard_index.cache_clear()


def test_a_missing_or_cut_shard_is_never_zeros(tmp_path: Path) -> None:
    ours = _write(tmp_path, SMALL_SHARDS, np.ones((9, 3, 2), np.int16))
    (tmp_path / "numbers/c.1.0.0").unlink()
    assert (ours.read(np.arange(8)) == 1).all()
    with pytest.raises(DamagedChunk, match="missing"):
        ours.read(np.array([8]))
    (tmp_path / "numbers/c.1.0.0").write_bytes(b"short")
    with pytest.raises(DamagedChunk, match="ends early"):
        ours.read(np.array([8]))
    with pytest.raises(IndexError):
        ours.read(np.array([9]))


def test_an_array_behind_a_url_is_the_same(bucket: Url, tmp_path: Path) -> None:
    """Read, and damaged in every way, as the local one is."""
    values = np.random.default_rng(3).integers(0, 9, (21, 3, 2)).astype(np.int16)
    ours = _write(tmp_path, SMALL_SHARDS, values)
    for name in os.listdir(tmp_path / "numbers"):
        objects.put(bucket / "numbers" / name, (tmp_path / "numbers" / name).read_bytes())
    remote = ShardedArray.open(bucket / "numbers")
    for indices in ([], [20], [3, 3, 0, 17], range(21)):
        np.testing.assert_array_equal(remote.read(np.array(indices, int)), values[list(indices)])
    assert not list(remote.damage())

    def problems(number: int, content: bytes) -> list[tuple[int, str]]:
        """Of both arrays, which must tell the same."""
        shard_reader._shard_index.cache_clear()
        (tmp_path / f"numbers/c.{number}.0.0").write_bytes(content)
        objects.put(bucket / f"numbers/c.{number}.0.0", content)
        found = [(chunk, str(error)) for chunk, error in remote.damage()]
        assert [(chunk, str(error).replace(str(tmp_path), str(bucket))) for chunk, error in ours.damage()] == found
        return found

    whole = (tmp_path / "numbers/c.1.0.0").read_bytes()
    assert [chunk for chunk, _ in problems(1, bytes([whole[0] ^ 1]) + whole[1:])] == [2]
    assert [chunk for chunk, _ in problems(1, whole[:-1] + bytes([whole[-1] ^ 1]))] == [2, 3]
    assert ["ends early" in error for _, error in problems(1, b"short")] == [True, True]
    assert ["ends early" in error for _, error in problems(1, b"")] == [True, True]
    objects.delete(bucket / "numbers/c.0.0.0")
    (tmp_path / "numbers/c.0.0.0").unlink()
    assert ["missing" in error for _, error in problems(1, whole)] == [True, True]

"""A store read by what docs/store-format.md says, without mgm and without zarr, equals what mgm reads."""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from synthetic import pan, write_video

from mgm_prep import ExtractSettings, FlowSettings, add_flow, extract
from mgm_prep.config import FrameCodec
from mgm_shared.schema import ArraySpec, frames_spec, motion_spec
from mgm_shared.store import Store, open_store

PAGE = (Path(__file__).parent.parent / "docs" / "store-format.md").read_text()
VIDEOS = {"train/wave/17.mp4": 41, "test/jump/3.mp4": 9}
HEIGHT, WIDTH = 48, 64
# Small shards, so that there are several of them.
MAX_SHARD_FRAMES = 32
NO_CHUNK = 2**64 - 1


def _metadata(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((folder / "zarr.json").read_text())
    return metadata


def _payload(data: bytes) -> bytes:
    """What stands in front of a checksum that is right."""
    assert struct.pack("<I", google_crc32c.value(data[:-4])) == data[-4:]
    return data[:-4]


def _chunks(array: Path) -> Iterator[bytes]:
    metadata = _metadata(array)
    (sharding,) = metadata["codecs"]
    assert (sharding["name"], sharding["configuration"]["index_location"]) == ("sharding_indexed", "end")
    chunk_frames = sharding["configuration"]["chunk_shape"][0]
    shard_frames = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    num_frames, per_shard = metadata["shape"][0], shard_frames // chunk_frames
    for shard in range(-(-num_frames // shard_frames)):
        data = (array / f"c.{shard}.0.0.0").read_bytes()
        index = _payload(data[-16 * per_shard - 4 :])
        for place, (offset, length) in enumerate(struct.iter_unpack("<QQ", index)):
            if (shard * per_shard + place) * chunk_frames < num_frames:
                yield _payload(data[offset : offset + length])
            else:
                assert offset == length == NO_CHUNK


def _motion(array: Path) -> NDArray[np.float32]:
    """Pixels, NaN for missing."""
    num_frames, *inner = _metadata(array)["shape"]
    chunks = [np.frombuffer(numcodecs.zstd.decompress(chunk), "<i2") for chunk in _chunks(array)]
    packed_TYX2 = np.concatenate(chunks).reshape(-1, *inner)[:num_frames]
    is_missing_TYX2 = packed_TYX2 == -32768
    assert (is_missing_TYX2[..., 0] == is_missing_TYX2[..., 1]).all()
    return np.where(is_missing_TYX2, np.nan, packed_TYX2 / 16).astype(np.float32)


def _track(array: Path, dtype: str) -> NDArray[Any]:
    return np.frombuffer(numcodecs.zstd.decompress(_payload((array / "c.0").read_bytes())), dtype)


def _jpeg(chunk: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(chunk)).convert("RGB"))


def _planes(chunk: bytes) -> NDArray[np.uint8]:
    (num_bytes,) = struct.unpack("<I", chunk[:4])
    assert num_bytes == HEIGHT * WIDTH * 3 // 2
    values = np.frombuffer(numcodecs.lz4.decompress(chunk), np.uint8).astype(np.float64)
    y_HW, chroma = values[: HEIGHT * WIDTH].reshape(HEIGHT, WIDTH), values[HEIGHT * WIDTH :]
    cb_HW, cr_HW = chroma.reshape(2, HEIGHT // 2, WIDTH // 2).repeat(2, 1).repeat(2, 2) - 128
    rgb_HWC = np.stack([y_HW + 1.402 * cr_HW, y_HW - 0.344136 * cb_HW - 0.714136 * cr_HW, y_HW + 1.772 * cb_HW], -1)
    return rgb_HWC.round().clip(0, 255).astype(np.uint8)


def _rgb(chunk: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(numcodecs.zstd.decompress(chunk), np.uint8).reshape(HEIGHT, WIDTH, 3)


DECODE = {"jpeg": _jpeg, "planes": _planes, "lossless": _rgb}


@pytest.fixture(params=DECODE)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    def with_small_shards(spec: ArraySpec) -> ArraySpec:
        return ArraySpec(**(vars(spec) | {"max_shard_frames": MAX_SHARD_FRAMES}))

    monkeypatch.setattr(
        "mgm_prep.extraction.part.frames_spec", lambda *arguments: with_small_shards(frames_spec(*arguments))
    )
    monkeypatch.setattr(
        "mgm_prep.extraction.part.motion_spec", lambda *arguments: with_small_shards(motion_spec(*arguments))
    )
    for video_id, num_frames in VIDEOS.items():
        path = tmp_path / "videos" / video_id
        path.parent.mkdir(parents=True)
        write_video(path, pan((2, 1), num_frames=num_frames, height=HEIGHT, width=WIDTH))
    codec: FrameCodec = request.param
    extract(tmp_path / "videos", tmp_path / "a.store", ExtractSettings(frame_codec=codec))
    add_flow(tmp_path / "a.store", FlowSettings())
    return open_store(tmp_path / "a.store")


def test_a_store_is_what_its_specification_says(store: Store) -> None:
    root = Path(str(store.path))
    attributes = _metadata(root)["attributes"]
    assert attributes["mgm_schema_version"] == 1
    decode = DECODE[attributes["settings"]["frame_codec"]]
    (part,) = [path for path in (root / "parts").iterdir() if path.is_dir()]
    described = _metadata(part)["attributes"]
    assert part.name == f"{described['height']}x{described['width']}-000000"
    frames_THWC = np.stack([decode(chunk) for chunk in _chunks(part / "frames")])
    motion_TYX2, flow_TYX2 = _motion(part / "motion"), _motion(part / "flow")
    time_T, picture_type_T = _track(part / "time", "<f8"), _track(part / "picture_type", "u1")
    stop = 0
    for record in described["videos"]:
        assert record["start"] == stop
        stop += record["num_frames"]
        span, video = slice(record["start"], stop), store[record["video_id"]]
        assert np.abs(frames_THWC[span].astype(int) - video.frames[:]).max() <= 1
        np.testing.assert_array_equal(motion_TYX2[span], video.motion[:])
        np.testing.assert_array_equal(flow_TYX2[span], video.flow[:])
        np.testing.assert_array_equal(time_T[span], video.time_s)
        np.testing.assert_array_equal(picture_type_T[span], video.picture_type)
        assert np.isnan(flow_TYX2[record["start"]]).all()
    assert stop == len(frames_THWC) == sum(VIDEOS.values())


def test_the_page_names_every_attribute_and_column(store: Store) -> None:
    root = Path(str(store.path))
    (part,) = [path for path in (root / "parts").iterdir() if path.is_dir()]
    names = {*_metadata(root)["attributes"], *_metadata(root)["attributes"]["settings"]}
    described = _metadata(part)["attributes"]
    names |= {*described, *described["videos"][0], *pq.read_table(root / "index.parquet").column_names}
    for array in ("frames", "motion", "flow", "time", "picture_type"):
        names |= {array, *_metadata(part / array)["attributes"], *_metadata(part / array)["dimension_names"]}
    names |= {key for row in (root / "plan.jsonl").read_text().splitlines() for key in json.loads(row)}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()

"""A store opens as what it is, in zarr, xarray and dask too, without a warning (pytest turns warnings into errors)."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from mgm_shared.errors import UserError
from mgm_shared.index import read_index, write_index
from mgm_shared.pack import pack_motion
from mgm_shared.schema import MISSING, unpack_motion
from mgm_shared.store import Store, open_store


def test_motion_survives_packing() -> None:
    motion_YX2 = np.array([[[1.26, -3.0], [np.nan, np.nan]], [[0, 0], [5000, -5000]]], np.float32)
    unpacked = unpack_motion(pack_motion(motion_YX2))
    np.testing.assert_allclose(unpacked[0, 0], [1.25, -3])
    assert np.isnan(unpacked[0, 1]).all()
    np.testing.assert_array_equal(unpacked[1, 0], 0)
    np.testing.assert_allclose(np.abs(unpacked[1, 1]), 2047.9375)
    assert (pack_motion(motion_YX2)[0, 1] == MISSING).all()


def test_the_table_of_videos(pan_store: Store) -> None:
    videos = pan_store.videos
    assert list(videos.index) == sorted(
        f"{s}/{c}/0.mp4" for s in ("train", "test") for c in ("down", "left", "right", "up")
    )
    assert set(videos["label"]) == {"down", "left", "right", "up"}
    assert set(videos["split"]) == {"train", "test"}
    assert (videos["num_frames"] == 24).all()
    assert len(pan_store) == 8
    assert "train/left/0.mp4" in pan_store


def test_a_store_pickles_cheaply(pan_store: Store) -> None:
    assert len(pan_store.videos) == 8
    sent = pickle.dumps(pan_store)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert received.videos.equals(pan_store.videos)
    assert received.digest == pan_store.digest


def test_a_video_is_sliced_like_an_array(pan_store: Store) -> None:
    video = pan_store["train/left/0.mp4"]
    assert video.frames.shape == (24, 128, 160, 3)
    assert video.motion.shape == (24, 16, 20, 2)
    whole = np.asarray(video.frames)
    assert whole.dtype == np.uint8
    for key in (slice(0, 24, 4), slice(None, None, -5), [3, 3, 0], np.array([23]), -1, 7):
        np.testing.assert_array_equal(video.frames[key], whole[key])
    assert video.motion[0].shape == (16, 20, 2)
    with pytest.raises(IndexError):
        video.frames[24]
    with pytest.raises(IndexError, match="by time alone"):
        video.frames[0, 1]
    np.testing.assert_allclose(video.time_s, np.arange(24) / 25)
    assert video.fps == pytest.approx(25)
    assert video.picture_type[0] == 1
    assert repr(video).startswith("Video('train/left/0.mp4': 24 frames of 128×160 px at 25 fps")


def test_zarr_opens_it(pan_store: Store) -> None:
    root = zarr.open_group(pan_store.path, mode="r")
    assert root.attrs["mgm_schema_version"] == 1
    video = pan_store["test/up/0.mp4"]
    part: Any = root[f"parts/{video.part.name}"]
    start = video.record["start"]
    np.testing.assert_array_equal(part["frames"][start : start + 24], video.frames[:])
    np.testing.assert_array_equal(unpack_motion(part["motion"][start : start + 24]), video.motion[:])


def test_xarray_opens_it(pan_store: Store) -> None:
    xarray = pytest.importorskip("xarray")
    video = pan_store["test/up/0.mp4"]
    dataset = video.to_xarray()
    assert dataset.sizes["time"] == 24
    assert dataset.attrs["label"] == "up"
    np.testing.assert_array_equal(dataset["frames"], video.frames[:])
    np.testing.assert_array_equal(dataset["motion"], video.motion[:])
    np.testing.assert_array_equal(dataset["time"], video.time_s)
    assert dataset["frames"].dims == ("time", "y", "x", "channel")
    part = xarray.open_zarr(video.part, consolidated=False)
    assert part["motion"].attrs["units"] == "pixel"


def test_dask_opens_it(pan_store: Store) -> None:
    from dask import array

    video = pan_store["test/up/0.mp4"]
    frames = array.from_zarr(str(video.part), component="frames")  # type: ignore[no-untyped-call]  # dask has not typed it
    start = video.record["start"]
    np.testing.assert_array_equal(frames[start : start + 24].compute(scheduler="sync"), video.frames[:])


def test_the_index_is_derived(pan_store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.store"
    shutil.copytree(str(pan_store.path), copy)
    (copy / "index.parquet").unlink()
    rebuilt = open_store(copy).videos
    assert rebuilt.equals(pan_store.videos)
    assert write_index(copy).equals(open_store(copy).table)
    shutil.rmtree(next((copy / "parts").glob("128x160-*")))
    assert len(open_store(copy)) == len(read_index(copy)) < 8


def test_what_is_no_store_of_ours_is_said(pan_store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an mgm store"):
        open_store(tmp_path)
    copy = tmp_path / "newer.store"
    copy.mkdir()
    metadata = json.loads(Path(str(pan_store.path), "zarr.json").read_text())
    metadata["attributes"]["mgm_schema_version"] = 2
    (copy / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="store schema 2, this mgm reads schema 1"):
        open_store(copy)
    with pytest.raises(KeyError, match=r"no video 'nobody\.mp4'"):
        pan_store["nobody.mp4"]


def test_a_notebook_needs_no_torch() -> None:
    code = (
        "import sys, mgm_shared.store, mgm_shared.figures, mgm_shared.cli;"
        "print(sorted({'torch', 'av', 'distributed', 'dask', 'matplotlib'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"

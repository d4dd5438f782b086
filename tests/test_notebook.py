"""A store in a notebook: it is a sequence, its arrays are arrays, and it shows itself."""

import base64
import os
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import zarr
from synthetic import pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.labels import attach_labels
from mgm_shared import NoSuchVideo, UserError, Video, motion_from, open_store
from mgm_shared.store import Store

VIDEO = "train/left/0.mp4"


def test_a_store_is_a_sequence_of_videos(pan_store: Store) -> None:
    ids = list(pan_store.videos.index)
    assert [video.video_id for video in pan_store] == [video.video_id for video in list(pan_store)] == ids
    assert [pan_store[k].video_id for k in range(len(pan_store))] == ids
    assert pan_store[-1].video_id == ids[-1]
    assert pan_store[np.int64(3)].video_id == ids[3]
    assert [video.video_id for video in pan_store[1:7:2]] == ids[1:7:2]
    assert [video.video_id for video in reversed(pan_store)] == ids[::-1]
    for row in (8, -9):
        with pytest.raises(IndexError):
            pan_store[row]
    assert pan_store[3] in pan_store
    assert ids[3] in pan_store
    assert "left" not in pan_store, "a part is no id"
    with pytest.raises(TypeError):
        pan_store[1.5]  # type: ignore[call-overload]


def test_a_sample_is_drawn_without_repetition(pan_store: Store) -> None:
    some = [video.video_id for video in pan_store.sample(5)]
    assert len(set(some)) == 5
    assert some == sorted(some) == [video.video_id for video in pan_store.sample(5)]
    drawn = {video.video_id for seed in range(40) for video in pan_store.sample(1, seed=seed)}
    assert drawn == set(pan_store.videos.index)
    assert pan_store.sample(0) == []
    assert len(pan_store.sample(8)) == 8
    for k in (9, -1):
        with pytest.raises(UserError, match="has 8 videos"):
            pan_store.sample(k)


def test_a_video_is_found_as_people_name_it(pan_store: Store, pan_videos: Path) -> None:
    """An id, the path as it was given to extract, wherever the videos lie now, and a part of one id."""
    for name in (VIDEO, pan_videos / VIDEO, str(pan_videos / VIDEO), f"/elsewhere/{VIDEO}", f"./a/../b/{VIDEO}"):
        assert pan_store[name].video_id == VIDEO
    assert pan_store["train/le"].video_id == VIDEO
    for name, message in (
        ("left", "2 ids contain it, such as test/left/0.mp4, train"),
        ("nobody", "no id contains it"),
    ):
        with pytest.raises(NoSuchVideo, match=message) as caught:
            pan_store[name]
        assert isinstance(caught.value, UserError)
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).startswith(str(pan_store.path)), "not in quotes, as KeyError has it"


def test_a_path_to_another_file_names_no_video(pan_store: Store, tmp_path: Path) -> None:
    (tmp_path / VIDEO).parent.mkdir(parents=True)
    (tmp_path / VIDEO).write_bytes(b"something else")
    with pytest.raises(NoSuchVideo, match="another size"):
        pan_store[tmp_path / VIDEO]


def test_names_that_are_no_text_or_look_like_parts(tmp_path: Path) -> None:
    """A byte that is not UTF-8 is `\\xNN` in the id; an id that is a part of another one is found exactly."""
    folder = tmp_path / "videos"
    folder.mkdir()
    made = write_video(tmp_path / "made.mp4", pan((2, 0), 4, 64, 96))
    names = [b"caf\xe9.mp4", b"a.mp4", b"aa.mp4", b"100%_[x].mp4"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(made.read_bytes())
    extract(folder, tmp_path / "s.store", ExtractSettings())
    store = open_store(tmp_path / "s.store")
    assert store[folder / os.fsdecode(b"caf\xe9.mp4")].video_id == "caf\\xe9.mp4"
    assert store["a.mp4"].video_id == "a.mp4"
    assert store["%_["].video_id == "100%_[x].mp4", "a part is text, no pattern"


@pytest.mark.parametrize("name", ["frames", "motion", "packed_motion"])
def test_views_are_arrays_to_numpy_and_torch(pan_store: Store, name: str) -> None:
    """zarr-python's own array is the oracle."""
    video = pan_store[VIDEO]
    view: Any = getattr(video, name)
    raw: Any = zarr.open_group(str(video.part), mode="r")[name.removeprefix("packed_")]
    start = video.record["start"]
    stored = raw[start : start + video.num_frames]
    expected = np.where(stored == -32768, np.nan, stored / 16) if name == "motion" else stored
    assert view.dtype == np.asarray(view).dtype
    assert isinstance(view.dtype, np.dtype)
    assert (view.ndim, view.size, view.nbytes) == (4, expected.size, np.asarray(view).nbytes)
    np.testing.assert_array_equal(np.asarray(view), expected)
    np.testing.assert_array_equal(torch.as_tensor(view).numpy(), expected)
    np.testing.assert_array_equal(torch.from_numpy(np.asarray(view)).numpy(), expected)
    assert np.asarray(view, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without a copy"):
        np.array(view, copy=False)


def test_torch_takes_the_frames_at_once(pan_store: Store) -> None:
    """Not number by number, as it takes a list: that is a hundred times slower."""
    frames = pan_store[VIDEO].frames
    torch.as_tensor(frames)
    start_s = time.process_time()
    np.asarray(frames)
    numpy_s = time.process_time() - start_s
    tensor = torch.as_tensor(frames)
    assert tensor.dtype == torch.uint8
    assert time.process_time() - start_s - numpy_s < 5 * numpy_s + 0.02


def test_raw_motion_becomes_pixels(pan_store: Store) -> None:
    from dask import array

    video = pan_store[VIDEO]
    here = slice(video.record["start"], video.record["start"] + video.num_frames)
    expected = video.motion[:]
    assert np.nanmedian(expected[1:, 4:-4, 4:-4, 0]) == -3, "the clip's own speed"
    raw = zarr.open_group(str(video.part), mode="r")["motion"]
    lazy = motion_from(array.from_zarr(str(video.part), component="motion"))  # type: ignore[no-untyped-call]  # dask has not typed it
    assert isinstance(lazy, array.Array)
    for motion in (motion_from(raw)[here], lazy[here].compute(scheduler="sync"), motion_from(video.packed_motion)):
        assert motion.dtype == np.float32
        np.testing.assert_array_equal(motion, expected)
    for wrong in (video.motion, video.frames, expected, [1, 2]):
        with pytest.raises(UserError, match="raw motion is int16"):
            motion_from(wrong)


def test_xarray_decodes_the_raw_array_too(pan_store: Store) -> None:
    xarray = pytest.importorskip("xarray")
    video = pan_store[VIDEO]
    here = slice(video.record["start"], video.record["start"] + video.num_frames)
    decoded = xarray.open_zarr(str(video.part), consolidated=False)["motion"][here]
    np.testing.assert_array_equal(decoded, video.motion[:])
    undecoded = xarray.open_zarr(str(video.part), consolidated=False, mask_and_scale=False)["motion"]
    converted = motion_from(undecoded)
    assert converted.dims == undecoded.dims
    assert converted.attrs["units"] == "pixel"
    assert not converted.attrs.keys() & {"scale_factor", "_FillValue"}
    np.testing.assert_array_equal(converted[here], video.motion[:])


def test_a_dataset_tells_of_its_own_video_only(pan_store: Store, tmp_path: Path) -> None:
    """With the label in force, in float32, and such that it can be written and read again."""
    xarray = pytest.importorskip("xarray")
    copy = tmp_path / "copy.store"
    shutil.copytree(str(pan_store.path), copy)
    (tmp_path / "labels.csv").write_text(f"path,label,split\n{VIDEO},renamed,val\n")
    attach_labels(copy, [tmp_path / "labels.csv"])
    video = open_store(copy)[VIDEO]
    dataset = video.to_xarray()
    assert dataset.attrs["video_id"] == VIDEO
    assert (dataset.attrs["label"], dataset.attrs["split"]) == ("renamed", "val")
    assert not dataset.attrs.keys() & {"videos", "failures"}
    assert dataset["motion"].dtype == np.float32
    np.testing.assert_array_equal(dataset["motion"], video.motion[:])
    dataset.load().to_zarr(tmp_path / "one.zarr", consolidated=False)
    again = xarray.open_zarr(tmp_path / "one.zarr", consolidated=False)
    np.testing.assert_array_equal(again["motion"], video.motion[:])


class Pictures(HTMLParser):
    """The pictures of a page, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pictures: list[Any] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "br"):
            self.open.append(tag)
        if tag == "img":
            content = base64.b64decode((dict(attrs)["src"] or "").partition("base64,")[2])
            self.pictures.append(
                np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]
            )

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_video_shows_a_strip_with_vectors(pan_store: Store) -> None:
    page = pan_store[VIDEO]._repr_html_()
    shown = Pictures(page)
    (strip,) = shown.pictures
    assert strip.shape[1] > 500
    # The pan is grey: what has a colour is the colours of the vectors and the wheel.
    colourful_HW = np.ptp(strip.astype(int), axis=-1) > 60
    assert colourful_HW.mean() > 0.1
    for text in (VIDEO, "left", "train", "24", "128"):
        assert text in page
    assert not re.search(r"https?://|<script", page)


def test_a_figure_shows_itself_without_pyplot(pan_store: Store) -> None:
    figure: Any = pan_store[VIDEO].plot(num_frames=2)
    picture = cv2.imdecode(np.frombuffer(figure._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape[1] > 300


def test_a_store_shows_counts_and_pictures(pan_store: Store) -> None:
    page = pan_store._repr_html_()
    shown = Pictures(page)
    assert [picture.shape[0] for picture in shown.pictures] == [96] * 6
    for text in ("8 videos", "192 frames", "test 4, train 4", "128×160 px 8", "h264 8"):
        assert text in page
    first = pan_store.sample(6)[0]
    expected = cv2.resize(first.frames[12], (120, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(shown.pictures[0].astype(int) - expected).mean() < 8


def test_what_names_hold_is_text(pan_store: Store, tmp_path: Path) -> None:
    video = pan_store[VIDEO]
    tag = "<script>alert('x')</script>"
    page = Video(video.part, tag, video.record | {"label": f'"{tag}'})._repr_html_()
    assert "script" not in Pictures(page).tags


def test_a_damaged_video_is_shown_without_its_picture(pan_store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.store"
    shutil.copytree(str(pan_store.path), copy)
    for shard in copy.glob("parts/*/frames/c.*"):
        shard.write_bytes(shard.read_bytes()[:1000])
    store = open_store(copy)
    assert "ends early" in store[VIDEO]._repr_html_()
    assert "ends early" in store._repr_html_()
    assert "left" in store._repr_html_()


def test_an_empty_store_shows_itself(pan_store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.store"
    shutil.copytree(str(pan_store.path), copy)
    for part in copy.glob("parts/*-*"):
        shutil.rmtree(part)
    store = open_store(copy)
    assert list(store) == []
    assert "0 videos" in store._repr_html_()
    with pytest.raises(NoSuchVideo, match="no id contains it"):
        store["a.mp4"]

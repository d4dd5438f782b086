"""Boxes and clips of key frames: which frames, boxes that go with their pixels, crops that keep boxes."""

from typing import cast

import numpy as np
import pytest
import torch
from moving_boxes import make_set
from numpy.typing import NDArray

from mgm_shared.geometry import Box
from mgm_shared.store import Store, Video, open_store
from mgm_train.data.views import View, show
from mgm_train.detection.boxes_in_view import BoxAugment, clipped, extended, in_view, shown
from mgm_train.detection.clip_frames import (
    PADDING_RGB,
    ClipReader,
    clip_times,
    jitter_colours,
    padded,
    video_times,
    whole_frame,
)
from mgm_train.models.videomae import normalise


def test_the_times_of_a_clip_are_videomae_s() -> None:
    """Indices 1, 5, … 61 of 64 frames at 25 fps, of which number 32 is the key frame (VideoMAE's AVA data set)."""
    expected = [902 + (index - 32) / 25 for index in range(1, 64, 4)]
    np.testing.assert_allclose(clip_times(902, 16, 4, 25), expected, atol=1e-9)
    np.testing.assert_allclose(clip_times(902, 16, 4, 30), 902 + (np.arange(1, 64, 4) - 32) / 30, atol=1e-9)
    np.testing.assert_allclose(clip_times(1, 4, 1, 25), 1 + np.array([-2, -1, 0, 1]) / 25)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("boxes")
    make_set(folder, [(2, 5)], [1])
    return open_store(folder / "boxes.store")


def test_frames_are_found_by_time_and_repeat_at_the_ends(store: Store) -> None:
    """The store has 25 frames a second, 60 in all: frame n is shown at n / 25 s."""
    video = store["clip0.mp4"]
    view = View(box=Box(x=0, y=0, width=128, height=96), size_px=(96, 128))
    reader = ClipReader(store, 8, 4, 25.0)
    for time_ms, frames in ((1000, range(10, 40, 4)), (0, [0, 0, 0, 0, 1, 5, 9, 13]), (99_000, [59] * 8)):
        clip_CTHW = reader.read(0, time_ms, view)
        assert np.array_equal(clip_CTHW.transpose(1, 2, 3, 0), video.frames[np.array(frames)]), time_ms


class _Times:
    video_id = "a"

    def __init__(self, time_s: list[float]) -> None:
        self.time_s = np.array(time_s)


def test_times_that_do_not_ascend_are_damage() -> None:
    """zarr reads a chunk that is missing as zeros."""
    assert video_times(cast(Video, _Times([0.0, 0.04, 0.5]))).tolist() == [0.0, 0.04, 0.5]
    for broken in ([0.0, 0.0, 0.0], [0.0, 0.5, 0.4]):
        with pytest.raises(OSError, match="do not ascend"):
            video_times(cast(Video, _Times(broken)))


def _painted(box_share_4: NDArray[np.float64], height: int, width: int) -> NDArray[np.uint8]:
    picture_HWC = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = (box_share_4 * (width, height, width, height)).round().astype(int)
    picture_HWC[top:bottom, left:right] = 255
    return picture_HWC


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize(
    ("box", "size_px"),
    [
        (Box(x=0, y=0, width=160, height=96), (96, 160)),
        (Box(x=20, y=10, width=80, height=80), 64),
        (Box(x=40, y=0, width=96, height=96), 192),
        (Box(x=0, y=16, width=160, height=64), (128, 80)),
    ],
)
def test_a_box_lies_where_its_pixels_are_shown(box: Box, size_px: int | tuple[int, int], is_mirrored: bool) -> None:
    """The oracle is the picture: a white box on black, shown by the view, and the pixels that are white then."""
    view = View(box=box, size_px=size_px, is_mirrored=is_mirrored)
    box_share_4 = np.array([50 / 160, 30 / 96, 90 / 160, 60 / 96])
    out_CHW = np.empty((3, *view.shape_px), np.uint8)
    show(_painted(box_share_4, 96, 160), view, out_CHW)
    rows, columns = np.nonzero(out_CHW[0] > 127)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(in_view(box_share_4[None], view, 96, 160)[0], expected, atol=1.0)


def test_a_mirrored_box_keeps_left_before_right() -> None:
    view = View(box=Box(x=0, y=0, width=100, height=100), size_px=200, is_mirrored=True)
    box_px_B4 = in_view(np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.0, 1.0]]), view, 100, 100)
    assert box_px_B4.tolist() == [[140.0, 40.0, 180.0, 80.0], [0.0, 100.0, 100.0, 200.0]]


def test_clipped_boxes_keep_a_pixel() -> None:
    found = clipped(np.array([[-9.0, 5, 20, 30], [120, 40, 150, 60], [-20, -20, -10, -10]]), 64, 100)
    assert found.tolist() == [[0, 5, 20, 30], [99, 40, 100, 60], [0, 0, 1, 1]]


def test_which_boxes_a_crop_shows() -> None:
    boxes = np.array(
        [
            [10.0, 10, 30, 30],  # inside
            [-30, 10, 20, 30],  # its centre is outside
            [-10, 10, 20, 30],  # two thirds of it
            [-90, -90, 100, 100],  # its centre is inside; 50² of 190² pixels are shown
            [60, 60, 80, 80],  # outside
        ]
    )
    assert shown(boxes, 50, 50).tolist() == [True, False, True, False, False]


def test_a_tested_box_grows_about_its_centre() -> None:
    np.testing.assert_allclose(extended(np.array([[40.0, 40, 60, 80]]), 100, 100), [[39, 39, 61, 81]])
    np.testing.assert_allclose(extended(np.array([[0.0, 0, 20, 100]]), 100, 100), [[0, 0, 21, 100]])


def test_training_crops_keep_a_box_and_cover_the_picture() -> None:
    augment = BoxAugment(size_px=64, crop_scale=0.875, flip=True, jitter=True)
    boxes = np.array([[0.0, 0.1, 0.1, 0.9], [0.4, 0.1, 0.6, 0.9], [0.9, 0.1, 1.0, 0.9]])
    rng = np.random.default_rng(0)
    views = [augment.view(boxes, 96, 256, rng) for _ in range(200)]
    assert all(is_kept_B.any() for _, is_kept_B in views)
    assert {bool(is_kept_B[k]) for _, is_kept_B in views for k in range(3)} == {True, False}
    assert {(view.box.width, view.box.height, view.size_px) for view, _ in views} == {(84, 84, 64)}
    assert min(view.box.x for view, _ in views) < 10
    assert max(view.box.x for view, _ in views) > 256 - 84 - 10
    assert 60 < sum(view.is_mirrored for view, _ in views) < 140


def test_a_box_that_chance_misses_gets_its_own_crop() -> None:
    """A very small box in a very wide picture: most draws miss it."""
    augment = BoxAugment(size_px=64, crop_scale=0.5, flip=False, jitter=False)
    boxes = np.array([[0.7, 0.02, 0.701, 0.04]])
    for seed in range(30):
        view, is_kept_B = augment.view(boxes, 64, 4000, np.random.default_rng(seed))
        assert is_kept_B.all()
        (box_4,) = in_view(boxes, view, 64, 4000)
        assert 0 <= box_4[0] <= box_4[2] <= 64
        assert 0 <= view.box.x <= 4000 - 32


def test_jitter_moves_each_side_by_its_share() -> None:
    augment = BoxAugment(size_px=1000, crop_scale=1, flip=False, jitter=True)
    boxes = np.repeat([[300.0, 300.0, 500.0, 700.0]], 5000, axis=0)
    moved_B4 = augment.boxes(boxes, np.random.default_rng(0)) - boxes
    # Left −.2 to .1 of the width, top −.1 to .05 of the height, right and bottom the other way round.
    np.testing.assert_allclose(moved_B4.min(0), [-40, -40, -20, -20], atol=1)
    np.testing.assert_allclose(moved_B4.max(0), [20, 20, 40, 40], atol=1)
    still = BoxAugment(size_px=1000, crop_scale=1, flip=False, jitter=False)
    assert np.array_equal(still.boxes(boxes, np.random.default_rng(0)), boxes)


@pytest.mark.parametrize(
    ("height", "width", "shape"), [(256, 456, (256, 456)), (128, 96, (340, 256)), (96, 96, (256, 256))]
)
def test_a_whole_frame_keeps_its_proportions(height: int, width: int, shape: tuple[int, int]) -> None:
    view = whole_frame(height, width, 256)
    assert view.shape_px == shape
    assert (view.box.width, view.box.height) == (width, height)


def test_padding_is_on_the_right_and_at_the_bottom_and_normalises_to_zero() -> None:
    frames_CTHW = np.random.default_rng(0).integers(0, 256, (3, 2, 30, 44), np.uint8)
    out_CTHW = padded(frames_CTHW, 16)
    assert out_CTHW.shape == (3, 2, 32, 48)
    assert np.array_equal(out_CTHW[:, :, :30, :44], frames_CTHW)
    assert (out_CTHW[:, 0, 31, 47] == PADDING_RGB).all()
    normalised_CTHW = normalise(torch.from_numpy(out_CTHW)[None])[0]
    assert normalised_CTHW[:, :, 30:].abs().max() < 0.01
    assert padded(frames_CTHW, 2).shape == frames_CTHW.shape


def test_colours_change_alike_in_all_frames_and_by_little() -> None:
    frame_CHW = np.random.default_rng(0).integers(30, 226, (3, 16, 16), np.uint8)
    frames_CTHW = np.repeat(frame_CHW[:, None], 4, axis=1)
    seen = []
    for seed in range(20):
        out_CTHW = jitter_colours(frames_CTHW, np.random.default_rng(seed))
        assert (out_CTHW == out_CTHW[:, :1]).all()
        seen.append(out_CTHW.mean())
    assert len(set(seen)) > 15
    # The value of HSV is the largest colour, which moves by 26 at most.
    brightest = [jitter_colours(frames_CTHW, np.random.default_rng(seed)).max(0) for seed in range(20)]
    assert max(np.abs(value.astype(int) - frames_CTHW.max(0)).max() for value in brightest) <= 27

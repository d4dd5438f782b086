"""What a view shows of frames and motion: they agree with each other, and with slow, obvious oracles."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import StandIn, psnr, texture

from mgm_shared.codec import planes_of_rgb, rgb_of_planes
from mgm_shared.geometry import Box
from mgm_shared.pack import pack_motion
from mgm_train.data.clips import read_clips
from mgm_train.data.views import View, read_views, show, view_motion

even_px = st.integers(4, 60).map(lambda half: 2 * half)


class MovingSquare(StandIn):  # type: ignore[misc]  # for a Video
    """A bright 16-px square that moves right by one cell a frame, and the motion that says so."""

    video_id = sample_id = "a"

    def __init__(self, num_frames: int = 6, height: int = 96, width: int = 128, speed_px: int = 8) -> None:
        self.frames = np.zeros((num_frames, height, width, 3), np.uint8)
        motion_TYX2 = np.zeros((num_frames, height // 8, width // 8, 2), np.float32)
        for t in range(num_frames):
            left = 24 + speed_px * t
            self.frames[t, 40:56, left : left + 16] = 255
            motion_TYX2[t, 5:7, left // 8 : left // 8 + 2] = (speed_px, 0)
        self.packed_motion = pack_motion(motion_TYX2)
        self.decoded: list[int] = []

    def pictures(self, indices_T: Any) -> Iterator[Any]:
        for t in indices_T.tolist():
            self.decoded.append(t)
            yield self.frames[t]


class MovingSquareInPlanes(MovingSquare):
    def pictures(self, indices_T: Any) -> Iterator[Any]:
        yield from map(planes_of_rgb, super().pictures(indices_T))


def bright_center_x(frame_HWC: Any) -> Any:
    return np.average(np.arange(frame_HWC.shape[1]) + 0.5, weights=frame_HWC[..., 0].sum(0).astype(float))


def moving_center_x(motion_YX2: Any) -> Any:
    weights = np.nan_to_num(np.abs(motion_YX2[..., 0])).sum(0)
    return np.average(8 * np.arange(motion_YX2.shape[1]) + 4, weights=weights)


def shown(picture: Any, view: Any) -> Any:
    """(H, W, 3)."""
    out_CHW = np.empty((3, view.size_px, view.size_px), np.uint8)
    show(picture, view, out_CHW)
    return out_CHW.transpose(1, 2, 0)


@pytest.mark.parametrize("video", [MovingSquare(), MovingSquareInPlanes()], ids=["rgb", "planes"])
@pytest.mark.parametrize("box", [Box(x=16, y=8, width=80, height=80), Box(x=24, y=32, width=40, height=40)])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_motion_stays_on_the_pixels_through_crop_and_flip(video: Any, box: Any, is_mirrored: bool) -> None:
    view = View(box=box, size_px=80, is_mirrored=is_mirrored)
    (clip,) = read_clips(video, np.arange(6), [view], label=3)
    assert clip.frames_CTHW.shape == (3, 6, 80, 80)
    assert clip.motion_TYX2.shape == (6, 10, 10, 2)
    centres = [bright_center_x(frame_HWC) for frame_HWC in clip.frames_THWC[:3]]
    for t in (1, 2):
        assert moving_center_x(clip.motion_TYX2[t]) == pytest.approx(centres[t], abs=0.6)
        speed_px = clip.motion_TYX2[t].reshape(-1, 2)
        fastest_px = speed_px[np.nanargmax(np.abs(speed_px[:, 0])), 0]
        assert fastest_px == pytest.approx(centres[t] - centres[t - 1], abs=0.6)
    assert (clip.label, clip.sample_id) == (3, "a")


def test_several_views_share_one_decoding() -> None:
    video = MovingSquare()
    views = [View(box=Box(x=x, y=0, width=64, height=64), size_px=32) for x in (0, 32, 64)]
    frames = read_views(video, np.array([1, 3, 4]), views)
    assert video.decoded == [1, 3, 4]
    for frames_CTHW, view in zip(frames, views, strict=True):
        (alone_CTHW,) = read_views(video, np.array([1, 3, 4]), [view])
        assert np.array_equal(frames_CTHW, alone_CTHW)


def test_a_view_of_the_same_size_copies_the_pixels() -> None:
    frame_HWC = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    view = View(box=Box(x=8, y=16, width=32, height=32), size_px=32)
    assert np.array_equal(shown(frame_HWC, view), frame_HWC[16:48, 8:40])


@given(even_px, even_px, st.booleans(), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_mirrored_view_is_the_mirror_of_the_view(width: Any, height: Any, is_planar: bool, seed: int) -> None:
    frame_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    picture = planes_of_rgb(frame_HWC) if is_planar else frame_HWC
    box = Box(x=0, y=0, width=width, height=height)
    plain = shown(picture, View(box=box, size_px=32))
    mirrored = shown(picture, View(box=box, size_px=32, is_mirrored=True))
    # Both are interpolated from the same pixels; mirroring comes after.
    assert np.array_equal(plain[:, ::-1], mirrored)


def test_shrinking_by_two_is_the_mean_of_four_pixels_and_by_four_of_sixteen() -> None:
    frame_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for factor in (2, 4):
        view = View(box=Box(x=0, y=0, width=64, height=64), size_px=64 // factor)
        mean_HWC = frame_HWC.reshape(64 // factor, factor, 64 // factor, factor, 3).mean((1, 3))
        assert np.abs(shown(frame_HWC, view) - mean_HWC).max() <= 0.51


@pytest.mark.parametrize(("box_px", "size_px"), [(96, 96), (64, 96), (96, 64), (80, 96)])
def test_planes_show_what_their_rgb_shows(box_px: int, size_px: int) -> None:
    # Sharp in luma, smooth in colour, as pictures are: chroma is not interpolated here, and is in the RGB.
    tint_HWC = cv2.GaussianBlur(texture(160, 160, is_grey=False), (0, 0), 8)
    planes = planes_of_rgb(cv2.addWeighted(texture(160, 160, seed=1), 0.5, tint_HWC, 0.5, 0).astype(np.uint8))
    view = View(box=Box(x=22, y=34, width=box_px, height=box_px), size_px=size_px)
    cut_HWC = rgb_of_planes(planes)[34 : 34 + box_px, 22 : 22 + box_px]
    expected_HWC = cv2.resize(cut_HWC, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    assert psnr(shown(planes, view)[None], expected_HWC[None]) > 44


def test_planes_become_rgb_as_jfif_says() -> None:
    """Against the equations of ITU-T T.871, in floating point."""
    rng = np.random.default_rng(0)
    planes = planes_of_rgb(np.zeros((32, 32, 3), np.uint8))
    y_HW, cb_HW, cr_HW = (rng.integers(0, 256, plane.shape, np.uint8) for plane in planes)
    view = View(box=Box(x=0, y=0, width=32, height=32), size_px=32)
    y, cb, cr = (
        np.kron(plane, np.ones((32 // len(plane), 32 // len(plane)))).astype(float) for plane in (y_HW, cb_HW, cr_HW)
    )
    expected = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    got_HWC = shown(type(planes)(y_HW, cb_HW, cr_HW), view)
    assert np.abs(got_HWC - np.clip(np.stack(expected, -1), 0, 255)).max() <= 0.51


def test_motion_of_a_whole_view_is_the_motion() -> None:
    motion_TYX2 = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
    view = View(box=Box(x=0, y=0, width=64, height=64), size_px=64)
    np.testing.assert_allclose(view_motion(motion_TYX2, view), motion_TYX2, rtol=1e-6)

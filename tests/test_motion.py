"""Vectors against textures of known speed, and the rasteriser against a loop over blocks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from synthetic import moving_pattern, pan, texture, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.extract import extract
from mgm_prep.motion.codec import motion_grid, with_references
from mgm_prep.motion.kernels import _compare_at_border, _compare_inside, _is_inside, paint
from mgm_shared.store import open_store

VELOCITY = (3, -2)
X264 = {
    "defaults": {},
    "no B pictures": {"bf": "0"},
    "7 B pictures": {"bf": "7", "x264-params": "b-adapt=0"},
    "no pyramid": {"b-pyramid": "none"},
    "strict pyramid": {"b-pyramid": "strict"},
    "1 reference": {"refs": "1"},
    "4 references": {"refs": "4"},
    "16 references": {"preset": "veryslow"},
    "open GOP": {"x264-params": "open-gop=1:keyint=20"},
    "no CABAC": {"x264-params": "cabac=0"},
    "weighted prediction": {"x264-params": "weightp=2"},
    "baseline": {"profile": "baseline"},
}


def _grids(path: Path) -> list[Any]:
    with VideoFile(path) as video:
        return [
            (picture.picture_type, motion_grid(picture, refs)) for picture, refs in with_references(video.pictures())
        ]


@pytest.mark.parametrize("is_grey", [True, False], ids=["grey", "colour"])
@pytest.mark.parametrize("setting", X264)
def test_a_pan_has_its_speed_on_every_picture(tmp_path: Path, setting: Any, is_grey: bool) -> None:
    """In colour the encoder often prefers the picture before the last: 4:2:0 chroma repeats every other pixel."""
    path = write_video(tmp_path / "pan.mp4", pan(VELOCITY, is_grey=is_grey), options=X264[setting])
    grids = _grids(path)
    assert len(grids) == 48
    assert _share_right(grids, VELOCITY) >= 0.98
    assert {picture_type for picture_type, _ in grids} >= {1, 2}


def _share_right(grids: Any, velocity: Any) -> Any:
    """Share of the P and B pictures whose median is within 0.25 px; of all their cells ≥ 85 % must be within 0.5."""
    is_right, error = [], []
    for picture_type, motion_YX2 in grids:
        known_N2 = motion_YX2[~np.isnan(motion_YX2[..., 0])]
        if picture_type == 1:
            assert not len(known_N2)
            continue
        is_right.append(np.abs(np.median(known_N2, axis=0) - velocity).max() <= 0.25)
        error.append(np.abs(known_N2 - velocity).max(-1))
    assert (np.concatenate(error) < 0.5).mean() >= 0.85
    return np.mean(is_right)


def test_a_pan_in_a_fade(tmp_path: Path) -> None:
    """With weights the encoder predicts across brightness; the reference is still told by the pattern."""
    fading = ((frame * (0.3 + 0.7 * t / 47)).astype(np.uint8) for t, frame in enumerate(pan(VELOCITY)))
    path = write_video(tmp_path / "fade.mp4", fading, options={"x264-params": "weightp=2"})
    assert _share_right(_grids(path), VELOCITY) >= 0.98


@pytest.mark.parametrize("options", [{}, {"bf": "0"}], ids=["B pictures", "none"])
def test_whole_pictures_coded_as_interlaced(tmp_path: Path, options: Any) -> None:
    """Much of what is flagged interlaced was filmed in whole pictures; its vectors are exact."""
    options = {"x264-params": "interlaced=1", **options}
    path = write_video(tmp_path / "pan.mp4", pan(VELOCITY, num_frames=24), options=options)
    assert _share_right(_grids(path), VELOCITY) >= 0.98


def test_fields_are_approximate(tmp_path: Path) -> None:
    """Content that moves between the fields: blocks in lines of one field, or that refer to the other, are too slow."""
    halves = list(pan((3, -2), num_frames=48))
    for t in range(0, 48, 2):
        halves[t][1::2] = halves[t + 1][1::2]
    options = {"x264-params": "interlaced=1", "bf": "0", "refs": "1"}
    grids = _grids(write_video(tmp_path / "fields.mp4", halves[::2], options=options))
    share_N2 = np.array([np.nanmedian(grid_YX2, axis=(0, 1)) / (6, -4) for kind, grid_YX2 in grids if kind != 1])
    assert share_N2.min() >= 0.1
    assert share_N2.max() <= 1.1
    assert (share_N2[:, 0] > 0.95).mean() > 0.7


def test_odd_sizes(tmp_path: Path) -> None:
    """The grid covers the last, partial cells; FFmpeg's padding beyond them is not stored."""
    path = write_video(tmp_path / "odd.mp4", pan(VELOCITY, num_frames=24, height=186, width=250))
    grids = _grids(path)
    assert {motion_YX2.shape for _, motion_YX2 in grids} == {(24, 32, 2)}
    assert _share_right(grids, VELOCITY) >= 0.98


@pytest.mark.parametrize("bframes", [0, 3])
@pytest.mark.parametrize(("kind", "rate"), [("zoom", 1.02), ("zoom", 1 / 1.02), ("turn", 0.02), ("turn", -0.03)])
def test_zooms_and_turns_follow_the_analytic_field(tmp_path: Path, kind: str, rate: float, bframes: int) -> None:
    """Up to 5.8 px a frame at the corners. Vectors over several frames are their mean, so B pictures bend the field."""
    turn = np.array([[np.cos(rate), -np.sin(rate)], [np.sin(rate), np.cos(rate)]])
    step = rate * np.eye(2) if kind == "zoom" else turn
    path = write_video(tmp_path / "clip.mp4", _warped(step), options={"bf": str(bframes)})
    from_centre_YX2 = np.stack(np.meshgrid(np.arange(4, 320, 8) - 160, np.arange(4, 240, 8) - 120), -1)
    field_YX2 = from_centre_YX2 @ (np.eye(2) - np.linalg.inv(step)).T
    errors = [np.hypot(*np.moveaxis(motion_YX2 - field_YX2, -1, 0)) for type_, motion_YX2 in _grids(path) if type_ != 1]
    share_T = [(error_YX[~np.isnan(error_YX)] < 0.5).mean() for error_YX in errors]
    assert np.median([np.nanmedian(error_YX) for error_YX in errors]) < 0.25
    assert np.median(share_T) > (0.95 if bframes == 0 else 0.8)


def _warped(step: Any, num_frames: int = 32) -> Iterator[Any]:
    """A texture that is mapped by the 2×2 matrix `step` from frame to frame, about the picture's centre."""
    texture_HWC, whole = texture(900, 900), np.eye(2)
    for _ in range(num_frames):
        shift = np.array([159.5, 119.5]) - whole @ (450, 450)
        yield cv2.warpAffine(texture_HWC, np.column_stack([whole, shift]), (320, 240), flags=cv2.INTER_CUBIC)
        whole = step @ whole


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [("mpeg4", "mp4", {}), ("mpeg4", "mp4", {"bf": "2"}), ("mpeg2video", "ts", {"bf": "2"}), ("flv", "flv", {})],
)
def test_older_codecs(tmp_path: Path, codec: str, suffix: str, options: Any) -> None:
    """MPEG-4 part 2 exports zeros on B pictures: missing, not static."""
    path = write_video(tmp_path / f"pan.{suffix}", pan(VELOCITY, num_frames=24), codec, options)
    types = set()
    for picture_type, motion_YX2 in _grids(path):
        types.add(picture_type)
        if picture_type == 1 or (codec, picture_type) == ("mpeg4", 3):
            assert np.isnan(motion_YX2).all()
        else:
            assert np.abs(np.nanmedian(motion_YX2, axis=(0, 1)) - VELOCITY).max() <= 0.25
    assert types == ({1, 2, 3} if "bf" in options else {1, 2})


def test_a_static_clip_is_static_and_not_missing(tmp_path: Path) -> None:
    frame = np.ascontiguousarray(texture()[:240, :320])
    path = write_video(tmp_path / "still.mp4", [frame] * 12)
    for picture_type, motion_YX2 in _grids(path)[1:]:
        assert picture_type != 1
        np.testing.assert_array_equal(motion_YX2, 0)


def test_painting_equals_a_loop_over_blocks(tmp_path: Path) -> None:
    path = moving_pattern(tmp_path / "clip.mp4", "-c:v", "libx264", "-x264-params", "partitions=all", size="248x186")
    with VideoFile(path) as video:
        pictures = [picture for picture in video.pictures() if picture.vectors_K is not None]
    sizes = set()
    for picture in pictures[:12]:
        expected = np.full((2, 24, 31, 2), np.nan, np.float32)
        assert picture.vectors_K is not None
        for vector in picture.vectors_K:
            width, height = int(vector["w"]), int(vector["h"])
            sizes.add((width, height))
            left, top = int(vector["dst_x"]) - width // 2, int(vector["dst_y"]) - height // 2
            for y in range(top, top + height, 8):
                for x in range(left, left + width, 8):
                    if 0 <= y // 8 < 24 and 0 <= x // 8 < 31:
                        shift = np.array([vector["motion_x"], vector["motion_y"]]) / int(vector["motion_scale"])
                        expected[int(vector["source"] > 0), y // 8, x // 8] = shift
        np.testing.assert_array_equal(paint(picture.vectors_K, 24, 31), expected)
    assert sizes == {(16, 16), (16, 8), (8, 16), (8, 8)}


def _stored(tmp_path: Path, **settings: Any) -> Any:
    extract(tmp_path / "in", tmp_path / "out.store", ExtractSettings(**settings))
    store = open_store(tmp_path / "out.store")
    return store[store.videos.index[0]]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_turns_the_vectors(tmp_path: Path, rotation: int) -> None:
    """`set_display_rotation` turns the shown picture clockwise by that many degrees."""
    (tmp_path / "in").mkdir()
    frames = list(pan(VELOCITY, num_frames=8))
    write_video(tmp_path / "in/a.mp4", frames, rotation=rotation)
    video = _stored(tmp_path)
    shown = video.frames[0].astype(int)
    turns = min(range(4), key=lambda k: _distance(np.rot90(frames[0], k), shown))
    assert turns in {90: (1, 3), 180: (2,), 270: (1, 3)}[rotation]
    dx, dy = VELOCITY
    for _ in range(turns):
        dx, dy = dy, -dx  # np.rot90 turns counter-clockwise: right becomes up
    np.testing.assert_allclose(np.nanmedian(video.motion[1:], axis=(0, 1, 2)), (dx, dy), atol=0.1)


def _distance(frame: Any, shown: Any) -> Any:
    return np.abs(frame - shown).mean() if frame.shape == shown.shape else np.inf


def test_resizing_scales_the_vectors(tmp_path: Path) -> None:
    """720p → 256 lines, and 1.6 % more width than height to reach a multiple of 8."""
    (tmp_path / "in").mkdir()
    texture_HWC = np.ascontiguousarray(np.tile(texture(), (2, 2, 1)))
    frames = [np.roll(texture_HWC, (-5 * t, 8 * t), (0, 1))[:720, :1200] for t in range(6)]
    write_video(tmp_path / "in/a.mp4", map(np.ascontiguousarray, frames))
    video = _stored(tmp_path)
    assert (video.height, video.width) == (256, 424)
    expected = (8 * 424 / 1200, -5 * 256 / 720)
    for motion_YX2 in video.motion[1:]:
        np.testing.assert_allclose(np.nanmedian(motion_YX2, axis=(0, 1)), expected, atol=0.25)


@pytest.mark.parametrize("no_vectors", ["transcode", "skip"])
@pytest.mark.parametrize(("codec", "suffix"), [("libvpx-vp9", "webm"), ("libx265", "mp4")])
def test_codecs_without_vectors(tmp_path: Path, codec: str, suffix: str, no_vectors: str) -> None:
    (tmp_path / "in").mkdir()
    speed = {"preset": "ultrafast", "x265-params": "log-level=none"} if codec == "libx265" else {"cpu-used": "8"}
    write_video(tmp_path / f"in/a.{suffix}", pan(VELOCITY, num_frames=8), codec, speed)
    video = _stored(tmp_path, no_vectors=no_vectors)
    assert video.record["motion_source"] == {"transcode": "transcode", "skip": "none"}[no_vectors]
    motion_TYX2 = video.motion[:]
    if no_vectors == "skip":
        assert np.isnan(motion_TYX2).all()
    else:
        assert np.isnan(motion_TYX2[0]).all()
        medians_T2 = np.nanmedian(motion_TYX2[1:], axis=(1, 2))
        np.testing.assert_allclose(medians_T2, np.tile(VELOCITY, (7, 1)), atol=0.25)


def test_the_fast_path_of_the_comparison_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    luma_HW, reference_HW = rng.integers(0, 256, (2, 48, 64), np.uint8)
    for _ in range(200):
        first_row, first_column = int(rng.integers(0, 5)) * 8, int(rng.integers(0, 7)) * 8
        dy, dx = (np.float32(quarters / 4) for quarters in rng.integers(-80, 80, 2).tolist())
        if not (_is_inside(first_row, dy, 48) and _is_inside(first_column, dx, 64)):
            continue
        inside_S, border_S = np.zeros((2, 8), np.float32)
        _compare_inside(luma_HW, reference_HW, first_row, first_column, dy, dx, inside_S)
        _compare_at_border(luma_HW, reference_HW, first_row, first_column, dy, dx, border_S)
        np.testing.assert_array_equal(inside_S, border_S)
        assert inside_S.any()

"""What draws the mask: vectors as they are, cleaned ones that neither camera nor flat ground misleads, flow, boxes."""

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import texture

from mgm_shared.errors import UserError
from mgm_shared.geometry import Box
from mgm_shared.store import Store
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import Clip, read_clips
from mgm_train.data.views import View
from mgm_train.masking.guidance import Guidance, clean, filled, magnitude

NUM_FRAMES, ROWS, COLUMNS = 4, 12, 16


def textured(seed: int = 0) -> Any:
    """Frames of still noise."""
    frame_HWC = texture(8 * ROWS, 8 * COLUMNS, seed)
    return np.repeat(frame_HWC[None], NUM_FRAMES, axis=0)


def clip_of(frames_THWC: Any, motion_TYX2: Any) -> Clip:
    frames_CTHW = np.ascontiguousarray(frames_THWC.transpose(3, 0, 1, 2))
    return Clip(frames_CTHW=frames_CTHW, motion_TYX2=motion_TYX2, label=-1, sample_id="a")


def object_in_front_of(motion_TYX2: Any) -> tuple[Any, Any]:
    """`motion_TYX2` with an object of 2×3 cells that moves against it, and those cells."""
    is_object_YX = np.zeros((ROWS, COLUMNS), np.bool_)
    is_object_YX[6:8, 9:12] = True
    moved_TYX2 = motion_TYX2.copy()
    moved_TYX2[:, is_object_YX] += (3, -2)
    return moved_TYX2, is_object_YX


def affine_field(coefficients: Any) -> np.ndarray:
    y_YX, x_YX = np.mgrid[:ROWS, :COLUMNS]
    (a, b, c), (d, e, f) = coefficients
    field_YX2 = np.stack([a + b * x_YX + c * y_YX, d + e * x_YX + f * y_YX], axis=-1)
    return np.repeat(field_YX2[None], NUM_FRAMES, axis=0).astype(np.float32)


slopes = st.floats(-0.5, 0.5)
cameras = st.tuples(*[st.tuples(st.floats(-20, 20), slopes, slopes)] * 2)


def test_a_missing_cell_takes_the_nearest_frame_that_has_one() -> None:
    rng = np.random.default_rng(0)
    strength_TYX = rng.random((8, 4, 6)).astype(np.float32)
    strength_TYX[rng.random(strength_TYX.shape) < 0.6] = np.nan
    strength_TYX[:, 0, 0] = np.nan
    filled_TYX = filled(strength_TYX)
    for y in range(4):
        for x in range(6):
            known = [t for t in range(8) if not np.isnan(strength_TYX[t, y, x])]
            for t in range(8):
                nearest = min(known, key=partial(_distance, t), default=None)
                assert filled_TYX[t, y, x] == (0 if nearest is None else strength_TYX[nearest, y, x])


def _distance(t: int, other: int) -> tuple[int, int]:
    """From a frame to another; of two as near, the earlier is nearer."""
    return abs(other - t), other


def test_the_length_of_a_vector_and_of_none() -> None:
    motion_TYX2 = np.array([[[[3, -4], [0, 0], [np.nan, np.nan]]]], np.float32)
    np.testing.assert_array_equal(magnitude(motion_TYX2), [[[5, 0, np.nan]]])


@settings(deadline=None, max_examples=50)
@given(cameras, st.integers(0, 100))
def test_a_camera_that_pans_zooms_or_turns_changes_nothing(camera: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    motion_TYX2 = rng.normal(size=(NUM_FRAMES, ROWS, COLUMNS, 2)).astype(np.float32)
    motion_TYX2[rng.random((NUM_FRAMES, ROWS, COLUMNS)) < 0.1] = np.nan
    still_TYX = clean(motion_TYX2, textured())
    moving_TYX = clean(motion_TYX2 + affine_field(camera), textured())
    np.testing.assert_allclose(moving_TYX, still_TYX, atol=2e-3 * still_TYX.max())


@pytest.mark.parametrize("camera", [((0, 0, 0), (0, 0, 0)), ((9, 0, 0), (-4, 0, 0)), ((1, 0.3, -0.2), (0, 0.2, 0.3))])
def test_the_object_draws_the_mask_and_not_the_camera(camera: Any) -> None:
    motion_TYX2, is_object_YX = object_in_front_of(affine_field(camera))
    for strength_YX in clean(motion_TYX2, textured()):
        assert is_object_YX.ravel()[strength_YX.argmax()]
    if camera[0][1]:
        # Which the vectors as they are do not tell under a zoom.
        assert not is_object_YX.ravel()[magnitude(motion_TYX2)[0].argmax()]


def test_vectors_of_flat_ground_mean_nothing() -> None:
    motion_TYX2, is_object_YX = object_in_front_of(np.zeros((NUM_FRAMES, ROWS, COLUMNS, 2), np.float32))
    motion_TYX2[:, :4, :6] = np.random.default_rng(0).normal(0, 20, (NUM_FRAMES, 4, 6, 2))
    frames_THWC = textured()
    frames_THWC[:, : 8 * 5, : 8 * 7] = 90
    assert not is_object_YX.ravel()[magnitude(motion_TYX2)[0].argmax()]
    strength_TYX = clean(motion_TYX2, frames_THWC)
    assert (strength_TYX[:, :3, :5] == 0).all()
    for strength_YX in strength_TYX:
        assert is_object_YX.ravel()[strength_YX.argmax()]


def test_the_rule_in_plain_numpy() -> None:
    rng = np.random.default_rng(1)
    motion_TYX2 = rng.normal(size=(NUM_FRAMES, ROWS, COLUMNS, 2)).astype(np.float32)
    is_missing_TYX = rng.random((NUM_FRAMES, ROWS, COLUMNS)) < 0.2
    motion_TYX2[is_missing_TYX] = np.nan
    frames_THWC = rng.integers(0, 256, (NUM_FRAMES, 8 * ROWS, 8 * COLUMNS, 3), np.uint8)
    strength_TYX = clean(motion_TYX2, frames_THWC)
    terms_C3 = np.stack([np.ones(ROWS * COLUMNS), *np.mgrid[:ROWS, :COLUMNS].reshape(2, -1)], axis=1)
    for t in range(NUM_FRAMES):
        green_PQ = frames_THWC[t, ::4, ::4, 1].astype(float)
        to_right_PQ = np.abs(np.diff(green_PQ, axis=1, append=green_PQ[:, -1:]))
        to_below_PQ = np.abs(np.diff(green_PQ, axis=0, append=green_PQ[-1:]))
        texture_YX = (to_right_PQ + to_below_PQ).reshape(ROWS, 2, COLUMNS, 2).mean((1, 3)) / 2
        is_known_C = ~is_missing_TYX[t].ravel()
        motion_C2 = motion_TYX2[t].reshape(-1, 2).astype(np.float64)
        root_C1 = np.sqrt(texture_YX.reshape(-1, 1)) * is_known_C[:, None]
        camera_32, *_ = np.linalg.lstsq(root_C1 * terms_C3, root_C1 * np.nan_to_num(motion_C2), rcond=None)
        speed_YX = np.linalg.norm(motion_C2 - terms_C3 @ camera_32, axis=1).reshape(ROWS, COLUMNS)
        change_YX = np.pad(speed_YX * texture_YX, 1, constant_values=np.nan)
        shifted = [change_YX[j : j + ROWS, i : i + COLUMNS] for j in range(3) for i in range(3)]
        np.testing.assert_allclose(strength_TYX[t], np.nanmean(shifted, axis=0), rtol=1e-4)


def test_a_mirrored_clip_has_the_mirrored_guidance() -> None:
    # Vertically, where the samples lie evenly; from the left and from the right they differ by half a sample.
    rng = np.random.default_rng(2)
    motion_TYX2 = rng.normal(size=(NUM_FRAMES, ROWS, COLUMNS, 2)).astype(np.float32)
    smooth = cv2.GaussianBlur(textured()[0], (0, 0), 6)
    frames_THWC = np.repeat(smooth[None], NUM_FRAMES, axis=0)
    clip = clip_of(frames_THWC, motion_TYX2)
    mirrored = clip_of(frames_THWC[:, :, ::-1], motion_TYX2[:, :, ::-1] * np.array([-1, 1], np.float32))
    for source in ("vectors", "clean"):
        there, back = Guidance(source=source).strength(clip), Guidance(source=source).strength(mirrored)[..., ::-1]
        assert np.corrcoef(there.ravel(), back.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("share_missing", [0.0, 0.5, 1.0])
def test_guidance_is_never_missing(share_missing: float) -> None:
    rng = np.random.default_rng(0)
    motion_TYX2 = rng.normal(size=(NUM_FRAMES, ROWS, COLUMNS, 2)).astype(np.float32)
    motion_TYX2[rng.random((NUM_FRAMES, ROWS, COLUMNS)) < share_missing] = np.nan
    clip = clip_of(textured(), motion_TYX2)
    for source in ("vectors", "clean"):
        strength_TYX = Guidance(source=source).strength(clip)
        assert strength_TYX.shape == (NUM_FRAMES, ROWS, COLUMNS)
        assert np.isfinite(strength_TYX).all()
        assert strength_TYX.any() == (share_missing < 1)


def test_cells_on_a_line_and_a_single_cell_are_no_camera_to_divide_by() -> None:
    for known in (np.s_[:, 3, :], np.s_[:, 3, 4:5]):
        motion_TYX2 = np.full((NUM_FRAMES, ROWS, COLUMNS, 2), np.nan, np.float32)
        motion_TYX2[known] = (5, 1)
        np.testing.assert_allclose(filled(clean(motion_TYX2, textured())), 0, atol=1e-3)


def test_boxes_draw_the_mask_to_the_middle_of_the_largest(pan_store: Store, tmp_path: Path) -> None:
    (tmp_path / "train" / "left").mkdir(parents=True)
    lines = [f"{frame},1,{20 + 2 * frame},30,40,50,1\n{frame},2,100,90,16,16,1" for frame in range(1, 25)]
    (tmp_path / "train" / "left" / "0.txt").write_text("\n".join(lines))
    guidance = Guidance(source="boxes", boxes=str(tmp_path))
    video = pan_store["train/left/0.mp4"]
    view = View(box=Box(x=0, y=0, width=128, height=128), size_px=128)
    (clip,) = read_clips(video, np.arange(4, 20, 2), [view], read_field=guidance.read)
    for index, strength_YX in zip(range(4, 20, 2), guidance.strength(clip), strict=True):
        y, x = np.unravel_index(strength_YX.argmax(), strength_YX.shape)
        # MOT counts frames and pixels from 1; a clip's field is the mean since the sampled frame before.
        assert abs((x + 0.5) * 8 - (20 + 2 * index + 20)) <= 8
        assert abs((y + 0.5) * 8 - (29 + 25)) <= 8
    with pytest.raises(UserError, match=r"right/0\.txt cannot be read"):
        guidance.read(pan_store["train/right/0.mp4"], slice(0, 4))


def test_flow_must_have_been_computed(pan_store: Store) -> None:
    with pytest.raises(UserError, match="mgm-prep flow"):
        Guidance(source="flow").read(pan_store["train/right/0.mp4"], slice(0, 4))


def test_the_configuration_names_the_source() -> None:
    assert Guidance.of(PretrainConfig(guidance="clean")) == Guidance(source="clean")
    for wrong in ({"guidance": "stars"}, {"guidance": "boxes"}, {"boxes": "folder"}, {"mask_top_k": 0}):
        with pytest.raises(UserError, match="must be"):
            PretrainConfig(**wrong)

"""One video's way, from MP4 to loss: a textured square that moves right over a still background.

Read it as a tour: each step is one function of the product, and what must be true of what it returns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import texture, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.extract import extract
from mgm_prep.motion.codec import motion_grid, with_references
from mgm_prep.sources.discover import find_sources
from mgm_shared.geometry import Box, TokenGrid
from mgm_shared.store import open_store
from mgm_train.data.clips import collate, motion_between, read_clips
from mgm_train.data.views import View
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import make_mask
from mgm_train.model_config import model_config
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.training.losses import PretrainObjective

SIDE, SPEED, TOP = 32, 4, 48


def _left(t: int) -> int:
    return 16 + SPEED * t


def _square_moves_right() -> Iterator[Any]:
    background, square = texture(seed=1)[:128, :160] // 2, texture(seed=2)[:SIDE, :SIDE] // 2 + 127
    for t in range(20):
        frame_HWC = background.copy()
        frame_HWC[TOP : TOP + SIDE, _left(t) : _left(t) + SIDE] = square
        yield frame_HWC


def test_one_datum(tmp_path: Path) -> None:
    (tmp_path / "train/right").mkdir(parents=True)
    path = write_video(tmp_path / "train/right/0.mp4", _square_moves_right())

    # a file → a source
    (source,) = find_sources(tmp_path).sources
    assert (source.video_id, source.label, source.split) == ("train/right/0.mp4", "right", "train")

    # → pictures with vectors → one velocity a cell
    with VideoFile(path) as video:
        grids = [motion_grid(picture, references) for picture, references in with_references(video.pictures())]
    assert len(grids) == 20
    assert np.isnan(grids[0]).all()
    y, x = TOP // 8 + 1, _left(10) // 8 + 2
    np.testing.assert_allclose(grids[10][y, x], (SPEED, 0), atol=0.25)
    assert np.nanmedian(np.abs(grids[10])) == 0

    # → the store
    extract(tmp_path, tmp_path / "a.store", ExtractSettings())
    stored = open_store(tmp_path / "a.store")[source.video_id]
    assert stored.frames.shape == (20, 128, 160, 3)
    np.testing.assert_allclose(stored.motion[10], grids[10], atol=1 / 32, equal_nan=True)

    # → a clip of 8 frames, every second one: its motion bridges the frames between
    indices_T = np.arange(2, 18, 2)
    motion_TYX2 = motion_between(stored.motion[2:17], indices_T)
    np.testing.assert_allclose(motion_TYX2[4, y, x], (SPEED, 0), atol=0.5)

    # → one crop and one flip, for pixels and motion alike
    view = View(box=Box(x=16, y=0, width=128, height=128), size_px=128, is_mirrored=True)
    (clip,) = read_clips(stored, indices_T, [view])
    assert clip.frames_THWC.shape == (8, 128, 128, 3)
    square_x = [128 - (_left(t) - 16) - SIDE for t in range(2, 18, 2)]
    for frame_HWC, motion_YX2, left in zip(clip.frames_THWC[1:], clip.motion_TYX2[1:], square_x[1:], strict=True):
        assert frame_HWC[TOP + 8 : TOP + 24, left + 8 : left + 24].mean() > 1.5 * frame_HWC[:40].mean()
        inside = motion_YX2[TOP // 8 : (TOP + SIDE) // 8, left // 8 + 1 : (left + SIDE) // 8]
        np.testing.assert_allclose(np.nanmedian(inside, axis=(0, 1)), (-SPEED, 0), atol=0.5)

    # → a mask that covers the square in every slice but, perhaps, the first, whose place is random (eq. 7)
    grid = TokenGrid.of_clip(8, 128, 128)
    mask_N = make_mask("mgm", Guidance().strength(clip), ratio=0.5, rng=np.random.default_rng(0))
    assert mask_N.sum() == 32 * grid.t
    mask_thw = mask_N.reshape(grid.t, grid.h, grid.w)
    for t in range(1, grid.t):
        middle = (square_x[2 * t] + square_x[2 * t + 1]) / 2 + SIDE / 2
        assert mask_thw[t, (TOP + SIDE // 2) // 16, int(middle) // 16]

    # → a batch → tokens → pixels of the masked patches → loss → gradients everywhere
    frames_CTHW = torch.from_numpy(clip.frames_CTHW)
    batch = collate([[{"frames_CTHW": frames_CTHW, "mask_N": torch.from_numpy(mask_N), "label": -1, "index": 0}]])
    batch["num_masked"] = int(mask_N.sum())
    model = build(lambda: VideoMAE(model_config("vit_tiny", num_frames=8, image_px=128)), seed=0)
    loss = PretrainObjective()(model, batch, seed=0)
    assert 0.5 < loss.item() < 3
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

"""Pictures of targets: each shows what it says, at its place, and white where there is nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mgm_shared.codebook import PatchNorm
from mgm_shared.geometry import PAPER_PATCH, TokenGrid
from mgm_shared.overlays import motion_colours
from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.figures.loss_curve import loss_figure
from mgm_train.figures.paper_figures import Subject, pictures, target_picture
from mgm_train.figures.target_rows import DRAWERS, GLYPH_PX, draw, shown_targets
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.run_report.curves import training_sections
from mgm_train.run_report.records import RunRecord
from mgm_train.target_weights import TARGETS
from mgm_train.tasks.pretrain import pretrain
from mgm_train.tasks.visualize import visualize
from mgm_train.training.targets.choose import make_targets, pretrain_shape
from mgm_train.training.targets.difference import Difference
from mgm_train.training.targets.hog import Hog
from mgm_train.training.targets.kmeans import KMeans
from mgm_train.training.targets.pixels import Pixels
from mgm_train.training.targets.trajectory import ReadTrajectory, Trajectory

GRID = TokenGrid(t=2, h=3, w=4)
SHAPE_T = (2, 3, 16, 4, 16)
ALL = PretrainConfig(model="vit_tiny", num_frames=4, image_px=64, stride=2, target="pixels+hog+difference")


def test_every_target_has_a_drawer() -> None:
    assert set(DRAWERS) == set(TARGETS)


@pytest.mark.parametrize(("target", "num_frames"), [(Pixels(), 2), (Difference(), 1)], ids=["pixels", "difference"])
def test_pixels_lie_at_their_place_around_mid_grey(target: Pixels | Difference, num_frames: int) -> None:
    values_NP = torch.zeros(GRID.num_tokens, target.width)
    # In the token of slice 1, row 2, column 3: the green of the pixel in row 5, column 7 of the first frame.
    token = (1 * 3 + 2) * 4 + 3
    values_NP.view(-1, num_frames, 16, 16, 3)[token, 0, 5, 7, 1] = 2
    values_NP[0] = torch.nan
    picture_tHWC = draw(target, values_NP, GRID)
    assert picture_tHWC.shape == (2, 48, 64, 3)
    expected = np.full((2, 48, 64, 3), 127)
    expected[1, 2 * 16 + 5, 3 * 16 + 7, 1] = int(127.5 + 2 * 45)
    expected[0, :16, :16] = 255
    np.testing.assert_array_equal(picture_tHWC, expected)


@pytest.mark.parametrize("angle_degrees", [10, 50, 90, 130, 170])
def test_a_line_of_a_histogram_runs_along_the_edge(angle_degrees: int) -> None:
    """An edge in the middle of the picture: the line of its cell has the direction in which the picture is constant."""
    along = np.array([math.cos(math.radians(angle_degrees)), math.sin(math.radians(angle_degrees))])
    y, x = np.mgrid[-28:36, -28:36] + 0.5
    level_HW = (120 + 5 * (x * -along[1] + y * along[0]).clip(-12, 12)).astype(np.uint8)
    frames_BCTHW = torch.from_numpy(level_HW)[None, None, None].expand(1, 3, 2, -1, -1)
    values, _ = Hog().values({"frames_BCTHW": frames_BCTHW}, torch.arange(16)[None])
    picture_tHWC = draw(Hog(), values[0], TokenGrid(t=1, h=4, w=4))
    # The middle of the edge lies in the cell at (3, 3).
    cell_HW = picture_tHWC[0, 3 * GLYPH_PX : 4 * GLYPH_PX, 3 * GLYPH_PX : 4 * GLYPH_PX, 0].astype(float)
    rows, columns = np.mgrid[:GLYPH_PX, :GLYPH_PX] - (GLYPH_PX - 1) / 2
    spread = np.cov(np.stack([columns.ravel(), rows.ravel()]), aweights=cell_HW.ravel())
    drawn = np.linalg.eigh(spread)[1][:, 1]
    assert abs(drawn @ along) > math.cos(math.radians(11)), "the middle of a bin is at most 10° away"


@pytest.mark.parametrize("num_steps", [0, 3])
def test_displacements_have_the_colour_of_their_direction(num_steps: int) -> None:
    target = Trajectory(read=ReadTrajectory(grid=GRID, num_steps=num_steps, norm="clip"))
    values_NP = torch.zeros(GRID.num_tokens, target.width)
    # The lower right point of the token in slice 1, row 2, column 3 goes up, in every displacement.
    token = (1 * 3 + 2) * 4 + 3
    values_NP.view(GRID.num_tokens, 2, -1, 2, 2)[token, 1, :, 1, 1] = -5
    values_NP[0] = values_NP.view(GRID.num_tokens, 2, -1, 2, 2)[5, :, :, 0, 1] = torch.nan
    picture_tHWC = draw(target, values_NP, GRID)
    up = motion_colours(np.array([0, -1], np.float32), 1.0)
    assert len(set(up.tolist())) > 1
    expected = np.full((2, 48, 64, 3), 255)
    expected[1, 40:48, 56:64] = up
    expected[0, :16, :16] = expected[0, 16:24, 24:32] = 128
    np.testing.assert_array_equal(picture_tHWC, expected)


@pytest.mark.parametrize("norm", ["none", "patch"])
def test_a_code_is_drawn_as_its_patch_and_a_prediction_as_the_likeliest(norm: PatchNorm) -> None:
    centres_KP = torch.tensor([0.1, 0.5, 0.9])[:, None].repeat(1, 192)
    # The red of the pixel in row 2, column 5 of the half-size patch of code 2.
    centres_KP[2, 2 * 8 + 5] = 0
    target = KMeans(patch=PAPER_PATCH, norm=norm, centres_KP=centres_KP)
    code_N = torch.arange(GRID.num_tokens) % 3
    codes_NT = torch.stack([code_N, (code_N + 1) % 3], dim=1)
    logits_NP = torch.zeros(GRID.num_tokens, 6)
    logits_NP[torch.arange(GRID.num_tokens), code_N] = 1
    logits_NP[:, 3] = 9
    of_code, of_prediction = draw(target, codes_NT, GRID), draw(target, logits_NP, GRID)
    np.testing.assert_array_equal(of_code, of_prediction)
    grey = [int(255 * level if norm == "none" else 127.5 + 45 * level) for level in (0.1, 0.5, 0.9)]
    assert of_code[0, :16, 5].tolist() == [[grey[0]] * 3] * 16
    red = 0 if norm == "none" else 127
    assert (of_code[0, 4:6, 32 + 10 : 32 + 12] == (red, grey[2], grey[2])).all()
    logits_NP[1] = torch.nan
    assert (draw(target, logits_NP, GRID)[0, :16, 16:32] == 255).all()


def test_the_figure_has_two_rows_for_each_target_and_its_loss(pan_store: Store) -> None:
    model = build(lambda: VideoMAE(pretrain_shape(ALL)), 0)
    subject = Subject.of(pan_store["train/right/0.mp4"], ALL)
    picture = target_picture(subject, model)
    names = [" ".join(row.name.split()) for row in picture.rows]
    assert names[:3] == ["clip and mask", "target pixels", names[2]]
    assert [name.split()[2] for name in names[2::2]] == ["pixels", "hog", "difference"]
    weighted = make_targets(ALL)
    mask_N = torch.from_numpy(subject.mask_thw().reshape(-1))
    for one in shown_targets(model, [one.target for one in weighted], subject.batch(weighted), mask_N):
        error = (one.true_NP - one.predicted_NP)[mask_N] ** 2
        assert one.loss == pytest.approx(float(error.mean()), rel=1e-4)
        assert one.predicted_NP[~mask_N].isnan().all()
        true_tHWC, predicted_tHWC = one.pictures(subject.grid)
        assert true_tHWC.shape == predicted_tHWC.shape
        side = true_tHWC.shape[1] // subject.grid.h
        is_masked_tHW = subject.mask_thw().repeat(side, 1).repeat(side, 2)
        assert (predicted_tHWC[~is_masked_tHW] == 255).all()
    assert f"{one.loss:.3f}" in names[-1]


def test_a_model_without_pixels_has_no_reconstruction(pan_store: Store) -> None:
    for target, expected in (
        ("pixels", {"reconstruction"}),
        ("rgb", {"reconstruction"}),
        ("hog", {"targets"}),
        ("pixels+hog", {"reconstruction", "targets"}),
    ):
        config = ALL.replace(target=target)
        model = VideoMAE(pretrain_shape(config))
        drawn = pictures(Subject.of(pan_store["train/right/0.mp4"], config), model)
        assert drawn.keys() == {"masks", "saliency", "attention"} | expected


def test_a_run_of_several_targets_is_drawn_and_reported(pan_store: Store, tmp_path: Path) -> None:
    config = ALL.replace(
        target="hog+difference:0.5", batch_size=4, epochs=2, warmup_epochs=0, log_every_steps=1, num_workers=0,
        device="cpu", motion_decoder_depth=1,
    )  # fmt: skip
    pretrain(pan_store.address, tmp_path / "run", config)
    written = visualize(pan_store.address, tmp_path / "run")
    assert {"loss", "masks", "targets"} <= written.keys()
    assert written["targets"].stat().st_size > 1000
    loss, _ = loss_figure(tmp_path / "run").axes
    assert [line.get_label() for line in loss.lines][1:] == ["hog", "difference"]
    rows = RunFolder(tmp_path / "run").read_metrics()
    drawn = np.asarray(loss.lines[2].get_ydata()).tolist()
    assert drawn == [row["loss_difference"] for row in rows]
    record = RunRecord.of(tmp_path / "run", "run")
    assert math.isnan(record.blind_guess)
    (section,) = training_sections([record])
    assert "Loss of the target hog" in str(section)

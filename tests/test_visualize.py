"""The paper's figures of one clip: the rows they must have, and that each shows what it says."""

from pathlib import Path

import numpy as np
import pytest

from mgm_shared.boxes import Boxes
from mgm_shared.figures import panels
from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.figures.loss_curve import loss_figure
from mgm_train.figures.paper_figures import (
    FULL_ATTENTION,
    Subject,
    attention_picture,
    mask_picture,
    reconstruction_picture,
    saliency_picture,
)
from mgm_train.masking.strategies import STRATEGIES, num_masked
from mgm_train.model_config import model_config
from mgm_train.models.videomae import VideoMAE, build

CONFIG = PretrainConfig(model="vit_tiny", num_frames=4, image_px=64, stride=2)


@pytest.fixture(scope="module")
def model() -> VideoMAE:
    shape = model_config("vit_tiny", num_frames=4, image_px=64)
    return build(lambda: VideoMAE(shape), seed=0)


@pytest.fixture(scope="module")
def subject(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    video = pan_store["train/right/0.mp4"]
    # The clip is of frames 8, 10, 12 and 14, their middle 128 of 160 columns, at half size.
    boxes = Boxes(
        file=tmp_path_factory.mktemp("mot"), frame_K=np.array([0, 10]), box_K4=np.array([[0] * 4, [48, 32, 64, 16]])
    )
    return Subject.of(video, CONFIG, boxes)


def test_boxes_move_with_the_crop(subject: Subject) -> None:
    assert [len(boxes) for boxes in subject.boxes_T] == [0, 1, 0, 0]
    ((box,),) = [boxes for boxes in subject.boxes_T if boxes]
    assert (box.x, box.y, box.width, box.height) == (16, 16, 32, 8)


def test_the_mask_is_the_same_in_every_picture(subject: Subject) -> None:
    first_thw, again_thw = subject.mask_thw(), subject.mask_thw("mgm")
    np.testing.assert_array_equal(first_thw, again_thw)
    for strategy in STRATEGIES:
        assert subject.mask_thw(strategy).sum() == num_masked(subject.grid, 0.75)


def test_every_strategy_has_a_row(subject: Subject) -> None:
    picture = mask_picture(subject)
    names = [" ".join(row.name.split()) for row in picture.rows]
    assert names[0].startswith("vectors")
    assert names[1:] == [
        "MGM (this run)",
        "MGM, sparse",
        "SMM",
        "SMM, sparse",
        "random tube (VideoMAE)",
        "motion bins (TrackMAE)",
        "random (ST-MAE)",
        "random block",
    ]
    figure = picture.strip()
    assert [row.is_marked for row in picture.rows] == [False, True] + [False] * 7
    # The numbers are those of the stored video; after the two frames comes the legend.
    assert [axis.get_title() for axis in figure.axes[:2]] == ["frame 8", "frame 12"]
    shown_HWC = np.asarray(figure.axes[4].images[0].get_array())
    is_masked_HW = subject.mask_thw()[1].repeat(16, 0).repeat(16, 1)
    clip_HWC = subject.clip.frames_THWC[2]
    np.testing.assert_array_equal(shown_HWC[~is_masked_HW], clip_HWC[~is_masked_HW])
    assert (shown_HWC[is_masked_HW] != clip_HWC[is_masked_HW]).mean() > 0.9


def test_saliency_has_boxes_mask_vectors_and_attention(subject: Subject, model: VideoMAE) -> None:
    picture = saliency_picture(subject, model)
    names = [" ".join(row.name.split()) for row in picture.rows]
    assert [name.split()[0] for name in names] == ["boxes", "masked", "vectors", "vectors", "attention"]
    panels = np.array(picture.strip().axes[: 5 * 3]).reshape(5, 3)
    # The ring is on the centre frame, the box on the second frame of the first slice, which is not shown.
    assert [len(axis.lines) for axis in panels[0]] == [0, 2, 0]
    assert panels[0, 1].lines[0].get_xydata().tolist() == [[2.5 * 16 - 0.5, 2.5 * 16 - 0.5]]


def test_guidance_that_is_not_the_vectors_has_its_own_row(pan_store: Store) -> None:
    subject = Subject.of(pan_store["train/right/0.mp4"], PretrainConfig(**vars(CONFIG) | {"guidance": "clean"}))
    assert mask_picture(subject).rows[1].name == "guidance\n(clean)"


def test_attention_is_shown_at_two_depths(subject: Subject, model: VideoMAE) -> None:
    assert [row.name for row in attention_picture(subject, model).rows] == ["clip", "block 3\nof 6", "block 6\nof 6"]


def test_rows_with_ground_truth_say_so(subject: Subject, model: VideoMAE) -> None:
    picture = reconstruction_picture(subject, model)
    has_truth = ["GROUND TRUTH" in row.name for row in picture.rows]
    assert has_truth == [False, False, False, False, True, True]
    assert "a blind guess: 1" in picture.caption


def test_attention_that_is_nearly_even_looks_even(subject: Subject, model: VideoMAE) -> None:
    """An untrained model attends to all tokens nearly alike: the map is far from the ends of the scale, and flat."""
    for row in attention_picture(subject, model).rows[1:]:
        _, axes = panels(1, 1, (64, 64))
        row.draw(axes[0, 0], 0)
        shares = np.asarray(axes[0, 0].images[-1].get_array())
        np.testing.assert_allclose(shares, 1 / FULL_ATTENTION, atol=0.1)
        assert axes[0, 0].images[-1].get_clim() == (0, 1)
        assert row.scale == "full colour: 5 × even\nspread"


def test_the_loss_has_a_title_and_the_line_of_a_blind_guess(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mgm-run")
    run.root.mkdir()
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 1.2 - 0.1 * step, "lr": 1e-3})
    loss, _ = loss_figure(run.root).axes
    assert loss.get_title() == "mgm-run: loss of pretraining"
    curve, guess = loss.lines
    assert np.asarray(curve.get_ydata()).tolist() == pytest.approx([1.1, 1.0, 0.9])
    assert np.asarray(guess.get_ydata()).tolist() == [1, 1]
    assert [text.get_text() for text in loss.texts] == ["a blind guess"]


def test_left_out_tokens_are_grey_and_said(pan_store: Store) -> None:
    config = CONFIG.replace(decode_ratio=0.5, drop=0.25, decoder="cross")
    subject = Subject.of(pan_store["train/right/0.mp4"], config)
    model = build(lambda: VideoMAE(config.shape), seed=0)
    # Of 32 tokens 24 are masked: 8 of them are dropped, and 8 of the others are not decoded.
    mask_thw = subject.mask_thw()
    assert [(mask_thw == role).sum() for role in (-1, 0, 1)] == [16, 8, 8]
    assert mask_picture(subject).caption.endswith(
        "75% of the tubelets are masked (in fog); 50% are not predicted (grey)"
    )
    for picture in (mask_picture(subject), reconstruction_picture(subject, model)):
        assert picture.strip().axes
    (own,) = [row for row in mask_picture(subject).rows if row.is_marked]
    _, axes = panels(1, 1, (1, 1), width_inches=1)
    own.draw(axes.flat[0], 0)
    shown_HWC = np.asarray(axes.flat[0].images[0].get_array())
    left_out_HW = (mask_thw[0] == -1).repeat(16, 0).repeat(16, 1)
    assert len(np.unique(shown_HWC[left_out_HW], axis=0)) == 1
    assert len(np.unique(shown_HWC[~left_out_HW], axis=0)) > 10

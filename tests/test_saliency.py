"""Motion inside boxes over motion outside: against loops, on clips whose moving part is known, and its interval."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import texture, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.store_tools.saliency import _draws, _measures, _tally, labelled_videos, measure_saliency
from mgm_shared.boxes import read_boxes
from mgm_shared.errors import UserError
from mgm_shared.store import Store, open_store

SIDE, SPEED, NUM_FRAMES = 48, 3, 50


def left(t: Any) -> Any:
    """Where the square's first column is at frame t, counted from 0."""
    return 8 + SPEED * t


@pytest.fixture(scope="module")
def square_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A textured square that crosses a still, textured ground, and a video in which nothing moves; 96×240 px."""
    folder, ground_HWC, square_HWC = tmp_path_factory.mktemp("square"), texture(96, 240, 1), texture(SIDE, SIDE, 2)

    def frames() -> Iterator[Any]:
        for t in range(NUM_FRAMES):
            frame_HWC = ground_HWC.copy()
            frame_HWC[24 : 24 + SIDE, left(t) : left(t) + SIDE] = square_HWC
            yield frame_HWC

    write_video(folder / "square.mp4", frames())
    write_video(folder / "still.mp4", [ground_HWC] * 5)
    extract(folder, folder / "square.store", ExtractSettings())
    return open_store(folder / "square.store")


@pytest.fixture
def square_boxes(tmp_path: Path) -> Path:
    file = tmp_path / "square.txt"
    file.write_text("".join(f"{t + 1},1,{left(t) + 1},25,{SIDE},{SIDE},1\n" for t in range(NUM_FRAMES)))
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["saliency", *map(str, arguments)])


def test_the_square_moves_and_the_ground_does_not(square_store: Store, square_boxes: Path) -> None:
    result = run(square_store.path, "--boxes", square_boxes, "--video", "square", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    # The first frame has no vectors. A box touches 7×6 or, where it starts inside a cell, 7 columns of 12×30 cells.
    assert (found["videos"], found["frames"], found["bootstrap_over"]) == (
        1,
        NUM_FRAMES - 1,
        "2 stretches of one second",
    )
    assert found["speed_in_boxes_px"] == pytest.approx(SPEED, rel=0.2)
    assert found["ratio"] > 20
    assert found["ratio_interval"][0] > 1
    assert found["peak_in_box"] > 0.95
    assert found["box_area"] == pytest.approx(6 * 6.75 / 360, rel=0.05)


def test_boxes_beside_the_square_find_less_motion_than_there_is_outside(
    square_store: Store, square_boxes: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("".join(f"{t + 1},1,1,1,240,16,1\n" for t in range(NUM_FRAMES)))
    found = measure_saliency([(square_store["square.mp4"], read_boxes(elsewhere))])
    assert found.ratio_interval[1] is not None
    assert found.ratio_interval[1] < 0.5
    assert found.peak_in_box is not None
    assert found.peak_in_box < 0.1


def test_a_folder_of_files_measures_the_videos_that_have_one(
    square_store: Store, square_boxes: Path, tmp_path: Path
) -> None:
    labelled = labelled_videos(square_store, tmp_path, None)
    assert [video.video_id for video, _ in labelled] == ["square.mp4"]
    with pytest.raises(UserError, match="has no file for a video"):
        labelled_videos(square_store, Path(str(square_store.path)), None)


def test_a_folder_and_a_file_as_motchallenge_has_them(square_store: Store, square_boxes: Path, tmp_path: Path) -> None:
    """SEQUENCE/gt/gt.txt below a split's folder, beside the frames; nothing has to be renamed."""
    sequence = tmp_path / "MOT15/train/square"
    (sequence / "gt").mkdir(parents=True)
    (sequence / "img1").mkdir()
    square_boxes.rename(sequence / "gt/gt.txt")
    expected = read_boxes(sequence / "gt/gt.txt")
    for place, wanted in ((sequence.parent, None), (sequence, None), (sequence / "gt/gt.txt", None), (sequence, "squ"),
                          (sequence.parent, "square")):  # fmt: skip
        ((video, boxes),) = labelled_videos(square_store, place, wanted)
        assert (video.video_id, boxes.file) == ("square.mp4", sequence / "gt/gt.txt")
        assert np.array_equal(boxes.box_K4, expected.box_K4)
    assert run(square_store.path, "--boxes", sequence.parent).exit_code == 0
    (tmp_path / "gt").mkdir()
    (sequence / "gt/gt.txt").rename(tmp_path / "gt/gt.txt")
    with pytest.raises(UserError, match="has no video 'test_a_folder"):
        labelled_videos(square_store, tmp_path / "gt/gt.txt")


def test_what_cannot_be_measured_is_said_in_a_line(square_store: Store, square_boxes: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([square_store.path, "--boxes", square_boxes], "name the video with --video"),
        ([square_store.path, "--boxes", square_boxes, "--video", "still"], "has 5 frames"),
        ([square_store.path, "--boxes", square_boxes, "--video", "square", "--array", "flow"], "mgm-prep flow"),
        ([square_store.path, "--boxes", tmp_path / "none.txt", "--video", "still"], "cannot be read: No such file"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr
    (tmp_path / "first.txt").write_text("1,1,1,1,50,50,1\n")
    with pytest.raises(UserError, match="nothing to measure"):
        measure_saliency(labelled_videos(square_store, tmp_path / "first.txt", "square"))


def test_where_nothing_moves_outside_there_is_no_ratio(square_store: Store, tmp_path: Path) -> None:
    (tmp_path / "still.txt").write_text("".join(f"{t},1,1,1,50,50,1\n" for t in range(1, 6)))
    found = json.loads(run(square_store.path, "--boxes", tmp_path / "still.txt", "--video", "still", "--json").stdout)
    assert (found["speed_in_boxes_px"], found["speed_outside_px"], found["ratio"]) == (0, 0, None)
    # All cells are equally strong, so the peak is in the box as often as the box is large.
    assert found["peak_in_box"] == found["box_area"] == pytest.approx(7 * 7 / 360, abs=1e-4)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.1, 1.0]))
def test_a_tally_equals_loops_over_the_cells(seed: int, share_missing: float, share_boxed: float) -> None:
    rng = np.random.default_rng(seed)
    speed_TYX = rng.integers(0, 4, (5, 3, 4)).astype(np.float32)
    speed_TYX[rng.random(speed_TYX.shape) < share_missing] = np.nan
    is_inside_TYX = rng.random(speed_TYX.shape) < share_boxed
    tally = _tally(speed_TYX, is_inside_TYX)
    inside, outside, hits, shares, without = [], [], [], [], []
    for speed_YX, is_inside_YX in zip(speed_TYX, is_inside_TYX, strict=True):
        cells = [(v, b) for v, b in zip(speed_YX.ravel(), is_inside_YX.ravel(), strict=True) if v == v]
        if cells and is_inside_YX.any():
            inside += [v for v, b in cells if b]
            outside += [v for v, b in cells if not b]
            best = [b for v, b in cells if v == max(v for v, _ in cells)]
            hits.append(sum(best) / len(best))
            shares.append(is_inside_YX.mean())
            without += [b for v, b in zip(speed_YX.ravel(), is_inside_YX.ravel(), strict=True) if v != v]
    assert (tally.inside, tally.num_inside) == (sum(inside), len(inside))
    assert (tally.outside, tally.num_outside) == (sum(outside), len(outside))
    assert tally.num_frames == len(hits)
    assert (tally.num_cells, tally.num_intra, tally.num_intra_in_box) == (12 * len(hits), len(without), sum(without))
    assert tally.peaks_in_box == pytest.approx(sum(hits))
    assert tally.box_area == pytest.approx(sum(shares))


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    num_held = 0
    for _ in range(300):
        sums_UK = np.column_stack([rng.gamma(2, 1, 40), rng.integers(5, 15, 40), rng.gamma(2, 0.5, 40),
                                   rng.integers(5, 15, 40), np.ones((40, 6))])  # fmt: skip
        low, high = np.percentile(_measures(_draws(40, rng).astype(float) @ sums_UK)["ratio"], (2.5, 97.5))
        num_held += low < 2 < high
    assert 0.9 < num_held / 300 < 0.99


def test_many_videos_are_drawn_as_videos(square_store: Store, square_boxes: Path) -> None:
    boxes = read_boxes(square_boxes)
    found = measure_saliency([(square_store["square.mp4"], boxes)] * 20)
    assert found.bootstrap_over == "20 videos"
    # Twenty times the same video leave nothing to chance.
    assert found.ratio_interval == (found.ratio, found.ratio)

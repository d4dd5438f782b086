"""Action detection from end to end: a detector learns boxes that move, and a test of it says so."""

import csv
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from moving_boxes import ACTIONS, Row, make_set, write_annotations, write_proposals
from recording import Recording
from toy import CPU, assert_same_run, losses_of, run_processes

from mgm_shared.errors import UserError
from mgm_shared.store import open_store
from mgm_train import (
    DetectConfig,
    EvaluateConfig,
    detect,
    evaluate,
    preview_detect,
    preview_evaluate,
    report,
    visualize,
)
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import load_weights
from mgm_train.data.clips import collate
from mgm_train.detection.scoring import DetectionScores
from mgm_train.detection.test_set import detector
from mgm_train.tasks.detect import detect_job
from mgm_train.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """Two videos with three key frames of two boxes each."""
    folder = tmp_path_factory.mktemp("boxes")
    return folder, make_set(folder, [(1, 5), (2, 6)], [0.8, 1, 1.2])


def options(folder: Path, **changes: Any) -> DetectConfig:
    settings: dict[str, Any] = {
        "model": "vit_tiny",
        "num_frames": 4,
        "image_px": 32,
        "stride": 2,
        "batch_size": 2,
        "epochs": 2,
        "warmup_epochs": 0,
        "base_lr": 0.1,
        "flip": False,
        "num_workers": 0,
        "device": "cpu",
        "log_every_steps": 1,
        "annotations": str(folder / "annotations"),
        "proposals": str(folder / "proposals.csv"),
    }
    return DetectConfig(**(settings | changes))


@pytest.mark.slow
def test_a_detector_learns_fifty_key_frames_by_heart(tmp_path: Path) -> None:
    """Two minutes on one thread. What moves how shows in the motion of a box alone: textures differ in every box."""
    actions = list(ACTIONS)
    pairs = [(actions[k % 4], actions[(k + 1 + k // 4) % 4]) for k in range(10)]
    make_set(tmp_path, pairs, [0.8, 1, 1.2, 1.4, 1.6])
    config = options(
        tmp_path, num_frames=8, image_px=64, crop_scale=1.0, batch_size=10, epochs=60, warmup_epochs=5, base_lr=2e-2,
        layer_decay=1.0, drop_path=0.0, box_jitter=False, colour_jitter=False, eval_every_epochs=30,
    )  # fmt: skip
    heard = Recording()
    detect(tmp_path / "boxes.store", tmp_path / "run", config, progress=heard)
    print("\n".join(heard.lines))
    rows = [row for row in RunFolder(tmp_path / "run").read_metrics() if "val_mean_ap" in row]
    assert rows[-1]["val_labelled_boxes_mean_ap"] > 0.95
    assert rows[-1]["val_mean_ap"] > 0.95


def test_it_trains_tests_and_reports(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    heard = Recording()
    result = detect(folder / "boxes.store", tmp_path / "run", options(folder), progress=heard)
    assert (result.is_complete, result.num_steps, result.num_epochs) == (True, 6, 2)
    said = "\n".join(heard.lines)
    assert f"proposals: {folder / 'proposals.csv'} (sha256 " in said
    assert "): 12 of 12 boxes have a score of at least 0.8, in 6 key frames" in said
    assert "train: 6 of 6 labelled key frames, with 12 boxes" in said
    assert " M weights · 6 key frames · 6 steps of 2 clips" in said
    assert "val: 6 key frames with 12 labelled boxes and 12 proposals; 0 key frames are excluded" in said
    (row,) = [row for row in RunFolder(tmp_path / "run").read_metrics() if "val_mean_ap" in row]
    tested = evaluate(folder / "boxes.store", tmp_path / "run", EvaluateConfig(num_workers=0, device="cpu"))
    assert tested is not None
    scores = tested.scores
    assert isinstance(scores, DetectionScores)
    assert scores.mean_ap == row["val_mean_ap"]
    assert scores.labelled_boxes_mean_ap == row["val_labelled_boxes_mean_ap"]
    assert (scores.scored, scores.listed, scores.num_proposals, scores.num_labelled_boxes) == (6, 6, 12, 12)
    assert set(scores.average_precision) == {"stand", "go left", "go right", "come"}, "'fly' has no box"
    mean = np.mean([precision for precision, _ in scores.average_precision.values()])
    assert scores.mean_ap == pytest.approx(mean)
    with tested.files["detections"].open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert len(rows) == 12 * 6
    name, time, *box, action, score = rows[0]
    assert (name, time, action) == ("clip0", "0000.800", "1")
    # The score is the probability times the confidence of the person, which is 0.95.
    assert all(0 <= float(side) <= 1 for side in box)
    assert 0 < float(score) < 0.95
    with tested.files["classes"].open(newline="") as opened:
        assert [row["class"] for row in csv.DictReader(opened)] == list(scores.average_precision)


def test_the_test_does_not_depend_on_batches(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    """Key frames of several sizes, too: each is padded for itself alone."""
    folder, _ = boxes
    detect(folder / "boxes.store", tmp_path / "run", options(folder, epochs=1))
    texts = []
    for batch_size in (1, 4):
        config = EvaluateConfig(num_workers=0, device="cpu", batch_size=batch_size)
        tested = evaluate(folder / "boxes.store", tmp_path / "run", config, out=tmp_path / f"out{batch_size}")
        assert tested is not None
        with tested.files["detections"].open(newline="") as opened:
            texts.append(np.array([float(row[-1]) for row in csv.reader(opened)]))
    np.testing.assert_allclose(texts[0], texts[1], atol=2e-5)


def test_weights_say_how_they_are_tested_and_options_say_otherwise(
    boxes: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    folder, rows = boxes
    detect(folder / "boxes.store", tmp_path / "run", options(folder, epochs=1, proposals="", eval_every_epochs=0))
    heard = Recording()
    config = EvaluateConfig(num_workers=0, device="cpu")
    tested = evaluate(folder / "boxes.store", tmp_path / "run", config, progress=heard)
    assert tested is not None
    assert isinstance(tested.scores, DetectionScores)
    assert tested.scores.mean_ap is None
    assert "stride is 2, as in the training" in heard.lines
    assert "no proposals were given: only the labelled boxes are tested" in heard.lines
    write_proposals(tmp_path / "one.pkl", rows[:1])
    config = config.replace(proposals=str(tmp_path / "one.pkl"), min_person_score=0.5)
    tested = evaluate(folder / "boxes.store", tmp_path / "run", config)
    assert tested is not None
    assert isinstance(tested.scores, DetectionScores)
    assert tested.scores.mean_ap is not None
    assert tested.scores.mean_ap <= 0.25, "eleven of twelve boxes are missed"
    assert (tested.scores.num_proposals, tested.scores.without_proposals) == (1, 5)


def test_excluded_key_frames_count_nowhere(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, rows = boxes
    write_annotations(tmp_path / "ann", rows, excluded="clip0,0001\n")
    config = options(folder, epochs=1, annotations=str(tmp_path / "ann"))
    detect(folder / "boxes.store", tmp_path / "run", config)
    tested = evaluate(folder / "boxes.store", tmp_path / "run", EvaluateConfig(num_workers=0, device="cpu"))
    assert tested is not None
    assert isinstance(tested.scores, DetectionScores)
    assert (tested.scores.excluded, tested.scores.listed, tested.scores.num_labelled_boxes) == (1, 5, 10)
    assert "clip0,0001," not in tested.files["detections"].read_text()


def test_videos_that_the_store_lacks_are_said_and_their_labels_are_missed(
    boxes: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    folder, rows = boxes
    absent: list[Row] = [("absent", time_s, box, action) for _, time_s, box, action in rows]
    write_annotations(tmp_path / "ann", [*rows, *absent])
    heard = Recording()
    config = options(folder, epochs=1, annotations=str(tmp_path / "ann"))
    detect(folder / "boxes.store", tmp_path / "run", config, progress=heard)
    assert "train: 6 of 9 labelled key frames, with 12 boxes" in heard.lines
    assert any("lacks 1 of 3 videos of split 'train': absent" in line for line in heard.lines)
    tested = evaluate(folder / "boxes.store", tmp_path / "run", EvaluateConfig(num_workers=0, device="cpu"))
    assert tested is not None
    assert isinstance(tested.scores, DetectionScores)
    assert (tested.scores.scored, tested.scores.listed) == (6, 9)
    assert tested.scores.unreadable == {"absent": "not in the store, so 3 key frames are not scored"}
    assert tested.scores.labelled_boxes_mean_ap <= 0.5 + 1e-9, "half of the labels cannot be found"


def test_a_damaged_video_is_left_out_and_named(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    shutil.copytree(folder / "boxes.store", tmp_path / "damaged.store")
    video = open_store(tmp_path / "damaged.store")["clip1.mp4"]
    for index in range(video.num_frames):
        place = video.frames.array._place(video.record["start"] + index)
        content = bytearray(Path(str(place.path)).read_bytes())
        content[place.offset + 40] ^= 255
        Path(str(place.path)).write_bytes(content)
    with pytest.raises(UserError, match=r"1 videos cannot be read, 0 may be .*'clip1.mp4'"):
        detect(tmp_path / "damaged.store", tmp_path / "strict", options(folder))
    config = options(folder, max_unreadable_videos=1)
    detect(tmp_path / "damaged.store", tmp_path / "run", config)
    assert all(np.isfinite(losses_of(tmp_path / "run")))
    tested = evaluate(tmp_path / "damaged.store", tmp_path / "run", EvaluateConfig(num_workers=0, device="cpu"))
    assert tested is not None
    assert isinstance(tested.scores, DetectionScores)
    assert (tested.scores.scored, tested.scores.listed) == (3, 6)
    assert list(tested.scores.unreadable) == ["clip1,0000.800", "clip1,0001", "clip1,0001.200"]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    config = options(folder, epochs=3, drop_path=0.2, eval_every_epochs=0)

    class Stopped(Exception):
        pass

    def stop(epoch: int, model: torch.nn.Module) -> dict[str, float]:
        if epoch == 2:
            raise Stopped
        return {}

    for run, on_epoch_end in (("whole", None), ("stopped", stop), ("stopped", None)):
        job, _ = detect_job(folder / "boxes.store", tmp_path / run, config, Recording())
        changed = job.__class__(**{**vars(job), "on_epoch_end": on_epoch_end, "max_saving_share": np.inf})
        if on_epoch_end is None:
            train(changed, CPU)
        else:
            with pytest.raises(Stopped):
                train(changed, CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def run_detect(folder: Path, run: Path, changes: dict[str, Any]) -> None:
    detect(folder / "boxes.store", run, options(folder, **changes))


def test_two_processes_learn_and_test_what_one_does(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    """One of the clips of a step has more boxes than the other, and each process reads one."""
    folder, rows = boxes
    write_annotations(tmp_path / "ann", [row for row in rows if row[0] == "clip0" or row[3] == 2])
    changes = {"annotations": str(tmp_path / "ann"), "drop_path": 0.0}
    run_detect(folder, tmp_path / "one", changes)
    assert run_processes(2, run_detect, folder, tmp_path / "two", changes) == [0, 0]
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
    one, two = (load_weights(tmp_path / run) for run in ("one", "two"))
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, atol=1e-4, rtol=1e-3)
    tested = [RunFolder(tmp_path / run).read_metrics() for run in ("one", "two")]
    found = [[row["val_scored"] for row in rows if "val_scored" in row] for rows in tested]
    assert found == [[6], [6]]


def test_repeats_are_other_crops_of_the_same_frames(boxes: tuple[Path, list[Row]]) -> None:
    folder, _ = boxes
    job, _ = detect_job(
        folder / "boxes.store",
        folder / "unused",
        options(folder, repeats=2, flip=True, eval_every_epochs=0),
        Recording(),
    )
    samples = job.dataset[0, 1]
    assert len(samples) == 2
    assert not torch.equal(samples[0]["frames_CTHW"], samples[1]["frames_CTHW"])
    batch = collate([job.dataset[0, 1], job.dataset[0, 4]])
    assert batch["frames_BCTHW"].shape == (4, 3, 4, 32, 32)
    assert batch["box_R5"][:, 0].unique().tolist() == [0, 1, 2, 3]
    assert len(batch["box_R5"]) == len(batch["target_RK"])
    again = collate([job.dataset[0, 1], job.dataset[0, 4]])
    assert torch.equal(batch["box_R5"], again["box_R5"]), "a sample depends on its key alone"


def test_a_preview_counts_key_frames(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    preview = preview_detect(folder / "boxes.store", tmp_path / "run", options(folder))
    assert (preview.task, preview.videos, preview.steps) == ("detect", 6, 6)
    assert not (tmp_path / "run").exists()
    detect(folder / "boxes.store", tmp_path / "run", options(folder, epochs=1, eval_every_epochs=0))
    tested = preview_evaluate(folder / "boxes.store", tmp_path / "run", EvaluateConfig(num_workers=0))
    assert (tested.videos, tested.stride, tested.sampling) == (6, 2, "key frames")
    with pytest.raises(UserError, match="there are 6 key frames to train on, but batch-size is 7"):
        preview_detect(folder / "boxes.store", tmp_path / "run", options(folder, batch_size=7))


def test_the_log_counts_the_boxes_that_crops_leave_out(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    """Against the boxes of the samples of the first epoch."""
    folder, _ = boxes
    heard, config = Recording(), options(folder, crop_scale=0.5, eval_every_epochs=0)
    job, _ = detect_job(folder / "boxes.store", tmp_path / "run", config, heard)
    num_kept = sum(len(job.dataset[0, index][0]["box_R4"]) for index in range(6))
    assert 6 <= num_kept < 12
    assert f"crops leave out {12 - num_kept} of 12 boxes of 6 key frames, drawn anew in each epoch" in heard.lines


def test_a_sharded_detector_learns_what_a_whole_one_does(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    changes = {"eval_every_epochs": 0, "drop_path": 0.0}
    run_detect(folder, tmp_path / "one", changes)
    assert run_processes(2, run_detect, folder, tmp_path / "two", {**changes, "fsdp": True}) == [0, 0]
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)


def test_what_is_missing_is_said(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, rows = boxes
    store = folder / "boxes.store"
    with pytest.raises(UserError, match="with --annotations"):
        detect(store, tmp_path / "run", options(folder, annotations=""))
    with pytest.raises(UserError, match=r"absent.csv does not exist"):
        detect(store, tmp_path / "run", options(folder, proposals=str(folder / "absent.csv")))
    write_annotations(tmp_path / "ann", [("other", *row[1:]) for row in rows])
    with pytest.raises(UserError, match="has none of the 1 videos"):
        detect(store, tmp_path / "run", options(folder, annotations=str(tmp_path / "ann")))
    with pytest.raises(UserError, match="eval-every-epochs is 10 but must be 0 with fsdp"):
        options(folder, fsdp=True)
    detect(store, tmp_path / "run", options(folder, epochs=1))
    write_annotations(tmp_path / "ann", rows[:-1])
    with pytest.raises(UserError, match="annotations: the content of"):
        detect(store, tmp_path / "run", options(folder, epochs=1, annotations=str(tmp_path / "ann")))
    lists = tmp_path / "ann" / "toy_action_list_v1.0.pbtxt"
    lists.write_text(lists.read_text().replace("look", "see"))
    config = EvaluateConfig(annotations=str(tmp_path / "ann"), num_workers=0)
    with pytest.raises(UserError, match="other classes than the training had"):
        evaluate(store, tmp_path / "run", config)


def test_a_warning_for_classes_that_a_mirror_exchanges(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    heard = Recording()
    preview_detect(folder / "boxes.store", tmp_path / "run", options(folder, flip=True), progress=heard)
    assert any("use --no-flip" in line for line in heard.lines)


def test_the_weights_build_the_same_model(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    detect(folder / "boxes.store", tmp_path / "run", options(folder, epochs=1, eval_every_epochs=0))
    weights = load_weights(tmp_path / "run")
    assert detector(weights).state_dict().keys() == weights.state.keys()
    assert weights.metadata["mgm_task"] == "detect"


def test_key_frames_are_drawn(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    detect(folder / "boxes.store", tmp_path / "run", options(folder, epochs=1, eval_every_epochs=0))
    files = visualize(folder / "boxes.store", tmp_path / "run")
    assert list(files) == ["loss", "detections"]
    picture_HWC = cv2.imread(str(files["detections"]))
    assert picture_HWC is not None
    assert picture_HWC.shape[1] > 1000
    files = visualize(folder / "boxes.store", tmp_path / "run", video="clip1.mp4", out=tmp_path / "one")
    assert files["detections"].is_file()
    with pytest.raises(UserError, match="no key frame of clip9"):
        visualize(folder / "boxes.store", tmp_path / "run", video="clip9", out=tmp_path / "none")


def test_a_report_shows_the_mean_and_each_class(boxes: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = boxes
    for run, proposals in (("both", str(folder / "proposals.csv")), ("labelled", "")):
        detect(folder / "boxes.store", tmp_path / run, options(folder, epochs=1, proposals=proposals))
    report([tmp_path / "both", tmp_path / "labelled"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Frame mAP while training" in page
    assert "both, val labelled boxes" in page
    assert "labelled, val labelled boxes" in page
    with (tmp_path / "both" / "classes-val.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 4
    for row in rows:
        assert f"{float(row['average_precision']):.1%}" in page

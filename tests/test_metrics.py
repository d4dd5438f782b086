"""Scores, confusions and reports of predictions worked out by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mgm_shared.errors import UserError
from mgm_train.evaluation.metrics import Prediction, confusion, score, write_reports

CLASSES = ["dive", "golf", "kick, ball", "walk"]


def _prediction(video_id: str, label: int, *probability_K: float) -> Prediction:
    return Prediction(sample_id=video_id, label=label, probability_K=np.array(probability_K, np.float32))


PREDICTIONS = [
    _prediction("a", 0, 0.7, 0.2, 0.1, 0.0),
    _prediction("b", 0, 0.1, 0.2, 0.6, 0.1),
    _prediction("c", 0, 0.2, 0.1, 0.5, 0.2),
    _prediction("d", 0, 0.9, 0.1, 0.0, 0.0),
    _prediction("e", 2, 0.4, 0.2, 0.4, 0.0),
    _prediction("f", 3, 0.1, 0.1, 0.1, 0.7),
]


def test_scores() -> None:
    scores = score(PREDICTIONS, {"x": "gone"})
    assert scores.top1 == pytest.approx(3 / 6), "e is a tie, which counts against the model"
    assert scores.top5 == 1
    assert scores.mean_class_accuracy == pytest.approx((2 / 4 + 0 + 1) / 3), "golf has no video"
    assert (scores.scored, scores.listed, scores.unreadable) == (6, 7, {"x": "gone"})
    with pytest.raises(UserError, match="none of the 1 listed videos"):
        score([], {"x": "gone"})


def test_top5_counts_the_five_likeliest() -> None:
    spread = [_prediction("a", label, 0.4, 0.2, 0.15, 0.1, 0.08, 0.07) for label in range(6)]
    assert score(spread, {}).top5 == pytest.approx(5 / 6)


def test_confusion_has_a_row_a_class_and_a_column_a_guess() -> None:
    expected_KK = [[2, 0, 2, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert confusion(PREDICTIONS, 4).tolist() == expected_KK


def test_reports(tmp_path: Path) -> None:
    files = write_reports(tmp_path, "val", PREDICTIONS, {"x": "checksum is wrong"}, CLASSES)
    assert {name: file.name for name, file in files.items()} == {
        "predictions": "predictions-val.csv",
        "classes": "classes-val.csv",
        "confusion": "confusion-val.csv",
    }
    rows = {name: list(csv.DictReader(file.read_text().splitlines())) for name, file in files.items()}
    assert [row["video_id"] for row in rows["predictions"]] == ["a", "b", "c", "d", "e", "f", "x"]
    assert rows["predictions"][1]["predicted"] == "kick, ball"
    assert float(rows["predictions"][1]["p(kick, ball)"]) == pytest.approx(0.6)
    assert rows["predictions"][6] == dict.fromkeys(rows["predictions"][6], "") | {
        "video_id": "x",
        "unreadable": "checksum is wrong",
    }
    dive, golf, *_ = rows["classes"]
    assert dive == {
        "class": "dive",
        "scored": "4",
        "right": "2",
        "accuracy": "0.5000",
        "taken_for": "kick, ball",
        "times": "2",
    }
    assert golf == {"class": "golf", "scored": "0", "right": "0", "accuracy": "", "taken_for": "", "times": "0"}
    assert rows["confusion"][0] == {"class": "dive", "dive": "2", "golf": "0", "kick, ball": "2", "walk": "0"}

"""Metrics of a test: accuracy, accuracy per class, the confusion matrix, and the CSV files with them.

Axes: B scored videos · K classes.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.files import replace_file


def diverged(sample_id: str) -> UserError:
    """The error to raise for a model whose output for a video is NaN or infinite."""
    return UserError(
        f"the model's output for video {sample_id!r} is not finite, so nothing is scored: its training diverged; train "
        "again with a lower base-lr, or with clip-grad 1"
    )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one sample: the mean softmax over its views, (K,). UserError if a value is not finite."""

    sample_id: str
    label: int
    probability_K: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not np.isfinite(self.probability_K).all():
            raise diverged(self.sample_id)

    @property
    def guess(self) -> int:
        """The most probable class; of equally probable ones, the first."""
        return int(self.probability_K.argmax())


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result of a test. Accuracies are fractions of the scored videos."""

    top1: float
    top5: float
    mean_class_accuracy: float
    """Mean over the classes with a scored video."""
    scored: int
    listed: int
    unreadable: dict[str, str] = field(default_factory=dict)
    """sample_id → reason why the sample could not be scored."""


def rank_of_label(predictions: Sequence[Prediction]) -> NDArray[np.int64]:
    """Number of classes that are at least as probable as the true one, (B,): 1 is a hit, and a tie is a miss."""
    label_B = np.array([prediction.label for prediction in predictions])
    probability_BK = np.stack([prediction.probability_K for prediction in predictions])
    true_B1 = np.take_along_axis(probability_BK, label_B[:, None], axis=1)
    # Not `>=`: with NaN, that would give rank 0, better than a hit.
    return np.asarray((~(probability_BK < true_B1)).sum(axis=1))


def score(predictions: Sequence[Prediction], unreadable: Mapping[str, str]) -> Scores:
    """Compute the accuracies of the predictions. UserError if there are none."""
    if not predictions:
        raise UserError(f"none of the {len(unreadable)} listed videos can be read; run `mgm-prep verify`")
    rank_B = rank_of_label(predictions)
    return Scores(
        top1=float((rank_B <= 1).mean()),
        top5=float((rank_B <= 5).mean()),
        mean_class_accuracy=float(np.mean([right / videos for right, videos in by_class(predictions).values()])),
        scored=len(predictions),
        listed=len(predictions) + len(unreadable),
        unreadable=dict(unreadable),
    )


def by_class(predictions: Sequence[Prediction]) -> dict[int, tuple[int, int]]:
    """Class → (number of hits, number of scored videos), ascending, for classes with a scored video."""
    label_B = np.array([prediction.label for prediction in predictions])
    is_right_B = rank_of_label(predictions) <= 1
    return {
        label: (int(is_right_B[label_B == label].sum()), int((label_B == label).sum()))
        for label in np.unique(label_B).tolist()
    }


def confusion(predictions: Sequence[Prediction], num_classes: int) -> NDArray[np.int64]:
    """Confusion matrix (K, K): number of videos of each true class (row) by predicted class (column)."""
    confusion_KK = np.zeros((num_classes, num_classes), np.int64)
    for prediction in predictions:
        confusion_KK[prediction.label, prediction.guess] += 1
    return confusion_KK


def write_reports(
    folder: Path,
    split: str,
    predictions: Sequence[Prediction],
    unreadable: Mapping[str, str],
    classes: Sequence[str],
    *,
    id_column: str = "video_id",
) -> dict[str, Path]:
    """Write the results of a test as CSV files, named after the split, into `folder`; return their paths by content.

    `id_column` is the name of the column with the ids of the samples: sample_id where they are segments.
    """
    confusion_KK = confusion(predictions, len(classes))
    tables = {
        "predictions": _prediction_rows(predictions, unreadable, classes, id_column),
        "classes": _class_rows(predictions, confusion_KK, classes),
        "confusion": [["class", *classes], *([name, *row] for name, row in zip(classes, confusion_KK, strict=True))],
    }
    paths = {name: folder / f"{name}-{split}.csv" for name in tables}
    for name, rows in tables.items():
        write_csv(paths[name], rows)
    return paths


def _prediction_rows(
    predictions: Sequence[Prediction], unreadable: Mapping[str, str], classes: Sequence[str], id_column: str
) -> list[list[object]]:
    """A row per listed sample: its true class, predicted class and probabilities, or why it is unreadable."""
    rows: list[list[object]] = [[id_column, "label", "predicted", "unreadable", *(f"p({name})" for name in classes)]]
    for prediction in predictions:
        shares = [f"{share:.5g}" for share in prediction.probability_K]
        rows.append([prediction.sample_id, classes[prediction.label], classes[prediction.guess], "", *shares])
    rows += [[sample_id, "", "", reason, *[""] * len(classes)] for sample_id, reason in unreadable.items()]
    return rows


def _class_rows(
    predictions: Sequence[Prediction], confusion_KK: NDArray[np.int64], classes: Sequence[str]
) -> list[list[object]]:
    """A row per class: scored videos, hits, accuracy, and the most frequent wrong prediction with its count."""
    rows: list[list[object]] = [["class", "scored", "right", "accuracy", "taken_for", "times"]]
    counts = by_class(predictions)
    for label, name in enumerate(classes):
        right, scored = counts.get(label, (0, 0))
        wrong_K = confusion_KK[label].copy()
        wrong_K[label] = 0
        other = int(wrong_K.argmax())
        mistake = [classes[other], int(wrong_K[other])] if wrong_K[other] else ["", 0]
        rows.append([name, scored, right, f"{right / scored:.4f}" if scored else "", *mistake])
    return rows


def write_csv(file: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as a CSV file; a killed program leaves no half of one."""

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows(rows)

    replace_file(file, write)

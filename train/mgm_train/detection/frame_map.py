"""Frame mAP at an overlap of 0.5, the metric of AVA and of the ActivityNet challenge.

A detection is right when the labelled box of its class that it overlaps most, of all those of its key frame, overlaps
it by at least half (intersection over union) and was not taken by a detection of a higher score. The average precision
of a class is the area under the envelope of its precision over recall (PASCAL VOC 2010), over all key frames together;
mAP is the mean over the classes that have a labelled box.

Axes: G labelled boxes · D detections · F key frames · K classes · 4 = left, top, right, bottom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_OVERLAP = 0.5


@dataclass(frozen=True, kw_only=True)
class LabelledBoxes:
    """The truth: `frame_G` names the key frame of a box by a number, `is_action_GK` has the classes of each."""

    frame_G: NDArray[np.int64]
    box_G4: NDArray[np.float64]
    is_action_GK: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class DetectedBoxes:
    """What was detected: a score for each class and box, NaN = the class is not detected there."""

    frame_D: NDArray[np.int64]
    box_D4: NDArray[np.float64]
    score_DK: NDArray[np.floating[Any]]


def overlaps(box_D4: NDArray[np.float64], box_G4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each pair of boxes, (D, G)."""
    low_DG2 = np.maximum(box_D4[:, None, :2], box_G4[None, :, :2])
    high_DG2 = np.minimum(box_D4[:, None, 2:], box_G4[None, :, 2:])
    shared_DG = np.prod((high_DG2 - low_DG2).clip(0), axis=2)
    area_D, area_G = (np.prod(box_X4[:, 2:] - box_X4[:, :2], axis=1) for box_X4 in (box_D4, box_G4))
    total_DG = area_D[:, None] + area_G[None] - shared_DG
    share_DG: NDArray[np.float64] = np.divide(shared_DG, total_DG, out=np.zeros_like(shared_DG), where=total_DG > 0)
    return share_DG


def average_precisions(labelled: LabelledBoxes, detected: DetectedBoxes, classes: Sequence[int]) -> dict[int, float]:
    """Class → average precision, for the classes (columns of the arrays) that have a labelled box.

    Detections without an area are left out. Those of equal score count in the order in which they are given.
    """
    has_area_D = (detected.box_D4[:, :2] < detected.box_D4[:, 2:]).all(1)
    kept_D = np.flatnonzero(has_area_D)
    # Sorted by key frame; a stable sort keeps the order inside one.
    kept_D = kept_D[np.argsort(detected.frame_D[kept_D], kind="stable")]
    order_G = np.argsort(labelled.frame_G, kind="stable")
    frame_D, box_D4, score_DK = detected.frame_D[kept_D], detected.box_D4[kept_D], detected.score_DK[kept_D]
    frame_G, box_G4, is_action_GK = labelled.frame_G[order_G], labelled.box_G4[order_G], labelled.is_action_GK[order_G]
    is_right_DK = np.zeros(score_DK.shape, np.bool_)
    for frame in np.intersect1d(frame_D, frame_G).tolist():
        in_D = slice(*np.searchsorted(frame_D, [frame, frame + 1]))
        in_G = slice(*np.searchsorted(frame_G, [frame, frame + 1]))
        overlap_DG = overlaps(box_D4[in_D], box_G4[in_G])
        for k in classes:
            column_D = is_right_DK[in_D, k]
            column_D[:] = _matches(overlap_DG[:, is_action_GK[in_G, k]], score_DK[in_D, k])
    numbers_K = is_action_GK.sum(0)
    return {k: _precision(score_DK[:, k], is_right_DK[:, k], int(numbers_K[k])) for k in classes if numbers_K[k]}


def mean_average_precision(precision_of: Mapping[int, float]) -> float:
    """mAP: the mean over the classes; 0 where there is none."""
    return float(np.mean(list(precision_of.values()))) if precision_of else 0.0


def _matches(overlap_DG: NDArray[np.float64], score_D: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which detections of one class in one key frame are right."""
    is_right_D = np.zeros(len(score_D), np.bool_)
    if not overlap_DG.shape[1]:
        return is_right_D
    is_taken_G = np.zeros(overlap_DG.shape[1], np.bool_)
    best_D = overlap_DG.argmax(1)
    for d in np.argsort(-score_D, kind="stable").tolist():
        best = best_D[d]
        if not np.isnan(score_D[d]) and overlap_DG[d, best] >= MIN_OVERLAP and not is_taken_G[best]:
            is_right_D[d] = is_taken_G[best] = True
    return is_right_D


def _precision(score_D: NDArray[np.floating[Any]], is_right_D: NDArray[np.bool_], num_labelled: int) -> float:
    """The area under the envelope of precision over recall."""
    is_detected_D = ~np.isnan(score_D)
    order_D = np.argsort(-score_D[is_detected_D], kind="stable")
    is_right_D = is_right_D[is_detected_D][order_D]
    precision_D = np.cumsum(is_right_D) / np.arange(1, len(is_right_D) + 1)
    # Recall rises by one labelled box at each right detection; the envelope is the best precision from there on.
    envelope_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    return float(envelope_D[is_right_D].sum() / num_labelled)

"""Frame mAP, against an example by hand and against a slow reading of the rule."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mgm_train.detection.frame_map import (
    DetectedBoxes,
    LabelledBoxes,
    average_precisions,
    mean_average_precision,
    overlaps,
)

# Two people that do not overlap, and one who stands half in front of the first.
LEFT, RIGHT, NEAR_LEFT = (0.0, 0.0, 0.4, 1.0), (0.6, 0.0, 1.0, 1.0), (0.1, 0.0, 0.5, 1.0)


def _labelled(rows: Sequence[tuple[int, tuple[float, ...], int]], num_classes: int = 3) -> LabelledBoxes:
    is_action_GK = np.zeros((len(rows), num_classes), np.bool_)
    is_action_GK[np.arange(len(rows)), [k for _, _, k in rows]] = True
    return LabelledBoxes(
        frame_G=np.array([frame for frame, _, _ in rows], np.int64),
        box_G4=np.array([box for _, box, _ in rows], np.float64).reshape(-1, 4),
        is_action_GK=is_action_GK,
    )


def _detected(rows: Sequence[tuple[int, tuple[float, ...], int, float]], num_classes: int = 3) -> DetectedBoxes:
    score_DK = np.full((len(rows), num_classes), np.nan)
    score_DK[np.arange(len(rows)), [k for _, _, k, _ in rows]] = [score for *_, score in rows]
    return DetectedBoxes(
        frame_D=np.array([frame for frame, *_ in rows], np.int64),
        box_D4=np.array([box for _, box, *_ in rows], np.float64).reshape(-1, 4),
        score_DK=score_DK,
    )


LABELS = [
    (0, LEFT, 0),
    (0, RIGHT, 0),
    (1, LEFT, 0),
    (1, LEFT, 1),
    (2, RIGHT, 2),
]
DETECTIONS = [
    (0, LEFT, 0, 0.9),  # right: 1 of 1
    (0, LEFT, 0, 0.8),  # a second one of the same box: wrong, 1 of 2
    (0, NEAR_LEFT, 0, 0.7),  # overlaps LEFT by 0.6, which is taken; RIGHT is free, and hardly overlapped: wrong, 1 of 3
    (1, LEFT, 0, 0.6),  # right: 2 of 4
    (2, LEFT, 0, 0.5),  # a key frame without this class: wrong, 2 of 5
    (1, RIGHT, 1, 0.9),  # no overlap: wrong
    (1, NEAR_LEFT, 1, 0.3),  # overlap 0.6: right, 1 of 2
]


def test_the_example_by_hand() -> None:
    """Class 0 has three boxes: precision 1 at the first, 1/2 at the second, the third is missed. Class 2: nothing."""
    found = average_precisions(_labelled(LABELS), _detected(DETECTIONS), [0, 1, 2])
    assert found == {
        0: pytest.approx(float((Fraction(1) + Fraction(1, 2)) / 3)),
        1: pytest.approx(0.5),
        2: 0.0,
    }
    assert mean_average_precision(found) == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    expected = average_precisions(_labelled(LABELS), _detected(DETECTIONS), [0, 1, 2])
    for _ in range(20):
        labels = [LABELS[k] for k in rng.permutation(len(LABELS))]
        detections = [DETECTIONS[k] for k in rng.permutation(len(DETECTIONS))]
        assert average_precisions(_labelled(labels), _detected(detections), [0, 1, 2]) == expected


def test_the_box_that_overlaps_most_counts_even_when_it_is_taken() -> None:
    """A detection between two people goes to the nearer one, also when only the other is free."""
    front = (0.1, 0.0, 0.5, 1.0)
    labels = [(0, LEFT, 0), (0, front, 0)]
    # The second detection overlaps `front` by 0.7 and LEFT by 0.6; `front` is taken by the first.
    detections = [(0, front, 0, 0.9), (0, (0.06, 0.0, 0.46, 1.0), 0, 0.8)]
    assert average_precisions(_labelled(labels), _detected(detections), [0]) == {0: 0.5}


def test_boxes_without_an_area_are_no_detections_but_labels_that_are_missed() -> None:
    flat = (0.4, 0.0, 0.4, 1.0)
    labels, detections = [(0, LEFT, 0), (0, flat, 0)], [(0, flat, 0, 0.9), (0, LEFT, 0, 0.8)]
    assert average_precisions(_labelled(labels), _detected(detections), [0]) == {0: 0.5}


def test_an_overlap_of_exactly_half_is_enough() -> None:
    halves = [(0, (0.0, 0.0, 0.5, 1.0), 0, 0.9)], [(0, (0.0, 0.0, 0.499, 1.0), 0, 0.9)]
    found = [average_precisions(_labelled([(0, (0.0, 0.0, 1.0, 1.0), 0)]), _detected(rows), [0]) for rows in halves]
    assert found == [{0: 1.0}, {0: 0.0}]


def test_perfect_detections_have_map_1_and_none_have_0() -> None:
    rows = [(frame, box, k, 0.5 + 0.1 * k) for frame, box, k in LABELS]
    assert mean_average_precision(average_precisions(_labelled(LABELS), _detected(rows), [0, 1, 2])) == 1.0
    assert mean_average_precision(average_precisions(_labelled(LABELS), _detected([]), [0, 1, 2])) == 0.0
    assert average_precisions(_labelled([]), _detected(rows), [0]) == {}


def _slow(labels: Any, detections: Any, k: int) -> float:
    """AP of a class by the words of the rule: one list of detections over all frames, highest score first."""
    boxes = {frame: [box for f, box, c in labels if f == frame and c == k] for frame, _, _ in labels}
    num_labelled = sum(map(len, boxes.values()))
    taken: set[tuple[int, int]] = set()
    points = []
    num_right = 0
    chosen = sorted((row for row in detections if row[2] == k), key=lambda row: -row[3])
    for rank, (frame, box, _, _) in enumerate(chosen, 1):
        shares = [_share(box, other) for other in boxes.get(frame, [])]
        best = int(np.argmax(shares)) if shares else -1
        if shares and shares[best] >= 0.5 and (frame, best) not in taken:
            taken.add((frame, best))
            num_right += 1
        points.append((num_right / num_labelled, num_right / rank))
    area, reached = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - reached) * max(precision for r, precision in points if r >= recall)
        reached = recall
    return area


def _share(one: Any, two: Any) -> float:
    width = max(0.0, min(one[2], two[2]) - max(one[0], two[0]))
    height = max(0.0, min(one[3], two[3]) - max(one[1], two[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return float(width * height / (sum(areas) - width * height))


def random_rows(rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Labels of 6 frames, and detections near them and elsewhere."""

    def near(box_4: NDArray[np.float64]) -> tuple[float, ...]:
        moved = box_4 + rng.normal(0, 0.04, 4)
        return (*np.minimum(moved[:2], moved[2:] - 0.01).tolist(), *moved[2:].tolist())

    labels, detections = [], []
    for frame in range(6):
        for _ in range(rng.integers(0, 5)):
            low_2 = rng.uniform(0, 0.6, 2)
            box_4 = np.concatenate([low_2, low_2 + rng.uniform(0.1, 0.4, 2)])
            k = int(rng.integers(3))
            labels.append((frame, tuple(box_4.tolist()), k))
            for _ in range(rng.integers(0, 4)):
                guess = k if rng.random() < 0.7 else int(rng.integers(3))
                detections.append((frame, near(box_4), guess, float(rng.random())))
    return labels, detections


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_slow_reading_of_the_rule(seed: int) -> None:
    labels, detections = random_rows(np.random.default_rng(seed))
    found = average_precisions(_labelled(labels), _detected(detections), [0, 1, 2])
    assert set(found) == {k for _, _, k in labels}
    for k, precision in found.items():
        assert precision == pytest.approx(_slow(labels, detections, k))


def test_overlaps_of_pairs() -> None:
    boxes = np.array([LEFT, RIGHT, NEAR_LEFT])
    np.testing.assert_allclose(overlaps(boxes[:1], boxes), [[1.0, 0.0, 0.3 / 0.5]])

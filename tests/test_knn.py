"""Votes of the nearest neighbours against loops over numpy arrays, and against an example worked out by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from mgm_train.evaluation.features import Features
from mgm_train.evaluation.knn import knn_predictions, knn_probabilities, video_features
from mgm_train.evaluation.metrics import score

pytestmark = pytest.mark.usefixtures("one_thread")


def _features(num_videos: int, num_views: int, seed: int, width: int = 6) -> Features:
    """Four classes whose features differ in their directions."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(4, size=num_videos)
    feature_NVD = rng.normal(size=(num_videos, num_views, width)) * 0.6 + np.eye(width)[label_N][:, None]
    return Features(
        feature_NVD=torch.from_numpy(feature_NVD * 3).half(),
        label_N=torch.from_numpy(label_N),
        sample_ids=[f"{seed}-{number}" for number in range(num_videos)],
        unreadable={},
    )


def _votes(train: Features, scored: Features, num_neighbours: int, temperature: float) -> Any:
    """The same in float64, a neighbour at a time."""

    def unit(vector_D: Any) -> Any:
        return vector_D / np.sqrt((vector_D**2).sum())

    def vectors(features: Features) -> list[Any]:
        return [unit(sum(unit(view_D) for view_D in video_VD)) for video_VD in features.feature_NVD.double().numpy()]

    train_N, labels = vectors(train), train.label_N.tolist()
    votes_SK = np.zeros((len(scored.sample_ids), 4))
    for s, vector_D in enumerate(vectors(scored)):
        similarities = [float(vector_D @ other_D) for other_D in train_N]
        nearest = sorted(range(len(train_N)), key=lambda n: -similarities[n])[:num_neighbours]
        for n in nearest:
            votes_SK[s, labels[n]] += np.exp(similarities[n] / temperature)
    return votes_SK / votes_SK.sum(1, keepdims=True)


@pytest.mark.parametrize(("num_neighbours", "temperature"), [(20, 0.07), (1, 0.07), (7, 1.0), (500, 0.07)])
def test_votes_are_those_of_a_loop(num_neighbours: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgm_train.evaluation.knn.SCORED_AT_ONCE", 9)
    train, scored = _features(60, 2, seed=0), _features(25, 3, seed=1)
    found_SK = knn_probabilities(
        video_features(train),
        train.label_N,
        video_features(scored),
        4,
        num_neighbours=num_neighbours,
        temperature=temperature,
    )
    np.testing.assert_allclose(found_SK.numpy(), _votes(train, scored, num_neighbours, temperature), atol=2e-5)


def test_votes_worked_out_by_hand() -> None:
    # Similarities 1, 0.8 and 0 at temperature 1: the third is not among the two that vote.
    train_ND = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    found_SK = knn_probabilities(
        train_ND, torch.tensor([2, 0, 1]), torch.tensor([[1.0, 0.0]]), 3, num_neighbours=2, temperature=1.0
    )
    total = np.e + np.exp(0.8)
    np.testing.assert_allclose(found_SK.numpy(), [[np.exp(0.8) / total, 0, np.e / total]], rtol=1e-5)


def test_predictions_name_their_videos() -> None:
    train, scored = _features(80, 1, seed=0), _features(40, 2, seed=1)
    predictions = knn_predictions(train, scored, 4)
    assert [prediction.sample_id for prediction in predictions] == scored.sample_ids
    assert [prediction.label for prediction in predictions] == scored.label_N.tolist()
    expected_S = _votes(train, scored, 20, 0.07).argmax(1)
    assert [int(prediction.probability_K.argmax()) for prediction in predictions] == expected_S.tolist()
    assert 0.5 < score(predictions, {}).top1 < 1

"""Classification by nearest neighbours in the features of a frozen encoder, without any training.

The weighted vote of DINO (Caron et al. 2021) and of Wu et al. (2018): the K nearest training videos by cosine
similarity vote for their class, each with the weight exp(similarity / temperature).

Axes: N training videos · S scored videos · V views · D width · J neighbours · K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mgm_train.evaluation.features import Features
from mgm_train.evaluation.metrics import Prediction

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
SCORED_AT_ONCE = 1024


def video_features(features: Features) -> Tensor:
    """One vector of length 1 for each video, (N, D) float32: the mean of its views, each scaled to length 1."""
    view_NVD = F.normalize(features.feature_NVD.float(), dim=2)
    return F.normalize(view_NVD.mean(dim=1), dim=1)


def knn_probabilities(
    train_ND: Tensor,
    label_N: Tensor,
    scored_SD: Tensor,
    num_classes: int,
    *,
    num_neighbours: int = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Share of the votes for each class, (S, K) float32.

    Args:
        train_ND: Vectors of length 1 of the training videos, which vote.
        label_N: Their classes, 0 to `num_classes` − 1.
        scored_SD: Vectors of length 1 of the videos to classify.
        num_classes: Number of classes.
        num_neighbours: Number of voters; all training videos where there are fewer.
        temperature: Of the weights; with a lower one, the nearest video decides alone.
    """
    num_neighbours = min(num_neighbours, len(train_ND))
    parts = []
    for part_SD in scored_SD.split(SCORED_AT_ONCE):
        similarity_SJ, nearest_SJ = (part_SD @ train_ND.T).topk(num_neighbours, dim=1)
        # A softmax over the voters: the same shares as exp(similarity / temperature), without its large numbers.
        weight_SJ = (similarity_SJ / temperature).softmax(dim=1)
        votes_SK = torch.zeros(len(part_SD), num_classes, device=part_SD.device)
        parts.append(votes_SK.scatter_add_(1, label_N[nearest_SJ], weight_SJ))
    return torch.cat(parts)


def knn_predictions(train: Features, scored: Features, num_classes: int) -> list[Prediction]:
    """The vote of the training videos on each scored video."""
    probability_SK = knn_probabilities(video_features(train), train.label_N, video_features(scored), num_classes)
    return [
        Prediction(sample_id=sample_id, label=label, probability_K=probability_K.numpy())
        for sample_id, label, probability_K in zip(
            scored.sample_ids, scored.label_N.tolist(), probability_SK, strict=True
        )
    ]

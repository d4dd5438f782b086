"""The linear probe: a linear classifier on the features of a frozen encoder.

The paper reports linear probes without their settings. Here, a feature is the mean over the tokens after the encoder's
last norm. Features are standardised over the training clips, like MAE's BatchNorm without affine parameters. There is
no augmentation and no mixing, so features are computed once. Heads for a grid of learning rates and weight decays are
fitted in one pass on the same batches (V-JEPA's idea). The head to report is chosen by its accuracy on held-out
training videos, in whole groups of the same recording, never by the scored videos. Then all heads are fitted again to
all training videos.

Axes: N videos · V views · S = N·V samples · D width · G heads of the grid · K classes.
"""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mgm_shared.errors import UserError
from mgm_shared.files import replace_file
from mgm_train.config import ProbeConfig
from mgm_train.evaluation.features import Features
from mgm_train.evaluation.groups import NONE, recordings_of, video_groups
from mgm_train.evaluation.metrics import Prediction

VIDEOS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Linear classifiers of standardised features: weight (G, K, D), bias (G, K); mean and std (D,)."""

    weight_GKD: Tensor
    bias_GK: Tensor
    mean_D: Tensor
    std_D: Tensor

    def probabilities(self, features: Features) -> Tensor:
        """Mean softmax over the views of each video, (N, G, K) float32 on the CPU."""
        chunks = features.feature_NVD.split(VIDEOS_AT_ONCE)
        return torch.cat([self._logits(chunk).softmax(dim=3).mean(dim=1).cpu() for chunk in chunks])

    def _logits(self, feature_NVD: Tensor) -> Tensor:
        standard_NVD = (feature_NVD.to(self.mean_D) - self.mean_D) / self.std_D
        return torch.einsum("nvd,gkd->nvgk", standard_NVD, self.weight_GKD) + self.bias_GK


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A head of the grid: its settings, its results on the held-out videos, and its top-1 accuracy on the scored ones.

    The reported head is the one with the largest `held_out`.
    """

    learning_rate: float
    weight_decay: float
    held_out_top1: float
    held_out_loss: float
    top1: float

    @property
    def held_out(self) -> tuple[float, float]:
        """Sort key, larger is better: accuracy first, then loss, because accuracies of few videos are often equal."""
        return self.held_out_top1, -self.held_out_loss


def grid(config: ProbeConfig) -> list[tuple[float, float]]:
    """The learning rate and weight decay of each head."""
    return list(itertools.product(config.learning_rates, config.weight_decays))


def fit(features: Features, num_classes: int, config: ProbeConfig, device: torch.device) -> Heads:
    """Fit all heads of the grid to all views of the videos: AdamW, cosine schedule to 0, initial weights 0."""
    feature_SD = features.feature_NVD.flatten(0, 1).to(device, torch.float32)
    label_S = features.label_N.repeat_interleave(features.feature_NVD.shape[1]).to(device)
    std_D, mean_D = torch.std_mean(feature_SD, dim=0, correction=0)
    std_D = std_D + 1e-6
    feature_SD = (feature_SD - mean_D) / std_D
    width, settings = feature_SD.shape[1], grid(config)
    weights = [torch.zeros(num_classes, width, device=device, requires_grad=True) for _ in settings]
    biases = [torch.zeros(num_classes, device=device, requires_grad=True) for _ in settings]
    groups = [
        {"params": [parameter], "lr": rate, "weight_decay": decay}
        for parameters, has_decay in ((weights, True), (biases, False))
        for parameter, (rate, decay) in zip(parameters, [(r, d * has_decay) for r, d in settings], strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    batches = _batches(len(feature_SD), config)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(batches))
    for batch_B in batches:
        chosen_B = torch.from_numpy(batch_B).to(device)
        logits_BX = F.linear(feature_SD[chosen_B], torch.cat(weights), torch.cat(biases))
        logits_XK = logits_BX.view(-1, num_classes)
        label_X = label_S[chosen_B].repeat_interleave(len(settings))
        # The heads share no weights, so in the sum of their losses each head gets the gradient of its own loss.
        loss = F.cross_entropy(logits_XK, label_X, reduction="sum") / len(chosen_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return Heads(weight_GKD=torch.stack(weights), bias_GK=torch.stack(biases), mean_D=mean_D, std_D=std_D)


def _batches(num_samples: int, config: ProbeConfig) -> list[NDArray[np.int64]]:
    """Indices of the samples of each step, over all epochs, in batches of nearly equal size."""
    num_batches = math.ceil(num_samples / config.head_batch_size)
    return [
        batch
        for epoch in range(config.epochs)
        for batch in np.array_split(np.random.default_rng([config.seed, epoch]).permutation(num_samples), num_batches)
    ]


def hold_out(features: Features, share: float, seed: int, pattern: str = NONE) -> tuple[Features, Features]:
    """Split the training videos into those to fit to and those to choose a head by; see `held_out_videos`."""
    recordings = recordings_of(features.sample_ids, features.video_ids, pattern)
    is_held_N = held_out_videos(features.label_N.numpy(), recordings, share, seed, pattern)
    return some_features(features, ~is_held_N), some_features(features, is_held_N)


def held_out_videos(
    label_N: NDArray[np.int64], video_ids: Sequence[str], share: float, seed: int, pattern: str
) -> NDArray[np.bool_]:
    """Which training videos are held out, (N,): about `share` of each class, in whole groups (see `video_groups`).

    Random groups are held out until the share is reached: at least one and never all groups of a class. Classes with a
    single group hold out nothing. UserError if no class has two groups.
    """
    rng = np.random.default_rng(seed)
    groups = video_groups(video_ids, pattern)
    places_of: dict[int, dict[str, list[int]]] = {label: {} for label in np.unique(label_N).tolist()}
    for place, (label, group) in enumerate(zip(label_N.tolist(), groups, strict=True)):
        places_of[label].setdefault(group, []).append(place)
    is_held_N = np.zeros(len(label_N), np.bool_)
    for of_group in places_of.values():
        is_held_N[_drawn(of_group, share, rng)] = True
    if not is_held_N.any():
        raise UserError(
            "no class has training videos of two groups, so none can be held out to choose a head by; see group-pattern"
        )
    return is_held_N


def _drawn(places_of_group: Mapping[str, list[int]], share: float, rng: np.random.Generator) -> list[int]:
    """Draw the groups of a class to hold out, and return the places of their videos."""
    groups = list(places_of_group.values())
    num_wanted = max(1, round(share * sum(map(len, groups))))
    held: list[int] = []
    for number in rng.permutation(len(groups))[:-1].tolist():
        if len(held) < num_wanted:
            held += groups[number]
    return held


def some_features(features: Features, is_in_N: NDArray[np.bool_]) -> Features:
    """The features of some of the videos."""
    return Features(
        feature_NVD=features.feature_NVD[torch.from_numpy(is_in_N)],
        label_N=features.label_N[torch.from_numpy(is_in_N)],
        sample_ids=list(compress(features.sample_ids, is_in_N)),
        video_ids=list(compress(features.video_ids, is_in_N)),
        unreadable={},
    )


def fit_and_score(
    train: Features, scored: Features, num_classes: int, config: ProbeConfig, device: torch.device
) -> tuple[list[Choice], int, list[Prediction]]:
    """Fit and score all heads. Returns their results, the index of the chosen head, and its predictions."""
    fitted, held = hold_out(train, config.held_out, config.seed, config.group_pattern)
    held_NGK = fit(fitted, num_classes, config, device).probabilities(held)
    probability_NGK = fit(train, num_classes, config, device).probabilities(scored)
    shares = (_top1(held_NGK, held.label_N), _loss(held_NGK, held.label_N), _top1(probability_NGK, scored.label_N))
    choices = [
        Choice(learning_rate=rate, weight_decay=decay, held_out_top1=held_top1, held_out_loss=held_loss, top1=top1)
        for (rate, decay), held_top1, held_loss, top1 in zip(grid(config), *shares, strict=True)
    ]
    best = max(_finite_heads(held_NGK, probability_NGK), key=lambda number: choices[number].held_out)
    predictions = [
        Prediction(sample_id=sample_id, label=label, probability_K=probability_GK[best].numpy())
        for sample_id, label, probability_GK in zip(
            scored.sample_ids, scored.label_N.tolist(), probability_NGK, strict=True
        )
    ]
    return choices, best, predictions


def _finite_heads(*probabilities_NGK: Tensor) -> list[int]:
    """Indices of the heads whose outputs are all finite. UserError if there is none."""
    is_finite_G = torch.cat([part.isfinite().all(dim=2) for part in probabilities_NGK]).all(dim=0)
    if not is_finite_G.any():
        raise UserError("the outputs of all heads are not finite: their training diverged; lower learning-rates")
    return is_finite_G.nonzero().flatten().tolist()


def _top1(probability_NGK: Tensor, label_N: Tensor) -> list[float]:
    """Top-1 accuracy of each head. A tie for the largest probability counts as wrong."""
    is_right_NG = (probability_NGK >= _of_label(probability_NGK, label_N)).sum(dim=2) == 1
    return [float(share) for share in is_right_NG.double().mean(dim=0)]


def _loss(probability_NGK: Tensor, label_N: Tensor) -> list[float]:
    """Mean cross entropy of each head."""
    smallest = torch.finfo(probability_NGK.dtype).tiny
    loss_G = -_of_label(probability_NGK, label_N).clamp(min=smallest).log().mean(dim=(0, 2))
    return [float(loss) for loss in loss_G]


def _of_label(probability_NGK: Tensor, label_N: Tensor) -> Tensor:
    return probability_NGK.gather(2, label_N[:, None, None].expand(-1, probability_NGK.shape[1], 1))


def write_choices(file: Path, choices: list[Choice], best: int) -> None:
    """Write a CSV file with a row per head. The column `counts` marks the chosen one."""

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8") as opened:
            rows = csv.writer(opened)
            names = list(asdict(choices[0]))
            rows.writerow([*names, "counts"])
            for number, choice in enumerate(choices):
                values = [f"{value:.5g}" for value in asdict(choice).values()]
                rows.writerow([*values, "yes" if number == best else ""])

    replace_file(file, write)

"""The multi-view test of a fine-tuned model: top-1 and top-5 over videos, each read once and scored once.

Every view of a video (temporal × spatial) is classified and their softmax outputs are averaged, as in the paper's
tests. A video that cannot be read is listed with its reason and never replaced by another.

Axes: V views · C colours · T frames · H,W pixels · K classes.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mgm_shared.errors import UserError
from mgm_shared.store import Store, Video
from mgm_train.augment import crop_frames, view_boxes
from mgm_train.clips import label_numbers, start_worker, view_indices
from mgm_train.config import EvaluateConfig, ModelConfig
from mgm_train.model import VideoClassifier
from mgm_train.ranks import Ranks, autocast_dtype


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One scored video: the mean softmax over its views, (K,)."""

    video_id: str
    label: int
    probability_K: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result of a test. Accuracies are shares of the videos that were scored."""

    top1: float
    top5: float
    mean_class_accuracy: float
    scored: int
    listed: int
    unreadable: dict[str, str] = field(default_factory=dict)
    """video_id → why it could not be scored."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """All views of one video, (V, C, T, H, W) uint8, or the reason why there are none."""

    video_id: str
    label: int
    frames_VCTHW: Tensor | None
    reason: str = ""


class ViewDataset(Dataset[Views]):
    """The views of each video of a split; a video is decoded once for all of them."""

    def __init__(self, store: Store, classes: list[str], model: ModelConfig, config: EvaluateConfig) -> None:
        self.store, self.model, self.config = store, model, config
        self.rows, self.labels = label_numbers(store, config.split, classes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Views:
        video, label = self.store.video_at(int(self.rows[index])), int(self.labels[index])
        try:
            frames_VCTHW = torch.from_numpy(self._views(video))
        except OSError as error:
            return Views(video_id=video.video_id, label=label, frames_VCTHW=None, reason=str(error))
        return Views(video_id=video.video_id, label=label, frames_VCTHW=frames_VCTHW)

    def _views(self, video: Video) -> NDArray[np.uint8]:
        config, side_px = self.config, self.model.image_px
        indices_VT = view_indices(
            video.num_frames, self.model.num_frames, config.stride, config.num_temporal_views, config.sampling
        )
        wanted, place_VT = np.unique(indices_VT, return_inverse=True)
        frames_THWC = video.frames[wanted]
        boxes = view_boxes(video.height, video.width, config.num_spatial_views)
        crops = [crop_frames(frames_THWC, box, side_px, side_px) for box in boxes]
        views = [crop[place_T] for place_T in place_VT.reshape(indices_VT.shape) for crop in crops]
        return np.ascontiguousarray(np.stack(views).transpose(0, 4, 1, 2, 3))


def evaluate(model: VideoClassifier, dataset: ViewDataset, ranks: Ranks) -> tuple[Scores, list[Prediction]]:
    """Score every video of the dataset once, over all processes; the result is the same on each of them."""
    # Every process takes every n-th video. Nothing is padded, so nothing is counted twice.
    own = range(ranks.rank, len(dataset), ranks.num_ranks)
    predictions: list[Prediction] = []
    unreadable: dict[str, str] = {}
    for videos in _batches(dataset, own, ranks.device):
        readable = [video for video in videos if video.frames_VCTHW is not None]
        unreadable |= {video.video_id: video.reason for video in videos if video.frames_VCTHW is None}
        predictions += _predict(model, readable, dataset.config.precision, ranks.device)
    if ranks.num_ranks > 1:
        gathered: list[Any] = [None] * ranks.num_ranks
        dist.all_gather_object(gathered, (predictions, unreadable))
        predictions = [prediction for part, _ in gathered for prediction in part]
        unreadable = {video_id: reason for _, part in gathered for video_id, reason in part.items()}
    predictions.sort(key=lambda prediction: prediction.video_id)
    return score(predictions, unreadable), predictions


def _batches(dataset: ViewDataset, indices: Sequence[int], device: torch.device) -> Iterator[list[Views]]:
    return iter(
        DataLoader(
            dataset,
            batch_size=dataset.config.batch_size,
            sampler=list(indices),
            num_workers=dataset.config.num_workers,
            collate_fn=list,
            worker_init_fn=start_worker,
            pin_memory=device.type == "cuda",
        )
    )


@torch.inference_mode()
def _predict(model: VideoClassifier, videos: list[Views], precision: str, device: torch.device) -> list[Prediction]:
    model.eval()
    dtype = autocast_dtype(precision, device)
    predictions = []
    for video in videos:
        assert video.frames_VCTHW is not None
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits_VK = model(video.frames_VCTHW.to(device, non_blocking=True))
        probability_K = logits_VK.float().softmax(dim=1).mean(dim=0).cpu().numpy()
        predictions.append(Prediction(video_id=video.video_id, label=video.label, probability_K=probability_K))
    return predictions


def score(predictions: list[Prediction], unreadable: dict[str, str]) -> Scores:
    """Accuracies of the predictions. UserError when there are none."""
    if not predictions:
        raise UserError(f"none of the {len(unreadable)} listed videos can be read; run `mgm-prep verify`")
    label_B = np.array([prediction.label for prediction in predictions])
    probability_BK = np.stack([prediction.probability_K for prediction in predictions])
    # How many classes are at least as likely as the true one: a tie counts against the model.
    true_B1 = np.take_along_axis(probability_BK, label_B[:, None], axis=1)
    rank_B = (probability_BK >= true_B1).sum(axis=1)
    is_right_B = rank_B <= 1
    by_class = [is_right_B[label_B == label].mean() for label in np.unique(label_B)]
    return Scores(
        top1=float(is_right_B.mean()),
        top5=float((rank_B <= 5).mean()),
        mean_class_accuracy=float(np.mean(by_class)),
        scored=len(predictions),
        listed=len(predictions) + len(unreadable),
        unreadable=unreadable,
    )


def write_predictions(file: Path, predictions: list[Prediction], classes: list[str]) -> None:
    """A row a video: id, true label, predicted label, probability of both; as CSV."""
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["video_id", "label", "predicted", "probability_of_label", "probability_of_predicted"])
        for prediction in predictions:
            probability_K, guess = prediction.probability_K, int(prediction.probability_K.argmax())
            sure = [f"{probability_K[prediction.label]:.4f}", f"{probability_K[guess]:.4f}"]
            rows.writerow([prediction.video_id, classes[prediction.label], classes[guess], *sure])

"""Multi-view test of a fine-tuned model on the videos of a split.

Each video is read once. All its views (temporal × spatial) are classified, and their softmax outputs are averaged, as
in the paper. A video that cannot be read is reported with the reason; it is never replaced by another video.

Axes: N readable videos of a batch · V views · C colours · T frames · H,W pixels · K classes.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from mgm_shared.config import flag
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import SampleSource
from mgm_shared.store import Video
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import SAMPLING_OPTIONS, FinetuneConfig, ViewConfig
from mgm_train.data.augment import view_boxes
from mgm_train.data.labels import label_numbers, noun_of, read_class_map
from mgm_train.data.loader import start_method
from mgm_train.data.packed_batch import Packing
from mgm_train.data.readers import reading, start_reader
from mgm_train.data.sampling import view_indices
from mgm_train.data.views import View, read_views
from mgm_train.evaluation.metrics import Prediction, Scores, diverged, score
from mgm_train.model_config import ModelConfig
from mgm_train.models.videomae import VideoClassifier
from mgm_train.runtime.distributed import Distributed, autocast_dtype

# Maximum number of clips in a forward pass. The views of one video can be more.
CLIPS_AT_ONCE = 32

AnyViews = TypeVar("AnyViews", bound=ViewConfig)
EpochTest = Callable[[int, nn.Module], Mapping[str, float]]
"""(epoch, model) → values to add to metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """All views of one sample, (V, C, T, H, W) uint8; for an unreadable one None, with the reason."""

    sample_id: str
    video_id: str
    label: int
    frames_VCTHW: Tensor | None
    reason: str = ""


class ViewDataset(Dataset[Views]):
    """The views of each sample of a split. A frame is decoded once for all its views."""

    def __init__(self, store: SampleSource, classes: list[str], model: ModelConfig, config: ViewConfig) -> None:
        self.store, self.model, self.config = store, model, config
        class_map = read_class_map(Path(config.class_map)) if config.class_map else None
        self.rows, self.labels = label_numbers(store, config.split, classes, class_map)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def id_column(self) -> str:
        """The name of the samples' ids in tables of results."""
        return f"{'sample' if noun_of(self.store) == 'segment' else 'video'}_id"

    @property
    def num_views(self) -> int:
        """Number of views per video."""
        return self.config.num_temporal_views * self.config.num_spatial_views

    def __getitem__(self, index: int) -> Views:
        video, label = self.store.video_at(int(self.rows[index])), int(self.labels[index])
        views = Views(sample_id=video.sample_id, video_id=video.video_id, label=label, frames_VCTHW=None)
        try:
            return replace(views, frames_VCTHW=torch.from_numpy(self._views(video)))
        except OSError as error:
            return replace(views, reason=str(error))

    def _views(self, video: Video) -> NDArray[np.uint8]:
        config, side_px = self.config, self.model.image_px
        indices_VT = view_indices(
            video.num_frames,
            self.model.num_frames,
            config.stride,
            config.num_temporal_views,
            config.sampling,
            config.short_videos,
        )
        wanted, place_VT = np.unique(indices_VT, return_inverse=True)
        boxes = view_boxes(video.height, video.width, config.num_spatial_views)
        shown = read_views(video, wanted, [View(box=box, size_px=side_px) for box in boxes])
        places = place_VT.reshape(indices_VT.shape)
        return np.stack([frames_CTHW[:, place_T] for place_T in places for frames_CTHW in shown])


def sampling_metadata(config: FinetuneConfig) -> dict[str, str]:
    """How a model's training clips were sampled, for the metadata of its weights."""
    return {"mgm_sampling": json.dumps({name: getattr(config, name) for name in SAMPLING_OPTIONS})}


def sampled_as_trained(config: AnyViews, weights: Weights) -> tuple[AnyViews, list[str]]:
    """Take the sampling options that were not set from the model's training. Returns the options and lines to print.

    Options that were set stay as they are. Weights of an earlier version do not record their sampling; then nothing
    changes.
    """
    recorded = json.loads(weights.metadata.get("mgm_sampling", "{}"))
    trained = {name: recorded[name] for name in SAMPLING_OPTIONS if name in recorded}
    differing = {name: value for name, value in trained.items() if value != getattr(config, name)}
    taken = {name: value for name, value in differing.items() if name not in config.model_fields_set}
    said = [
        f"{flag(name)} is {value}, as in the fine-tuning; --{flag(name)} sets another" for name, value in taken.items()
    ]
    said += [
        f"{flag(name)} is {getattr(config, name)} as asked; the fine-tuning had {value}"
        for name, value in differing.items()
        if name not in taken
    ]
    return (config.replace(**taken) if taken else config), said


def classifier(weights: Weights) -> VideoClassifier:
    """Build the fine-tuned model of a weights file. UserError if the file holds no classifier."""
    model = VideoClassifier(weights.model, len(weights.classes))
    model.load_state_dict(weights.state, strict=True)
    return model


def score_views(
    model: Callable[[Tensor], Tensor], dataset: ViewDataset, distributed: Distributed, progress: Progress = SILENT
) -> tuple[Scores, list[Prediction]]:
    """Score every video of the dataset once. The videos are shared among the processes, which all return the same.

    UserError on all processes if the model's output for a video is not finite.
    """
    # Of n processes, each takes every n-th video. The list is not padded, so no video counts twice.
    own = range(distributed.rank, len(dataset), distributed.world_size)
    predictions: list[Prediction] = []
    unreadable: dict[str, str] = {}
    not_finite: list[str] = []
    with closing(over_videos(model, dataset, own, distributed, progress)) as videos:
        for video, logits_VK in videos:
            if logits_VK is None:
                unreadable[video.sample_id] = video.reason
                continue
            if not logits_VK.isfinite().all():
                not_finite.append(video.sample_id)
                break
            probability_K = logits_VK.softmax(dim=1).mean(dim=0).numpy()
            predictions.append(Prediction(sample_id=video.sample_id, label=video.label, probability_K=probability_K))
    if distributed.world_size > 1:
        gathered: list[Any] = [None] * distributed.world_size
        dist.all_gather_object(gathered, (predictions, unreadable, not_finite))
        predictions = [prediction for part, _, _ in gathered for prediction in part]
        unreadable = {sample_id: reason for _, part, _ in gathered for sample_id, reason in part.items()}
        not_finite = [sample_id for _, _, part in gathered for sample_id in part]
    if not_finite:
        raise diverged(min(not_finite))
    predictions.sort(key=lambda prediction: prediction.sample_id)
    return score(predictions, unreadable), predictions


def score_every(
    num_epochs: int, dataset: ViewDataset, say: Callable[[str], None], distributed: Distributed
) -> EpochTest:
    """Make the function that the training loop calls after each epoch. It tests after every `num_epochs` epochs."""

    def score_epoch(epoch: int, model: nn.Module) -> Mapping[str, float]:
        if epoch % num_epochs:
            return {}
        scores, _ = score_views(model.eval(), dataset, distributed)
        split = dataset.config.split
        if distributed.is_main:
            counts = f"{scores.scored} of {scores.listed} {noun_of(dataset.store, 2)}"
            say(f"epoch {epoch} | {split} top-1 {scores.top1:.1%} | {counts}")
        return {f"{split}_{name}": getattr(scores, name) for name in ("top1", "top5", "scored", "listed")}

    return score_epoch


def over_videos(
    model: Callable[[Tensor], Tensor],
    dataset: ViewDataset,
    indices: Sequence[int],
    distributed: Distributed,
    progress: Progress = SILENT,
) -> Generator[tuple[Views, Tensor | None]]:
    """Yield each video with the model's outputs for its views, (V, K) float32 on the CPU; None for an unreadable video.

    On the main process, `progress` counts its finished videos.
    """
    loader = _loader(dataset, indices, distributed.device)
    heard = progress if distributed.is_main else SILENT
    heard.start(f"reading {dataset.config.split}", len(indices), "video")
    num_unreadable = 0
    with reading(loader) as batches:
        for batch in batches:
            outputs = iter(_outputs(model, batch, dataset.config.precision, distributed.device))
            for video, is_readable in zip(batch["videos"], batch["is_readable"], strict=True):
                yield video, next(outputs) if is_readable else None
            num_unreadable += batch["is_readable"].count(False)
            heard.advance(len(batch["videos"]), unreadable=num_unreadable)


def collate_views(videos: list[Views]) -> dict[str, Any]:
    """Collate a batch: `videos` without frames, `is_readable` for each, and `frames_NVCTHW` of the readable ones.

    One tensor, so that a worker needs one piece of shared memory, and one open file, for a batch.
    """
    frames = [video.frames_VCTHW for video in videos if video.frames_VCTHW is not None]
    batch: dict[str, Any] = {
        "videos": [replace(video, frames_VCTHW=None) for video in videos],
        "is_readable": [video.frames_VCTHW is not None for video in videos],
    }
    # `default_collate` stacks into shared memory in a worker, which saves a copy.
    return batch | ({"frames_NVCTHW": default_collate(frames)} if frames else {})


def _loader(dataset: ViewDataset, indices: Sequence[int], device: torch.device) -> DataLoader[Any]:
    config = dataset.config
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=list(indices),
        num_workers=config.num_workers,
        multiprocessing_context=start_method(config.num_workers, config.worker_start),
        collate_fn=Packing(collate_views),
        worker_init_fn=start_reader,
        pin_memory=device.type == "cuda",
    )


@torch.inference_mode()
def _outputs(
    model: Callable[[Tensor], Tensor], batch: Mapping[str, Any], precision: str, device: torch.device
) -> Sequence[Tensor]:
    """The model's outputs for each readable video of a batch, (V, K) float32 on the CPU."""
    if "frames_NVCTHW" not in batch:
        return []
    dtype = autocast_dtype(precision, device)
    frames_NVCTHW = batch["frames_NVCTHW"].to(device, non_blocking=True)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        outputs = [model(clips_BCTHW).float() for clips_BCTHW in frames_NVCTHW.flatten(0, 1).split(CLIPS_AT_ONCE)]
    of_videos: Sequence[Tensor] = torch.cat(outputs).cpu().split(frames_NVCTHW.shape[1])
    return of_videos

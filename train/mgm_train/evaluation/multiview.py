"""Multi-view test of a fine-tuned model on the videos of a split.

Each video is read once. All its views (temporal × spatial) are classified, and their softmax outputs are averaged, as
in the paper. A video that cannot be read is reported with the reason; it is never replaced by another video.

Axes: N readable videos of a batch · V views · C colours · T frames · H,W pixels · K classes.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mgm_shared.config import flag
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import SampleSource
from mgm_shared.store import Video
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import SAMPLING_OPTIONS, FinetuneConfig, ViewConfig
from mgm_train.data.augmentation.augment import view_boxes
from mgm_train.data.labels import label_numbers, noun_of, read_class_map
from mgm_train.data.loader import ToDevice, start_method
from mgm_train.data.packed_batch import Allocate, Packing, fresh
from mgm_train.data.readers import reading, start_reader
from mgm_train.data.sampling import view_indices
from mgm_train.data.views import View, read_clip_views
from mgm_train.data.workers import clip_bytes, count_workers
from mgm_train.evaluation.metrics import Prediction, Scores, diverged, score
from mgm_train.model_config import ModelConfig
from mgm_train.models.videomae import VideoClassifier
from mgm_train.runtime.distributed import Distributed, autocast_dtype

# Maximum number of clips in a forward pass. The views of one video can be more. A GPU gains nothing from more than 128,
# and a CPU nothing from more than a few.
MAX_CLIPS_ON_GPU, MAX_CLIPS_ON_CPU = 128, 32
# Activations of a block without gradients: bytes for each token and unit of width, of which the MLP has most.
ACTIVATION_BYTES = 40
MEMORY_SHARE = 0.5

Item = TypeVar("Item")

AnyViews = TypeVar("AnyViews", bound=ViewConfig)
EpochTest = Callable[[int, nn.Module], Mapping[str, float]]
"""(epoch, model) → values to add to metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The sample of some views; `reason` says why it could not be read, and is empty where it was."""

    sample_id: str
    video_id: str
    label: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class UnreadViews:
    """All views of one sample, uint8 of `shape_VCTHW`, which `read` writes into an array. OSError for damaged data."""

    sample_id: str
    video_id: str
    label: int
    shape_VCTHW: tuple[int, ...]
    read: Callable[[NDArray[np.uint8]], None]


class ViewDataset(Dataset[UnreadViews]):
    """The views of each sample of a split. A frame is decoded once for all its views, into the memory of its batch."""

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

    def __getitem__(self, index: int) -> UnreadViews:
        video, label = self.store.video_at(int(self.rows[index])), int(self.labels[index])
        shape = (self.num_views, 3, self.model.num_frames, self.model.image_px, self.model.image_px)
        return UnreadViews(
            sample_id=video.sample_id,
            video_id=video.video_id,
            label=label,
            shape_VCTHW=shape,
            read=partial(self._read, video),
        )

    def _read(self, video: Video, frames_VCTHW: NDArray[np.uint8]) -> None:
        config, size_px = self.config, self.model.image_px
        indices_VT = view_indices(
            video.num_frames,
            self.model.num_frames,
            config.stride,
            config.num_temporal_views,
            config.sampling,
            config.short_videos,
        )
        boxes = view_boxes(video.height, video.width, config.num_spatial_views)
        read_clip_views(video, indices_VT, [View(box=box, size_px=size_px) for box in boxes], frames_VCTHW)


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
    gathered = distributed.gather((predictions, unreadable, not_finite))
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
    heard = progress if distributed.is_main else SILENT
    device, precision = distributed.device, dataset.config.precision
    video_bytes = dataset.num_views * clip_bytes(dataset.model.num_frames, dataset.model.image_px)
    loader = make_test_loader(dataset, indices, dataset.config, collate_views, video_bytes, device, heard)
    heard.start(f"reading {dataset.config.split}", len(indices), "video")
    num_at_once = clips_at_once(dataset.model, device)
    to_device = ToDevice(device)
    num_unreadable = 0
    with reading(loader) as batches:
        scored = ((batch, _outputs(model, to_device(batch), precision, device, num_at_once)) for batch in batches)
        for batch, outputs in _one_ahead(scored) if device.type == "cuda" else scored:
            of_readable = iter(_on_cpu(outputs, dataset.num_views))
            for video, is_readable in zip(batch["videos"], batch["is_readable"], strict=True):
                yield video, next(of_readable) if is_readable else None
            num_unreadable += batch["is_readable"].count(False)
            heard.advance(len(batch["videos"]), unreadable=num_unreadable)


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each given out when the next has been made: a GPU copies and computes while the CPU counts."""
    ahead: Item | None = None
    for item in items:
        if ahead is not None:
            yield ahead
        ahead = item
    if ahead is not None:
        yield ahead


def clips_at_once(model: ModelConfig, device: torch.device) -> int:
    """The number of clips in a forward pass, whose activations fit into half of the free memory of a GPU."""
    if device.type != "cuda":
        return MAX_CLIPS_ON_CPU
    free_bytes = MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    clip_activations = ACTIVATION_BYTES * model.grid.num_tokens * model.width
    return max(1, min(MAX_CLIPS_ON_GPU, int(free_bytes / clip_activations)))


def collate_views(unread: list[UnreadViews], allocate: Allocate = fresh) -> dict[str, Any]:
    """Read a batch: `videos`, `is_readable` for each, and `frames_NVCTHW` of the readable ones.

    One tensor, in a worker in shared memory, into which the views are written as they are decoded: there is no copy,
    and a batch needs one open file.
    """
    frames_NVCTHW = allocate("frames", (len(unread), *unread[0].shape_VCTHW))
    array_NVCTHW = frames_NVCTHW.numpy()
    videos: list[Views] = []
    num_readable = 0
    for views in unread:
        reason = ""
        try:
            views.read(array_NVCTHW[num_readable])
            num_readable += 1
        except OSError as error:
            reason = str(error)
        videos.append(Views(sample_id=views.sample_id, video_id=views.video_id, label=views.label, reason=reason))
    batch = {"videos": videos, "is_readable": [not video.reason for video in videos]}
    return batch | ({"frames_NVCTHW": frames_NVCTHW[:num_readable]} if num_readable else {})


def make_test_loader(
    dataset: Dataset[Any],
    indices: Sequence[int],
    config: ViewConfig,
    collate: Callable[[Any, Allocate], dict[str, Any]],
    sample_bytes: int,
    device: torch.device,
    progress: Progress,
) -> DataLoader[Any]:
    """A loader of the samples at `indices`, in their order, each once; `sample_bytes` is the size of a sample."""
    workers = count_workers(config.num_workers, config.batch_size * sample_bytes, device)
    if workers.remark:
        progress.say(workers.remark)
    is_pinned = device.type == "cuda"
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=list(indices),
        num_workers=workers.number,
        multiprocessing_context=start_method(workers.number, config.worker_start),
        collate_fn=Packing(collate, is_pinned),
        worker_init_fn=start_reader,
        pin_memory=is_pinned,
    )


@torch.inference_mode()
def _outputs(
    model: Callable[[Tensor], Tensor],
    batch: Mapping[str, Any],
    precision: str,
    device: torch.device,
    num_at_once: int,
) -> Tensor | None:
    """The model's outputs for all views of the readable videos of a batch, (N·V, K) float32 on the device."""
    if "frames_NVCTHW" not in batch:
        return None
    dtype = autocast_dtype(precision, device)
    frames_NVCTHW = batch["frames_NVCTHW"]
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return torch.cat([model(clips_BCTHW).float() for clips_BCTHW in frames_NVCTHW.flatten(0, 1).split(num_at_once)])


def _on_cpu(outputs: Tensor | None, num_views: int) -> Sequence[Tensor]:
    """The outputs of each readable video, (V, K) on the CPU; this waits for a GPU."""
    return [] if outputs is None else outputs.cpu().split(num_views)

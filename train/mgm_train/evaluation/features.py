"""Features of the views of each video from a frozen encoder, computed once and cached in the run folder.

    RUN/features/train-00000.safetensors    features, labels and names of the first 256 videos of a split

A chunk is written as a whole, so a run that was stopped continues after the last one. Its metadata names everything
that the features depend on, so features of different settings are never mixed.

Axes: N videos · V views · C colours · T frames · H,W pixels · D width.
"""

import hashlib
import json
from collections.abc import Generator, Iterable
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mgm_shared.errors import UserError
from mgm_shared.progress import SILENT, Progress
from mgm_shared.signals import StopRequest
from mgm_train.checkpoint.tensor_file import TensorFile, load_tensors, save_tensors
from mgm_train.checkpoint.transfer import POOLED_NORM_PREFIX
from mgm_train.checkpoint.weights import Weights
from mgm_train.evaluation.metrics import diverged
from mgm_train.evaluation.multiview import ViewDataset, Views, over_videos
from mgm_train.models.attention import LayerNorm
from mgm_train.models.videomae import ENCODER_PREFIX, Encoder
from mgm_train.runtime.distributed import Distributed, autocast_dtype

VIDEOS_PER_CHUNK = 256


class FrozenEncoder(nn.Module):
    """The trained encoder with its last norm, and the mean over its tokens: (B, C, T, H, W) → (B, D).

    A fine-tuned encoder has no last norm but one of the mean, which is kept in its place.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        kept = (ENCODER_PREFIX, POOLED_NORM_PREFIX)
        state = {name: tensor for name, tensor in weights.state.items() if name.startswith(kept)}
        self.encoder = Encoder(weights.model, has_norm=f"{ENCODER_PREFIX}norm.weight" in state)
        is_pooled = f"{POOLED_NORM_PREFIX}weight" in state
        self.fc_norm = LayerNorm(weights.model.width) if is_pooled else nn.Identity()
        self.load_state_dict(state, strict=True)
        self.eval().requires_grad_(False)

    def forward(self, frames_BCTHW: Tensor) -> Tensor:
        features_BD: Tensor = self.fc_norm(self.encoder(frames_BCTHW).mean(dim=1))
        return features_BD


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of the readable samples of a split, (N, V, D) float16, their labels (N,), and the unreadable samples.

    `video_ids` are the videos that the samples lie in; empty where each sample is a whole video.

    UserError for features that are not finite, or too large for float16.
    """

    feature_NVD: Tensor
    label_N: Tensor
    sample_ids: list[str]
    unreadable: dict[str, str]
    video_ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        is_finite_N = self.feature_NVD.flatten(1).isfinite().all(dim=1)
        if not is_finite_N.all():
            raise diverged(self.sample_ids[int(is_finite_N.int().argmin())])

    @property
    def num_listed(self) -> int:
        return len(self.sample_ids) + len(self.unreadable)


def in_whole_batches(dataset: ViewDataset) -> ViewDataset:
    """The dataset with the largest batch size, not above its own, that divides a chunk.

    Rounding depends on the batch. No batch has videos of two chunks then, and the features of a chunk do not depend on
    which chunks were there already, or on the number of processes.
    """
    size = min(dataset.config.batch_size, VIDEOS_PER_CHUNK)
    divisor = next(number for number in range(size, 0, -1) if VIDEOS_PER_CHUNK % number == 0)
    same = copy(dataset)
    same.config = dataset.config.replace(batch_size=divisor)
    return same


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """The cached features of one split in a run folder. `key` is JSON text that names what they depend on."""

    folder: Path
    split: str
    key: str

    @classmethod
    def of(cls, run: Path, weights: Weights, dataset: ViewDataset, distributed: Distributed) -> "FeatureCache":
        """The cache for the views of a dataset and these weights."""
        config = dataset.config
        names = ("split", "stride", "sampling", "short_videos", "num_temporal_views", "num_spatial_views")
        labels = hashlib.sha256(json.dumps(dataset.labels.tolist()).encode()).hexdigest()
        about = {"weights": weights.digest, "store": dataset.store.digest, "labels": labels}
        about |= {name: str(getattr(config, name)) for name in names}
        about["precision"] = str(autocast_dtype(config.precision, distributed.device))
        return cls(folder=run / "features", split=config.split, key=json.dumps(about, sort_keys=True))

    def compute(
        self, model: FrozenEncoder, dataset: ViewDataset, distributed: Distributed, progress: Progress = SILENT
    ) -> bool:
        """Compute the missing chunks, shared among all processes, which must call this together.

        Returns False if a stop was requested.
        """
        starts = range(0, len(dataset), VIDEOS_PER_CHUNK)
        chunks = [range(start, min(start + VIDEOS_PER_CHUNK, len(dataset))) for start in starts]
        missing = [chunk for chunk in chunks[distributed.rank :: distributed.world_size] if not self._is_there(chunk)]
        stop = StopRequest()
        with stop.listening(), closing(self._chunks(model, dataset, missing, distributed, progress)) as computed:
            for chunk, features in zip(missing, computed, strict=False):
                self._save(chunk, features)
                if stop.is_asked:
                    break
        # Here the processes also wait for each other.
        return not distributed.any(stop.is_asked)

    def _chunks(
        self,
        model: FrozenEncoder,
        dataset: ViewDataset,
        chunks: list[range],
        distributed: Distributed,
        progress: Progress,
    ) -> Generator[Features]:
        """Yield the features of each chunk, from a single pass of the data loader."""
        dataset = in_whole_batches(dataset)
        indices = [index for chunk in chunks for index in chunk]
        with closing(over_videos(model, dataset, indices, distributed, progress)) as videos:
            for chunk in chunks:
                yield self._chunk(chunk, videos, dataset)

    def _chunk(self, chunk: range, videos: Iterable[tuple[Views, Tensor | None]], dataset: ViewDataset) -> Features:
        feature_NVD, labels, sample_ids, video_ids, unreadable = [], [], [], [], {}
        for _, (video, feature_VD) in zip(chunk, videos, strict=False):
            if feature_VD is None:
                unreadable[video.sample_id] = video.reason
                continue
            feature_NVD.append(feature_VD.half())
            labels.append(video.label)
            sample_ids.append(video.sample_id)
            video_ids.append(video.video_id)
        empty = torch.zeros(0, dataset.num_views, dataset.model.width, dtype=torch.float16)
        return Features(
            feature_NVD=torch.stack(feature_NVD) if feature_NVD else empty,
            label_N=torch.tensor(labels, dtype=torch.int64),
            sample_ids=sample_ids,
            unreadable=unreadable,
            video_ids=video_ids if video_ids != sample_ids else [],
        )

    def _file(self, chunk: range) -> Path:
        return self.folder / f"{self.split}-{chunk.start // VIDEOS_PER_CHUNK:05d}.safetensors"

    def _save(self, chunk: range, features: Features) -> None:
        metadata = {"key": self.key, "sample_ids": json.dumps(features.sample_ids)}
        metadata["video_ids"] = json.dumps(features.video_ids or features.sample_ids)
        metadata["unreadable"] = json.dumps(features.unreadable)
        tensors = {"feature_NVD": features.feature_NVD, "label_N": features.label_N}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._file(chunk), tensors, metadata)

    def _is_there(self, chunk: range) -> bool:
        """Whether the chunk has been computed. UserError if it was computed with other settings."""
        if not self._file(chunk).exists():
            return False
        had, wanted = json.loads(self._read(chunk).metadata["key"]), json.loads(self.key)
        # An earlier version had no such option.
        had.setdefault("short_videos", "stride")
        if differing := sorted(name for name in wanted if had.get(name) != wanted[name]):
            names = ", ".join(name.replace("_", "-") for name in differing)
            raise UserError(f"{self.folder} holds features of another {names}; take another run folder, or --force")
        return True

    def _read(self, chunk: range) -> TensorFile:
        path = self._file(chunk)
        try:
            file = load_tensors(path)
        except UserError as error:
            raise UserError(f"{error}; delete it, and the same command computes it again") from error
        if "key" not in file.metadata:
            raise UserError(f"{path} holds no features; take another run folder, or --force")
        return file

    def load(self, num_videos: int) -> Features:
        """Load all chunks of a split with `num_videos` videos, in order."""
        tensors: list[dict[str, Tensor]] = []
        sample_ids: list[str] = []
        video_ids: list[str] = []
        unreadable: dict[str, str] = {}
        for start in range(0, num_videos, VIDEOS_PER_CHUNK):
            file = self._read(range(start, start + 1))
            tensors.append(file.tensors)
            video_ids += json.loads(file.metadata["video_ids"])
            # An earlier version had whole videos only.
            sample_ids += json.loads(file.metadata.get("sample_ids", file.metadata["video_ids"]))
            unreadable |= json.loads(file.metadata["unreadable"])
        if not sample_ids:
            raise UserError(f"no video of split {self.split!r} can be read, of {num_videos}; run `mgm-prep verify`")
        joined = {name: torch.cat([chunk[name] for chunk in tensors]) for name in ("feature_NVD", "label_N")}
        return Features(**joined, sample_ids=sample_ids, unreadable=unreadable, video_ids=video_ids)

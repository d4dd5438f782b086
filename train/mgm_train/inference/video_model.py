"""A trained model in eval mode: features and predictions of videos, wherever these come from.

    model = mgm_train.load("runs/mgm-ft")
    feature_D = model.features("clip.mp4")
    model.predict("clip.mp4")

Axes: B videos · V views · C colours · T frames · H,W pixels · N tokens · D width · K classes.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mgm_shared.errors import UserError
from mgm_shared.store import Video
from mgm_train.checkpoint.completeness import holds_classifier
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.weights import Weights
from mgm_train.data.augmentation.augment import view_boxes
from mgm_train.data.sampling import view_indices
from mgm_train.data.views import View, read_views
from mgm_train.evaluation.features import FrozenEncoder
from mgm_train.inference.video_file import ArrayVideo, FileVideo

VideoSource = Video | NDArray[np.uint8] | str | os.PathLike[str]

# The paper's, where the weights do not record how their clips were sampled.
DEFAULT_SAMPLING: dict[str, Any] = {"stride": 4, "sampling": "dense", "short_videos": "stride"}
CLIPS_AT_ONCE = 16


def load(source: str | os.PathLike[str]) -> "VideoModel":
    """Load a trained encoder, with its classifier where the source has one, in eval mode on the CPU.

    Args:
        source: A run folder of `pretrain` or `finetune`; a weights file; a folder that transformers saved
            (VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel); a checkpoint of VideoMAE or
            VideoMAEv2 (.pth), read without running code from it.

    Raises:
        UserError: There is nothing to read, or the tensors are not those of the model that their shapes suggest.
    """
    return VideoModel(load_source(source))


class VideoModel(nn.Module):
    """An encoder, and a classifier if it was fine-tuned. Move it with `.to("cuda")`.

    `config` says which clips it takes, `classes` are the names of its classes (empty for an encoder).
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.config = weights.model
        self.encoder = FrozenEncoder(weights)
        self.classes: list[str] = []
        self.head: nn.Module = nn.Identity()
        # The head of a detector is for boxes: a detector is loaded as an encoder.
        if holds_classifier(weights.state):
            self.classes = weights.classes
            head = nn.Linear(self.config.width, len(self.classes))
            head.load_state_dict({name: weights.state[f"head.{name}"] for name in ("weight", "bias")})
            self.head = head
        self.sampling = DEFAULT_SAMPLING | json.loads(weights.metadata.get("mgm_sampling", "{}"))
        self.eval().requires_grad_(False)

    def forward(self, frames_BCTHW: Tensor) -> Tensor:
        """Logits (B, K) of a classifier, features (B, D) of an encoder. uint8 frames are normalised inside."""
        output: Tensor = self.head(self.encoder(frames_BCTHW))
        return output

    def features(self, videos: VideoSource | Sequence[VideoSource], *, tokens: bool = False, stride: int = 0) -> Tensor:
        """Features of one video, (D,), or of a list of videos, (B, D), float32 on the CPU.

        Each video gives one clip: the square in the middle of the frames in the middle.

        Args:
            videos: A `Video` of a store, frames (T, H, W, 3) uint8 in RGB, or the path of a video file; or a list of
                these. Frames that are exactly as many as the model's clip has are taken as they are.
            tokens: Return the tokens of the last block and its norm, (N, D) or (B, N, D), instead of their mean.
            stride: Distance between frames; 0 is the stride of the fine-tuning, or 4.

        Raises:
            UserError: A file cannot be decoded, or an array has another shape or type.
        """
        is_one, sources = _listed(videos)
        run = self._tokens if tokens else self.encoder
        output = self._in_batches(run, [self.clips(source, stride=stride)[0] for source in sources])
        return output[0] if is_one else output

    def predict(
        self,
        videos: VideoSource | Sequence[VideoSource],
        *,
        top: int = 5,
        stride: int = 0,
        num_temporal_views: int = 1,
        num_spatial_views: int = 1,
    ) -> Any:
        """The most likely classes of a video, as a list of (name, probability); of a list of videos a list of these.

        The probabilities are the mean over the views. Arguments and errors are those of `features`; a UserError is
        also raised for an encoder without a classifier.
        """
        if not self.classes:
            raise UserError("this model has no classifier: load the run of `mgm-train finetune`")
        is_one, sources = _listed(videos)
        views = (num_temporal_views, num_spatial_views)
        found = [self._ranked(self.clips(source, stride=stride, views=views), top) for source in sources]
        return found[0] if is_one else found

    def clips(self, source: VideoSource, *, stride: int = 0, views: tuple[int, int] = (1, 1)) -> Tensor:
        """The clips of a video that the model sees, (V, 3, T, H, W) uint8; `views` are temporal and spatial."""
        video, side_px, num_frames = _opened(source), self.config.image_px, self.config.num_frames
        options = self.sampling | ({"stride": stride} if stride else {})
        if isinstance(video, ArrayVideo) and video.num_frames == num_frames:
            options["stride"] = 1
        indices_VT = view_indices(
            video.num_frames, num_frames, options["stride"], views[0], options["sampling"], options["short_videos"]
        )
        wanted, place_VT = np.unique(indices_VT, return_inverse=True)
        boxes = view_boxes(video.height, video.width, views[1])
        shown = read_views(video, wanted, [View(box=box, size_px=side_px) for box in boxes])
        places = place_VT.reshape(indices_VT.shape)
        return torch.from_numpy(np.stack([frames_CTHW[:, place_T] for place_T in places for frames_CTHW in shown]))

    def _tokens(self, frames_BCTHW: Tensor) -> Tensor:
        tokens_BND: Tensor = self.encoder.encoder(frames_BCTHW)
        return tokens_BND

    def _ranked(self, clips_VCTHW: Tensor, top: int) -> list[tuple[str, float]]:
        probability_K = self._in_batches(self, list(clips_VCTHW)).softmax(dim=1).mean(dim=0)
        best = probability_K.topk(min(top, len(self.classes)))
        return [(self.classes[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    @torch.inference_mode()
    def _in_batches(self, run: Any, clips: Sequence[Tensor]) -> Tensor:
        device = next(self.parameters()).device
        batches = [clips[start : start + CLIPS_AT_ONCE] for start in range(0, len(clips), CLIPS_AT_ONCE)]
        return torch.cat([run(torch.stack(list(batch)).to(device)).float().cpu() for batch in batches])


def _listed(videos: VideoSource | Sequence[VideoSource]) -> tuple[bool, list[VideoSource]]:
    """Whether it is one video, and all as a list."""
    if isinstance(videos, (list, tuple)):
        return False, list(videos)
    return True, [videos]  # type: ignore[list-item]


def _opened(source: VideoSource) -> Any:
    if isinstance(source, (str, os.PathLike)):
        return FileVideo(Path(source))
    if hasattr(source, "pictures"):
        return source
    frames_THWC = np.asarray(source)
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or frames_THWC.dtype != np.uint8 or not len(frames_THWC):
        raise UserError(f"frames must be uint8 (T, H, W, 3), not {frames_THWC.dtype} {frames_THWC.shape}")
    return ArrayVideo(frames_THWC)

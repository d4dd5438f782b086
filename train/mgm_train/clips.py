"""From a store to clips: which frames of a video, their motion, and the datasets of pretraining and fine-tuning.

A sample depends on (seed, epoch, index) alone, so workers hold no state and a resumed run draws what it would have.
Cropping, flipping and masking come in as callables: `augment.py` and `masking.py` have them.

Axes: T sampled frames · S stored frames, from the first sampled to the last · V views · H,W pixels · C = RGB ·
Y,X cells of 8×8 px · 2 = (dx, dy) px per stored frame interval · N tokens · B clips of a batch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mgm_shared.errors import UserError
from mgm_shared.store import Store, Video
from mgm_train.classes import label_numbers, split_rows

Sample = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames (T, H, W, 3) uint8 and their motion (T, H/8, W/8, 2), NaN = missing; label −1 = none.

    `motion_TYX2` has no cells (T, 0, 0, 2) where nobody needs motion.
    """

    frames_THWC: NDArray[np.uint8]
    motion_TYX2: NDArray[np.float32]
    label: int
    video_id: str


Augment = Callable[[Clip, Generator], Clip]
MaskMaker = Callable[[Clip, Generator], NDArray[np.bool_]]
ReadField = Callable[[Video, slice], NDArray[np.float32]]


def fitting_stride(num_frames_in_video: int, num_frames: int, stride: int) -> int:
    """The largest stride up to `stride` at which the clip fits into the video; 1 when none does."""
    return min(stride, max(1, (num_frames_in_video - 1) // max(1, num_frames - 1)))


def _dense_indices(start: int, num_frames_in_video: int, num_frames: int, stride: int) -> NDArray[np.int64]:
    return np.minimum(start + stride * np.arange(num_frames), num_frames_in_video - 1)


def _num_starts(num_frames_in_video: int, num_frames: int, stride: int) -> int:
    return max(1, num_frames_in_video - (num_frames - 1) * stride)


def sample_indices(num_frames_in_video: int, num_frames: int, stride: int, rng: Generator) -> NDArray[np.int64]:
    """A run of frames at `stride` from a random start, (T,), for training.

    In a short video the stride shrinks until the clip fits; where even stride 1 is too long, the last frame repeats.
    """
    stride = fitting_stride(num_frames_in_video, num_frames, stride)
    start = int(rng.integers(_num_starts(num_frames_in_video, num_frames, stride)))
    return _dense_indices(start, num_frames_in_video, num_frames, stride)


def segment_indices(num_frames_in_video: int, num_frames: int, rng: Generator | None) -> NDArray[np.int64]:
    """One frame of each of `num_frames` equal parts of the video, (T,) (TSN): at random, or the middle without `rng`.

    Frames repeat in place, spread over the clip, when the video has fewer.
    """
    offset_T = np.full(num_frames, 0.5) if rng is None else rng.random(num_frames)
    return ((np.arange(num_frames) + offset_T) * num_frames_in_video / num_frames).astype(np.int64)


def view_indices(
    num_frames_in_video: int, num_frames: int, stride: int, num_views: int, sampling: str
) -> NDArray[np.int64]:
    """The frames of each view of a test, (V, T), without chance.

    dense: runs at `stride`, evenly spread from the first frame to the last; one view takes the middle. segment: the
    middles of V·T equal parts, dealt out in turn, so that every view spans the video.
    """
    if sampling == "segment":
        return segment_indices(num_frames_in_video, num_frames * num_views, None).reshape(num_frames, num_views).T
    stride = fitting_stride(num_frames_in_video, num_frames, stride)
    last_start = _num_starts(num_frames_in_video, num_frames, stride) - 1
    starts = np.linspace(0, last_start, num_views) if num_views > 1 else np.array([last_start // 2])
    rows = [_dense_indices(round(start), num_frames_in_video, num_frames, stride) for start in starts.tolist()]
    return np.stack(rows)


def motion_between(motion_SYX2: NDArray[np.float32], indices_T: NDArray[np.int64]) -> NDArray[np.float32]:
    """Motion of a strided clip, (T, Y, X, 2), from the motion of every stored frame indices_T[0] … indices_T[-1].

    In a clip "the frame before" is the sampled one before: its motion is the mean, over the stored frames since then,
    of the vectors that exist, which also bridges I frames. The first frame keeps its own; a repeated one has not moved.
    """
    is_known_SYX1 = ~np.isnan(motion_SYX2[..., :1])
    known_SYX2 = np.where(is_known_SYX1, motion_SYX2, np.float32(0))
    starts_T = np.concatenate([[0], indices_T[:-1] - indices_T[0] + 1])
    # A repeated frame's stretch is empty: reduceat gives it some element, which is overwritten below.
    starts_T = np.minimum(starts_T, len(motion_SYX2) - 1)
    total_TYX2 = np.add.reduceat(known_SYX2, starts_T, axis=0)
    count_TYX1 = np.add.reduceat(is_known_SYX1.astype(np.float32), starts_T, axis=0)
    motion_TYX2 = np.divide(total_TYX2, count_TYX1, out=np.full_like(total_TYX2, np.nan), where=count_TYX1 > 0)
    motion_TYX2[1:][np.diff(indices_T) == 0] = 0
    return motion_TYX2


def vectors(video: Video, frames: slice) -> NDArray[np.float32]:
    """The codec's vectors at some stored frames, (S, Y, X, 2): the `ReadField` of the paper."""
    return video.motion[frames]


def read_clip(
    video: Video, indices_T: NDArray[np.int64], *, label: int = -1, read_field: ReadField | None = vectors
) -> Clip:
    """Read the frames at ascending `indices_T` and the motion between them, or what `read_field` reads in its place.

    UserError names a video that is damaged.
    """
    try:
        frames_THWC = video.frames[indices_T]
        motion_TYX2 = np.zeros((len(indices_T), 0, 0, 2), np.float32)
        if read_field is not None:
            motion_SYX2 = read_field(video, slice(int(indices_T[0]), int(indices_T[-1]) + 1))
            motion_TYX2 = motion_between(motion_SYX2, indices_T)
    except OSError as error:
        raise UserError(f"video {video.video_id!r} cannot be read: {error}") from error
    return Clip(frames_THWC=frames_THWC, motion_TYX2=motion_TYX2, label=label, video_id=video.video_id)


@dataclass(eq=False)
class _ClipDataset(Dataset[list[Sample]]):
    """What both datasets are told: where the clips are, how long they are, how they are cropped."""

    store: Store
    _: KW_ONLY
    num_frames: int
    stride: int
    augment: Augment
    split: str = "train"
    repeats: int = 1
    seed: int = 0

    def _generators(self, key: tuple[int, int]) -> list[Generator]:
        """One for each repeat; the first also draws the frames, which all repeats share."""
        return [np.random.default_rng((self.seed, *key, repeat)) for repeat in range(self.repeats)]


@dataclass(eq=False)
class PretrainDataset(_ClipDataset):
    """Clips with a mask, indexed by (epoch, index): a list of `repeats` samples from one read of the video.

    A sample is {"frames_CTHW": uint8, "mask_N": bool (True = hidden), "label": −1, "index": int}.
    """

    _: KW_ONLY
    mask: MaskMaker
    read_field: ReadField = vectors

    def __post_init__(self) -> None:
        self.rows = split_rows(self.store, self.split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        rngs = self._generators(key)
        video = self.store.video_at(int(self.rows[key[1]]))
        indices_T = sample_indices(video.num_frames, self.num_frames, self.stride, rngs[0])
        clip = read_clip(video, indices_T, read_field=self.read_field)
        samples = []
        for rng in rngs:
            augmented = self.augment(clip, rng)
            mask_N = torch.from_numpy(self.mask(augmented, rng))
            samples.append({**_sample(augmented, key[1]), "mask_N": mask_N})
        return samples


@dataclass(eq=False)
class LabelledDataset(_ClipDataset):
    """Clips with a label, indexed by (epoch, index): a list of `repeats` samples from one read of the video.

    A sample is {"frames_CTHW": uint8, "label": place in `classes`, "index": int}; a label that is not in `classes` is a
    UserError. `sampling` is "dense", frames at the stride, or "segment", frames of the whole video (TSN).
    """

    _: KW_ONLY
    classes: list[str]
    class_map: Mapping[str, str] | None = None
    sampling: str = "dense"

    def __post_init__(self) -> None:
        self.rows, self.labels = label_numbers(self.store, self.split, self.classes, self.class_map)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        rngs = self._generators(key)
        video, label = self.store.video_at(int(self.rows[key[1]])), int(self.labels[key[1]])
        clip = read_clip(video, self._indices(video.num_frames, rngs[0]), label=label, read_field=None)
        return [_sample(self.augment(clip, rng), key[1]) for rng in rngs]

    def _indices(self, num_frames_in_video: int, rng: Generator) -> NDArray[np.int64]:
        if self.sampling == "segment":
            return segment_indices(num_frames_in_video, self.num_frames, rng)
        return sample_indices(num_frames_in_video, self.num_frames, self.stride, rng)


def _sample(clip: Clip, index: int) -> Sample:
    num_frames, height, width, _ = clip.frames_THWC.shape
    frames_CTHW = np.empty((3, num_frames, height, width), np.uint8)
    for t, frame_HWC in enumerate(clip.frames_THWC):
        # Five times as fast as numpy's or torch's transpose.
        cv2.split(frame_HWC, list(frames_CTHW[:, t]))
    return {"frames_CTHW": torch.from_numpy(frames_CTHW), "label": clip.label, "index": index}


def collate(videos: Iterable[list[Sample]]) -> dict[str, torch.Tensor]:
    """The samples of several videos as one batch; the repeats of a video stand side by side.

    Its keys are frames_BCTHW (uint8), label_B, index_B (int64), and mask_BN (bool) where the samples have masks.
    """
    samples = [sample for video in videos for sample in video]
    batch = {
        "frames_BCTHW": torch.stack([sample["frames_CTHW"] for sample in samples]),
        "label_B": torch.tensor([sample["label"] for sample in samples]),
        "index_B": torch.tensor([sample["index"] for sample in samples]),
    }
    if "mask_N" in samples[0]:
        batch["mask_BN"] = torch.stack([sample["mask_N"] for sample in samples])
    return batch


def start_worker(worker_id: int) -> None:
    """For DataLoader's `worker_init_fn`: one thread a worker, since there are as many workers as cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

"""Read clips from a store: frames, their motion, and the datasets of pretraining and fine-tuning.

A sample depends on (seed, epoch, index) only. Workers therefore hold no state, and a resumed run reads the same
samples. Augmentation and masking are passed in; see `augmentation/` and `masking/`.

Axes: T sampled frames · S stored frames, from the first sampled to the last · H,W pixels · C = RGB ·
Y,X cells of 8×8 px · 2 = (dx, dy) px per stored frame interval · N tokens · B clips of a batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mgm_shared.geometry import CELL_PX
from mgm_shared.kernel import kernel
from mgm_shared.samples import SampleSource
from mgm_shared.schema import MISSING, MOTION_UNITS_PER_PX
from mgm_shared.store import Video
from mgm_train.data.augmentation.device_augment import Changes
from mgm_train.data.device_decoding import EncodedClip, pack_encoded
from mgm_train.data.labels import label_numbers, label_subset, split_rows
from mgm_train.data.packed_batch import Allocate, fresh
from mgm_train.data.sampling import sample_indices, segment_indices
from mgm_train.data.views import View, read_views, view_motion, view_share

Sample = dict[str, Any]

# A stream of random numbers apart from those of the repeats, which are counted from 0.
DECODING_DRAW = 2**31


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames (3, T, H, W) uint8 and their motion (T, H/8, W/8, 2), NaN = missing; label −1 = none.

    `motion_TYX2` is empty, (T, 0, 0, 2), when motion was not asked for. `problem` says why the sample could not be
    read; the clip is then black and has no motion.
    """

    frames_CTHW: NDArray[np.uint8]
    motion_TYX2: NDArray[np.float32]
    label: int
    sample_id: str
    problem: str = ""
    changes: Changes | None = None
    """What the device has still to do to the pixels."""
    encoded: EncodedClip | None = None
    """The frames as they are stored, for the device to decode; `frames_CTHW` has only their shape then."""
    targets: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Targets of pretraining that are no function of the frames, by name: (N, P) each, NaN = missing."""
    intra_TYX: NDArray[np.float32] | None = None
    """Share of the stored frames since the frame before in which a cell is intra, if it was read with the motion."""

    @property
    def frames_THWC(self) -> NDArray[np.uint8]:
        """The frames as pictures; a view."""
        return self.frames_CTHW.transpose(1, 2, 3, 0)


class Augment(Protocol):
    """Random augmentation of a clip; its frames and their motion share every draw."""

    def view(self, height: int, width: int, rng: Generator) -> View:
        """Draw the view of a video of this size."""

    def finish(self, clip: Clip, rng: Generator) -> Clip:
        """Change the pixels of the clip."""


MaskFunction = Callable[[Clip, Generator], NDArray[np.bool_] | NDArray[np.int8]]
ReadField = Callable[[Video, slice], NDArray[np.float32]]


class ReadTarget(Protocol):
    """Reads a target of pretraining for a clip, as a view shows it: (N, P) float32 for all tokens, NaN = missing.

    It has no random numbers, and is pickled for the data loading workers.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(N, P)."""

    def __call__(self, video: Video, indices_T: NDArray[np.int64], view: View) -> NDArray[np.float32]:
        """The target of the clip of the stored frames `indices_T`. OSError for damaged data."""


def motion_between(motion_SYX2: NDArray[np.float32], indices_T: NDArray[np.int64]) -> NDArray[np.float32]:
    """Motion of a strided clip, (T, Y, X, 2), from the motion of every stored frame indices_T[0] … indices_T[-1].

    The motion of a sampled frame is measured from the sampled frame before it: the mean of the existing vectors of the
    stored frames since then, which also bridges I frames. The first frame keeps its own motion; a repeated one has 0.
    Fields with another number of components are averaged in the same way.
    """
    motion_TYX2 = np.empty((len(indices_T), *motion_SYX2.shape[1:]), np.float32)
    flat_SK = np.ascontiguousarray(motion_SYX2).reshape(len(motion_SYX2), -1)
    _average(flat_SK, indices_T - indices_T[0] + 1, motion_TYX2.reshape(len(motion_TYX2), -1))
    return motion_TYX2


@kernel
def _average(motion_SK: NDArray[np.float32], stop_T: NDArray[np.int64], mean_TK: NDArray[np.float32]) -> None:
    """Frame t of the clip is the mean of the stored frames from stop t−1 to stop t; K is Y·X·2."""
    start = 0
    num_K = np.empty(mean_TK.shape[1], np.float32)
    for t in range(len(stop_T)):
        mean_K = mean_TK[t]
        mean_K[:] = 0
        num_K[:] = 0
        for s in range(start, stop_T[t]):
            motion_K = motion_SK[s]
            for k in range(len(mean_K)):
                # NaN is the one number that differs from itself.
                is_known = motion_K[k] == motion_K[k]
                mean_K[k] += motion_K[k] if is_known else np.float32(0)
                num_K[k] += np.float32(is_known)
        if start < stop_T[t]:
            for k in range(len(mean_K)):
                mean_K[k] = mean_K[k] / num_K[k] if num_K[k] else np.float32(np.nan)
        start = stop_T[t]


def vectors(video: Video, frames: slice) -> NDArray[np.float32]:
    """Read the motion vectors of some stored frames, (S, Y, X, 2): the guidance of the paper."""
    packed_SYX2 = video.packed_motion[frames]
    motion_SYX2 = np.empty(packed_SYX2.shape, np.float32)
    _unpack(packed_SYX2.reshape(-1), motion_SYX2.reshape(-1))
    return motion_SYX2


@kernel
def _unpack(packed: NDArray[np.int16], motion: NDArray[np.float32]) -> None:
    """`schema.unpack_motion` in one pass, in a sixth of the time."""
    for k in range(len(packed)):
        is_known = packed[k] != MISSING
        motion[k] = packed[k] * np.float32(1 / MOTION_UNITS_PER_PX) if is_known else np.float32(np.nan)


def read_clips(
    video: Video,
    indices_T: NDArray[np.int64],
    views: Sequence[View],
    *,
    label: int = -1,
    read_field: ReadField | None = vectors,
) -> list[Clip]:
    """Read the frames at ascending `indices_T` and the motion between them, once per view. OSError for damaged data.

    `read_field` reads what stands in the place of the motion, of two components, or three if the last one tells which
    cells are intra; None reads nothing.
    """
    fields = _fields(video, indices_T, views, read_field)
    return [
        Clip(frames_CTHW=frames, motion_TYX2=motion, label=label, sample_id=video.sample_id, intra_TYX=intra)
        for frames, (motion, intra) in zip(read_views(video, indices_T, views), fields, strict=True)
    ]


def _fields(
    video: Video, indices_T: NDArray[np.int64], views: Sequence[View], read_field: ReadField | None
) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """What each view shows of the motion between the frames, and of its intra cells where `read_field` tells them.

    The motion is empty where `read_field` is None.
    """
    if read_field is None:
        return [(np.zeros((len(indices_T), 0, 0, 2), np.float32), None)] * len(views)
    field_SYXK = read_field(video, slice(int(indices_T[0]), int(indices_T[-1]) + 1))
    field_TYXK = motion_between(field_SYXK, indices_T)
    has_intra = field_TYXK.shape[-1] > 2
    return [
        (view_motion(field_TYXK[..., :2], view), view_share(field_TYXK[..., 2], view) if has_intra else None)
        for view in views
    ]


def read_encoded_clips(
    video: Video, indices_T: NDArray[np.int64], views: Sequence[View], *, label: int = -1, read_field: ReadField | None
) -> list[Clip]:
    """`read_clips` with frames that the device decodes later: only their bytes are read, and their checksums checked.

    OSError for damaged data, ValueError for a store whose frames are not JPEG.
    """
    if video.frame_codec != "jpeg":
        raise ValueError(f"the frames of {video.sample_id} are stored as {video.frame_codec}, not as JPEG")
    wanted, place_T = np.unique(indices_T, return_inverse=True)
    jpegs = video.stored_pictures(wanted)
    clips = []
    for view, (motion_TYX2, intra_TYX) in zip(views, _fields(video, indices_T, views, read_field), strict=True):
        shape = (3, len(indices_T), *view.shape_px)
        clips.append(
            Clip(
                # It has a shape and no memory of its own.
                frames_CTHW=np.broadcast_to(np.uint8(0), shape),
                motion_TYX2=motion_TYX2,
                label=label,
                sample_id=video.sample_id,
                intra_TYX=intra_TYX,
                encoded=EncodedClip(jpegs=jpegs, place_T=place_T, view=view),
            )
        )
    return clips


@dataclass(eq=False)
class ClipDataset(Dataset[list[Sample]]):
    """What both datasets share: the samples, the length and stride of clips, the augmentation.

    `device_share` of the samples, drawn by (seed, epoch, index), have frames that the device decodes.
    """

    store: SampleSource
    _: KW_ONLY
    num_frames: int
    stride: int
    augment: Augment
    split: str = "train"
    repeats: int = 1
    seed: int = 0
    short_videos: str = "stride"
    device_share: float = 0.0
    read_targets: Mapping[str, ReadTarget] = field(default_factory=dict)
    rows: NDArray[np.int64] = field(init=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def _is_decoded_on_device(self, key: tuple[int, int]) -> bool:
        if self.device_share in (0, 1):
            return self.device_share == 1
        # A generator of its own: what else is drawn does not depend on it.
        return bool(np.random.default_rng((self.seed, *key, DECODING_DRAW)).random() < self.device_share)

    def _generators(self, key: tuple[int, int]) -> list[Generator]:
        """One generator per repeat. The first one also draws the frames, which all repeats share."""
        return [np.random.default_rng((self.seed, *key, repeat)) for repeat in range(self.repeats)]

    def _dense_indices(self, num_frames_in_video: int, rng: Generator) -> NDArray[np.int64]:
        return sample_indices(num_frames_in_video, self.num_frames, self.stride, rng, self.short_videos)

    def _clips(
        self,
        key: tuple[int, int],
        video: Video,
        indices_T: NDArray[np.int64],
        rngs: list[Generator],
        *,
        label: int,
        read_field: ReadField | None,
    ) -> list[Clip]:
        """One clip per repeat, all of the same frames; blank clips if the video cannot be read."""
        views = [self.augment.view(video.height, video.width, rng) for rng in rngs]
        read = read_encoded_clips if self._is_decoded_on_device(key) else read_clips
        try:
            clips = read(video, indices_T, views, label=label, read_field=read_field)
            if self.read_targets:
                clips = [self._with_targets(*pair, video, indices_T) for pair in zip(clips, views, strict=True)]
        except OSError as error:
            return [self._blank(video.sample_id, str(error), len(indices_T), view, label) for view in views]
        return [self.augment.finish(clip, rng) for clip, rng in zip(clips, rngs, strict=True)]

    def _with_targets(self, clip: Clip, view: View, video: Video, indices_T: NDArray[np.int64]) -> Clip:
        return replace(clip, targets={name: read(video, indices_T, view) for name, read in self.read_targets.items()})

    def _blank(self, sample_id: str, problem: str, num_frames: int, view: View, label: int) -> Clip:
        """A black clip in the place of one that cannot be read, so that all batches have the same shape."""
        height, width = view.shape_px
        targets = {name: np.full(read.shape, np.nan, np.float32) for name, read in self.read_targets.items()}
        return Clip(
            frames_CTHW=np.zeros((3, num_frames, height, width), np.uint8),
            motion_TYX2=np.full((num_frames, height // CELL_PX, width // CELL_PX, 2), np.nan, np.float32),
            label=label,
            sample_id=sample_id,
            problem=problem,
            targets=targets,
        )


@dataclass(eq=False)
class PretrainDataset(ClipDataset):
    """Clips with a mask, indexed by (epoch, index): a list of `repeats` samples from one read of the video.

    A sample is {"frames_CTHW": uint8, "mask_N": bool (True = masked), "label": −1, "index": int}, "targets" by name
    where `read_targets` has some, and "unreadable": (sample_id, reason) where it is blank. A mask that leaves tokens
    out is int8: −1 left out, 0 visible, 1 masked.
    """

    _: KW_ONLY
    mask: MaskFunction
    read_field: ReadField = vectors

    def __post_init__(self) -> None:
        self.rows = split_rows(self.store, self.split)

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        rngs = self._generators(key)
        video = self.store.video_at(int(self.rows[key[1]]))
        indices_T = self._dense_indices(video.num_frames, rngs[0])
        samples = []
        clips = self._clips(key, video, indices_T, rngs, label=-1, read_field=self.read_field)
        for clip, rng in zip(clips, rngs, strict=True):
            mask_N = torch.from_numpy(self.mask(clip, rng))
            samples.append({**_sample(clip, key[1]), "mask_N": mask_N})
        return samples


@dataclass(eq=False)
class LabelledDataset(ClipDataset):
    """Clips with a label, indexed by (epoch, index): a list of `repeats` samples from one read of the video.

    A sample is {"frames_CTHW": uint8, "label": place in `classes`, "index": int}; a label that is not in `classes` is a
    UserError. `sampling` is "dense", frames at the stride, or "segment", frames of the whole video (TSN). Only
    `label_fraction` of the videos of each class are used; see `label_subset`.
    """

    _: KW_ONLY
    classes: list[str]
    class_map: Mapping[str, str] | None = None
    sampling: str = "dense"
    label_fraction: float = 1.0

    def __post_init__(self) -> None:
        rows, labels = label_numbers(self.store, self.split, self.classes, self.class_map)
        kept = label_subset(labels, self.label_fraction, self.seed)
        self.rows, self.labels = rows[kept], labels[kept]

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        rngs = self._generators(key)
        video, label = self.store.video_at(int(self.rows[key[1]])), int(self.labels[key[1]])
        indices_T = self._indices(video.num_frames, rngs[0])
        clips = self._clips(key, video, indices_T, rngs, label=label, read_field=None)
        return [_sample(clip, key[1]) for clip in clips]

    def _indices(self, num_frames_in_video: int, rng: Generator) -> NDArray[np.int64]:
        if self.sampling == "segment":
            return segment_indices(num_frames_in_video, self.num_frames, rng)
        return self._dense_indices(num_frames_in_video, rng)


def _sample(clip: Clip, index: int) -> Sample:
    sample: Sample = {"label": clip.label, "index": index}
    if clip.encoded is None:
        sample["frames_CTHW"] = torch.from_numpy(clip.frames_CTHW)
    else:
        sample["encoded"] = clip.encoded
    sample |= {"changes": clip.changes} if clip.changes is not None else {}
    if clip.targets:
        sample["targets"] = {name: torch.from_numpy(values_NP) for name, values_NP in clip.targets.items()}
    return sample | ({"unreadable": (clip.sample_id, clip.problem)} if clip.problem else {})


def collate(videos: Iterable[list[Sample]], allocate: Allocate = fresh) -> dict[str, Any]:
    """Join the samples of several videos to a batch; the repeats of a video are adjacent. `allocate` gives its memory.

    Its keys are frames_BCTHW (uint8), label_B, index_B (int64), mask_BN (bool or int8) where the samples have masks,
    changes_B where their pixels are still to be changed on the device, and TARGET_BNP for each target that was read.
    Where the device decodes, frames_BCTHW has the clips that are decoded already, and `device_decoding.decode_batch`
    adds the others. Where they have boxes, `box_R5` holds those of all clips, each behind the number of its clip, and
    `target_RK` their actions. If videos could not be read, `unreadable` has their ids and reasons, and `kept_K` (int64)
    the indices of the samples that could; the others are blank.
    """
    samples = [sample for video in videos for sample in video]
    batch: dict[str, Any] = {
        "label_B": torch.tensor([sample["label"] for sample in samples]),
        "index_B": torch.tensor([sample["index"] for sample in samples]),
    }
    if decoded := [sample["frames_CTHW"] for sample in samples if "encoded" not in sample]:
        # In a worker into shared memory, which saves a copy.
        batch["frames_BCTHW"] = torch.stack(decoded, out=allocate("frames", (len(decoded), *decoded[0].shape)))
    if len(decoded) < len(samples):
        batch |= pack_encoded([sample.get("encoded") for sample in samples], allocate)
    if "mask_N" in samples[0]:
        batch["mask_BN"] = torch.stack([sample["mask_N"] for sample in samples])
    for name in samples[0].get("targets", ()):
        batch[f"{name}_BNP"] = torch.stack([sample["targets"][name] for sample in samples])
    if "box_R4" in samples[0]:
        numbers = [torch.full((len(sample["box_R4"]), 1), float(k)) for k, sample in enumerate(samples)]
        boxes = [
            torch.cat([number_R1, sample["box_R4"]], 1) for number_R1, sample in zip(numbers, samples, strict=True)
        ]
        batch |= {"box_R5": torch.cat(boxes), "target_RK": torch.cat([sample["target_RK"] for sample in samples])}
    if any("changes" in sample for sample in samples):
        # A blank clip has none.
        batch["changes_B"] = [sample.get("changes", Changes()) for sample in samples]
    unreadable = dict(sample["unreadable"] for sample in samples if "unreadable" in sample)
    if unreadable:
        kept = [k for k, sample in enumerate(samples) if "unreadable" not in sample]
        batch |= {"unreadable": unreadable, "kept_K": torch.tensor(kept, dtype=torch.int64)}
    return batch


def start_worker(worker_id: int) -> None:
    """A `worker_init_fn` for DataLoader: one thread per worker, since there is a worker per core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

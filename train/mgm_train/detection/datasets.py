"""Key frames as samples: random crops with labelled boxes for training, whole frames with all boxes for a test.

A sample depends on (seed, epoch, index) only, as everywhere.

Axes: R boxes of a clip · K actions · C colours · T frames · H,W pixels · 4 = left, top, right, bottom.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mgm_shared.errors import UserError
from mgm_shared.store import Video
from mgm_train.data.clips import Sample
from mgm_train.data.packed_batch import Allocate, fresh
from mgm_train.data.views import View
from mgm_train.data.workers import clip_bytes
from mgm_train.detection.box_tables import Moment
from mgm_train.detection.boxes_in_view import BoxAugment, extended, in_view
from mgm_train.detection.clip_frames import ClipReader, jitter_colours, padded, whole_frame
from mgm_train.detection.key_frames import KeyFrames

# Key frames whose crops are drawn to say how many boxes they leave out: AVA has 211,000.
NUM_COUNTED = 1000


@dataclass(eq=False, kw_only=True)
class DetectionDataset(Dataset[list[Sample]]):
    """Labelled key frames, indexed by (epoch, index): a list of `repeats` samples of the same frames.

    A sample is {"frames_CTHW": uint8, "box_R4": float32 px, "target_RK": float32, "label": −1, "index": int}. One that
    cannot be read is black, has no boxes, and "unreadable": (video id, reason). `row_of` has the video of each name.
    """

    noun: ClassVar[str] = "key frames"

    reader: ClipReader
    frames: KeyFrames
    row_of: Mapping[str, int]
    augment: BoxAugment
    colour_jitter: bool
    repeats: int
    seed: int

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        return [self._sample(key, repeat) for repeat in range(self.repeats)]

    def _rng(self, key: tuple[int, int], repeat: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key, repeat))

    def _cropped(self, index: int, rng: np.random.Generator) -> tuple[Video, View, NDArray[np.bool_]]:
        """The video of a key frame, a crop of it, and which of the boxes it keeps."""
        name, _ = self.frames.moments[index]
        video = self.reader.store.video_at(self.row_of[name])
        box_B4 = self.frames.box_B4[self.frames.boxes_of(index)]
        return video, *self.augment.view(box_B4, video.height, video.width, rng)

    def _sample(self, key: tuple[int, int], repeat: int) -> Sample:
        index, rng = key[1], self._rng(key, repeat)
        name, time_ms = self.frames.moments[index]
        of_frame = self.frames.boxes_of(index)
        box_B4, is_action_BK = self.frames.box_B4[of_frame], self.frames.is_action_BK[of_frame]
        video, view, is_kept_B = self._cropped(index, rng)
        box_R4 = self.augment.boxes(in_view(box_B4[is_kept_B], view, video.height, video.width), rng)
        sample = {"label": -1, "index": index}
        try:
            frames_CTHW = self.reader.read(self.row_of[name], time_ms, view)
        except OSError as error:
            blank_CTHW = torch.zeros((3, self.reader.num_frames, *view.shape_px), dtype=torch.uint8)
            none = {"box_R4": torch.zeros(0, 4), "target_RK": torch.zeros(0, is_action_BK.shape[1])}
            return {**sample, **none, "frames_CTHW": blank_CTHW, "unreadable": (video.video_id, str(error))}
        if self.colour_jitter:
            frames_CTHW = jitter_colours(frames_CTHW, rng)
        return {
            **sample,
            "frames_CTHW": torch.from_numpy(frames_CTHW),
            "box_R4": torch.from_numpy(box_R4.astype(np.float32)),
            "target_RK": torch.from_numpy(is_action_BK[is_kept_B].astype(np.float32)),
        }

    def describe_crops(self) -> str:
        """How many boxes the crops of the first epoch leave out, by at most `NUM_COUNTED` of its key frames."""
        counted = np.linspace(0, len(self) - 1, min(len(self), NUM_COUNTED)).round().astype(int).tolist()
        is_kept = [self._cropped(index, self._rng((0, index), 0))[2] for index in counted]
        num_kept, num_boxes = (sum(map(count, is_kept)) for count in (np.count_nonzero, len))
        text = f"crops leave out {num_boxes - num_kept} of {num_boxes} boxes"
        return f"{text} of {len(counted)} key frames, drawn anew in each epoch"


@dataclass(frozen=True, kw_only=True)
class WholeClip:
    """The clip of a key frame, padded, and its boxes in pixels, proposals first; without frames, the reason."""

    place: int
    """Its place in `ScoredFrames.moments`."""
    frames_CTHW: Tensor | None
    box_R4: NDArray[np.float32]
    reason: str = ""


@dataclass(frozen=True)
class ScoredFrames:
    """The key frames of a test: labelled boxes, proposals of a detector, and those that are not scored."""

    labelled: KeyFrames
    proposals: KeyFrames
    row_of: Mapping[str, int]
    num_excluded: int

    @classmethod
    def of(
        cls, labelled: KeyFrames, proposals: KeyFrames, row_of: Mapping[str, int], excluded: set[Moment]
    ) -> "ScoredFrames":
        """Without the excluded key frames, and without proposals for videos that have no labels.

        UserError when no key frame has a label.
        """
        is_labelled_F = np.isin(proposals.name_F, labelled.name_F)
        kept = [frames.without(excluded) for frames in (labelled, proposals.where(is_labelled_F))]
        if not len(kept[0]):
            raise UserError("no key frame has a label; is it the right split?")
        num_excluded = len({*labelled.moments, *proposals.where(is_labelled_F).moments} & excluded)
        return cls(kept[0], kept[1], row_of, num_excluded)

    @cached_property
    def moments(self) -> list[Moment]:
        """All key frames, with a label or a proposal."""
        return sorted({*self.labelled.moments, *self.proposals.moments})

    @cached_property
    def readable(self) -> list[int]:
        """The places in `moments` of those whose video is in the store."""
        return [place for place, (name, _) in enumerate(self.moments) if name in self.row_of]

    @property
    def missing(self) -> dict[str, str]:
        """The videos that the store does not have, with the reason why they are not scored."""
        count_of = Counter(name for name, _ in self.moments if name not in self.row_of)
        return {name: f"not in the store, so {count} key frames are not scored" for name, count in count_of.items()}

    @cached_property
    def _places(self) -> tuple[dict[Moment, int], dict[Moment, int]]:
        both = (self.proposals, self.labelled)
        of_both = [{moment: f for f, moment in enumerate(frames.moments)} for frames in both]
        return of_both[0], of_both[1]

    def slices(self, place: int) -> tuple[slice, slice]:
        """Where the boxes of a key frame lie in `proposals` and in `labelled`."""
        moment = self.moments[place]
        found = [
            frames.boxes_of(place_of[moment]) if moment in place_of else slice(0, 0)
            for frames, place_of in zip((self.proposals, self.labelled), self._places, strict=True)
        ]
        return found[0], found[1]

    def boxes(self, place: int) -> NDArray[np.float64]:
        """The boxes of a key frame, proposals first."""
        of_proposals, of_labels = self.slices(place)
        return np.concatenate([self.proposals.box_B4[of_proposals], self.labelled.box_B4[of_labels]])


@dataclass(eq=False, kw_only=True)
class WholeClips(Dataset[WholeClip]):
    """The whole frames round each key frame of a test. Their short side is `short_px`, padded to whole patches."""

    reader: ClipReader
    frames: ScoredFrames
    short_px: int
    patch_px: int

    def __len__(self) -> int:
        return len(self.frames.readable)

    @property
    def max_clip_bytes(self) -> int:
        """The bytes of the longest picture's clip, before it is padded."""
        sizes = self.reader.store.table.select(["height", "width"]).take(sorted({*self.frames.row_of.values()}))
        longest = max(max(sides) / min(sides) for sides in zip(*sizes.to_pydict().values(), strict=True))
        return int(clip_bytes(self.reader.num_frames, self.short_px) * longest)

    def __getitem__(self, index: int) -> WholeClip:
        place = self.frames.readable[index]
        name, time_ms = self.frames.moments[place]
        row = self.frames.row_of[name]
        video = self.reader.store.video_at(row)
        view = whole_frame(video.height, video.width, self.short_px)
        box_B4 = in_view(self.frames.boxes(place), view, video.height, video.width)
        box_R4 = extended(box_B4, *view.shape_px).astype(np.float32)
        try:
            frames_CTHW = self.reader.read(row, time_ms, view)
        except OSError as error:
            return WholeClip(place=place, frames_CTHW=None, box_R4=box_R4, reason=str(error))
        return WholeClip(place=place, frames_CTHW=torch.from_numpy(padded(frames_CTHW, self.patch_px)), box_R4=box_R4)


def collate_tests(clips: list[WholeClip], allocate: Allocate = fresh) -> dict[str, Any]:
    """A batch of a test: its clips, whose frames may differ in size and so have memory of their own."""
    del allocate
    return {"clips": clips}

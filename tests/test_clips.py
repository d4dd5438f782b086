"""What a clip shows, what its motion is, and that a sample depends on (seed, epoch, index) alone.

The store here is in memory: pixel (0, 0) of frame t of video k is (t, k, 0), so a clip tells where it came from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from synthetic import StandIn
from torch.utils.data import DataLoader

from mgm_shared.geometry import Box
from mgm_shared.pack import pack_motion
from mgm_shared.schema import MISSING, unpack_motion
from mgm_train.data.augmentation.augment import FinetuneAugment, PretrainAugment
from mgm_train.data.clips import (
    LabelledDataset,
    PretrainDataset,
    collate,
    motion_between,
    read_clips,
    start_worker,
    vectors,
)
from mgm_train.data.views import View
from mgm_train.masking.strategies import make_mask


@dataclass
class MemoryVideo(StandIn):  # type: ignore[misc]  # for a Video
    video_id: str
    frames: np.ndarray
    packed_motion: np.ndarray

    @property
    def sample_id(self) -> str:
        return self.video_id

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    @property
    def height(self) -> Any:
        return self.frames.shape[1]

    @property
    def width(self) -> Any:
        return self.frames.shape[2]

    def pictures(self, indices_T: Any) -> Iterator[Any]:
        yield from self.frames[indices_T]


@dataclass
class MemoryStore(StandIn):  # type: ignore[misc]  # for a Store
    lengths: dict[str, int]
    labels: dict[str, str | None] = field(default_factory=dict)
    splits: dict[str, str | None] = field(default_factory=dict)
    path: str = "memory"

    @property
    def table(self) -> Any:
        columns = {"video_id": list(self.lengths)}
        for name, values in (("label", self.labels), ("split", self.splits)):
            columns[name] = pa.array([values.get(video_id) for video_id in self.lengths], pa.string())
        return pa.table(columns)

    def video_at(self, row: Any) -> Any:
        return self[list(self.lengths)[row]]

    def __getitem__(self, video_id: Any) -> MemoryVideo:
        num_frames = self.lengths[video_id]
        frames_THWC = np.random.default_rng(0).integers(0, 256, (num_frames, 64, 80, 3), np.uint8)
        frames_THWC[:, 0, 0] = [(t, list(self.lengths).index(video_id), 0) for t in range(num_frames)]
        motion_TYX2 = np.ones((num_frames, 8, 10, 2), np.float32) * np.arange(num_frames)[:, None, None, None]
        return MemoryVideo(video_id, frames_THWC, pack_motion(motion_TYX2))


class Keep:
    """The 64×64 px at the left, as they are."""

    def view(self, height: Any, width: Any, rng: Any) -> Any:
        return LEFT

    def finish(self, clip: Any, rng: Any) -> Any:
        return clip


LEFT = View(box=Box(x=0, y=0, width=64, height=64), size_px=64)


def pretrain_dataset(store: Any, **settings: Any) -> PretrainDataset:
    mask = partial(mask_of, strategy="mgm")
    defaults: dict[str, Any] = {"num_frames": 16, "stride": 2, "augment": Keep(), "mask": mask}
    return PretrainDataset(store, **(defaults | settings))


def mask_of(clip: Any, rng: Any, strategy: Any) -> Any:
    return make_mask(strategy, clip.motion_TYX2[..., 0], ratio=0.75, rng=rng)


def frame_numbers(sample: Any) -> Any:
    return sample["frames_CTHW"][0, :, 0, 0].tolist()


@pytest.mark.parametrize("indices", [[2, 4, 6, 8], [0, 1, 2, 3], [5, 8, 9, 9, 9], [3, 3, 3], [7], [1, 4, 4, 6]])
def test_motion_between_sampled_frames_is_the_mean_of_the_known_vectors(indices: list[int]) -> None:
    rng = np.random.default_rng(0)
    stored_TYX2 = rng.normal(size=(10, 3, 2, 2)).astype(np.float32)
    stored_TYX2[rng.random((10, 3, 2)) < 0.4] = np.nan
    clip_TYX2 = motion_between(stored_TYX2[indices[0] : indices[-1] + 1], np.array(indices))
    for k, now in enumerate(indices):
        before = indices[k - 1] if k else now - 1
        for y in range(3):
            for x in range(2):
                known = [v for v in stored_TYX2[before + 1 : now + 1, y, x] if not np.isnan(v[0])]
                expected = [0, 0] if before == now else np.mean(known, axis=0) if known else [np.nan, np.nan]
                np.testing.assert_allclose(clip_TYX2[k, y, x], expected, rtol=1e-5)


def test_vectors_are_the_stored_motion() -> None:
    packed_SYX2 = np.random.default_rng(0).integers(-900, 900, (5, 3, 2, 2)).astype(np.int16)
    packed_SYX2[1, 2, 0] = MISSING
    video = MemoryVideo("a", np.zeros((5, 24, 16, 3), np.uint8), packed_SYX2)
    np.testing.assert_array_equal(vectors(video, slice(1, 4)), unpack_motion(packed_SYX2)[1:4])


def test_a_clip_holds_the_frames_and_motion_it_was_asked_for() -> None:
    (clip,) = read_clips(MemoryStore({"a": 5, "b": 40})["b"], np.array([3, 7, 11]), [LEFT], label=2)
    assert clip.frames_THWC[:, 0, 0, :2].tolist() == [[3, 1], [7, 1], [11, 1]]
    # The motion of frame t is t in this store: the means of {3}, {4 … 7} and {8 … 11}.
    assert clip.motion_TYX2[:, 0, 0, 0].tolist() == [3, 5.5, 9.5]
    assert (clip.label, clip.sample_id) == (2, "b")


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    store = MemoryStore({"a": 90, "b": 90, "c": 90})
    dataset = pretrain_dataset(store, augment=PretrainAugment(size_px=64))
    ((one,), (same,)) = dataset[3, 1], pretrain_dataset(store, augment=PretrainAugment(size_px=64))[3, 1]
    assert torch.equal(one["frames_CTHW"], same["frames_CTHW"])
    assert torch.equal(one["mask_N"], same["mask_N"])
    for other in (
        dataset[4, 1],
        dataset[3, 2],
        pretrain_dataset(store, seed=1, augment=PretrainAugment(size_px=64))[3, 1],
    ):
        assert not torch.equal(one["frames_CTHW"], other[0]["frames_CTHW"])
        assert not torch.equal(one["mask_N"], other[0]["mask_N"])


def test_a_pretraining_sample_has_the_promised_shapes() -> None:
    ((sample),) = pretrain_dataset(MemoryStore({"a": 90}), augment=PretrainAugment(size_px=64))[0, 0]
    assert sample["frames_CTHW"].shape == (3, 16, 64, 64)
    assert sample["frames_CTHW"].dtype == torch.uint8
    assert sample["mask_N"].shape == (8 * 4 * 4,)
    assert sample["mask_N"].sum() == 8 * 12
    assert (sample["label"], sample["index"]) == (-1, 0)


def test_repeats_share_the_frames_but_not_the_crop_and_mask() -> None:
    samples = pretrain_dataset(MemoryStore({"a": 90}), repeats=3)[0, 0]
    assert len(samples) == 3
    assert frame_numbers(samples[0]) == frame_numbers(samples[1]) == frame_numbers(samples[2])
    assert len({sample["mask_N"].numpy().tobytes() for sample in samples}) == 3


def test_a_batch_flattens_the_repeats_and_keeps_them_together() -> None:
    dataset = pretrain_dataset(MemoryStore({"a": 90, "b": 90}), repeats=2)
    batch = collate([dataset[0, 1], dataset[0, 0]])
    assert batch["frames_BCTHW"].shape == (4, 3, 16, 64, 64)
    assert batch["frames_BCTHW"].is_contiguous()
    assert batch["frames_BCTHW"][:, 1, 0, 0, 0].tolist() == [1, 1, 0, 0]
    assert batch["mask_BN"].shape == (4, 128)
    assert batch["index_B"].tolist() == [1, 1, 0, 0]
    assert batch["label_B"].dtype == torch.int64


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_batches_of_one_process(context: str) -> None:
    dataset = LabelledDataset(
        MemoryStore({"a": 40, "b": 40}, {"a": "x", "b": "y"}),
        num_frames=4,
        stride=2,
        augment=FinetuneAugment(size_px=32),
        classes=["x", "y"],
    )
    keys = [(0, 0), (0, 1), (1, 1), (1, 0)]
    in_a_worker: dict[str, Any] = {"num_workers": 1, "worker_init_fn": start_worker, "multiprocessing_context": context}
    here, there = (
        list(DataLoader(dataset, batch_size=2, sampler=keys, collate_fn=collate, **settings))
        for settings in (dict[str, Any](), in_a_worker)
    )
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one["frames_BCTHW"], other["frames_BCTHW"])
    assert [label for batch in there for label in batch["label_B"].tolist()] == [0, 1, 1, 0]


def test_labelled_clips_follow_their_sampling() -> None:
    store = MemoryStore({"a": 160}, {"a": "x"})
    for sampling, steps in (("dense", {2}), ("segment", set(range(1, 20)))):
        dataset = LabelledDataset(store, num_frames=16, stride=2, augment=Keep(), classes=["w", "x"], sampling=sampling)
        (sample,) = dataset[0, 0]
        assert set(np.diff(frame_numbers(sample)).tolist()) <= steps
        assert sample["label"] == 1
        assert "mask_N" not in sample
    assert frame_numbers(sample)[-1] >= 150


def test_a_share_of_the_labelled_videos_is_drawn_by_the_seed() -> None:
    names = [f"{k}" for k in range(20)]
    store = MemoryStore(dict.fromkeys(names, 16), {name: "xy"[int(name) % 2] for name in names})

    def videos(**settings: Any) -> tuple[list[int], list[int]]:
        clips: dict[str, Any] = {"num_frames": 4, "stride": 1, "augment": Keep(), "classes": ["x", "y"]}
        dataset = LabelledDataset(store, **clips, **settings)
        samples = [dataset[0, index][0] for index in range(len(dataset))]
        return [int(sample["frames_CTHW"][1, 0, 0, 0]) for sample in samples], [sample["label"] for sample in samples]

    few, labels = videos(label_fraction=0.3)
    assert labels == [number % 2 for number in few]
    assert (labels.count(0), labels.count(1)) == (3, 3)
    assert few != videos(label_fraction=0.3, seed=1)[0]
    assert videos()[0] == list(range(20))


def test_frames_keep_their_pixels_on_the_way_into_a_sample() -> None:
    store = MemoryStore({"a": 16})
    ((sample),) = pretrain_dataset(store, stride=1)[0, 0]
    assert np.array_equal(sample["frames_CTHW"].numpy(), store["a"].frames[:, :, :64].transpose(3, 0, 1, 2))

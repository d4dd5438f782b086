"""Which frames a clip has, what their motion is, and that a sample depends on (seed, epoch, index) alone.

The store here is in memory: pixel (0, 0) of frame t of video k is (t, k, 0), so a clip tells where it came from.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mgm_shared.errors import UserError
from mgm_train.augment import FinetuneAugment, PretrainAugment
from mgm_train.clips import (
    LabelledDataset,
    PretrainDataset,
    collate,
    fitting_stride,
    motion_between,
    read_clip,
    sample_indices,
    segment_indices,
    start_worker,
    view_indices,
)
from mgm_train.masking import make_mask

lengths = st.integers(1, 200)
clip_lengths = st.sampled_from([2, 8, 16])
seeds = st.integers(0, 2**32)


@dataclass
class MemoryVideo:
    video_id: str
    frames: np.ndarray
    motion: np.ndarray

    @property
    def num_frames(self):
        return len(self.frames)


@dataclass
class MemoryStore:
    lengths: dict[str, int]
    labels: dict[str, str | None] = field(default_factory=dict)
    splits: dict[str, str | None] = field(default_factory=dict)
    path: str = "memory"

    @property
    def table(self):
        columns = {"video_id": list(self.lengths)}
        for name, values in (("label", self.labels), ("split", self.splits)):
            columns[name] = pa.array([values.get(video_id) for video_id in self.lengths], pa.string())
        return pa.table(columns)

    def video_at(self, row):
        return self[list(self.lengths)[row]]

    def __getitem__(self, video_id):
        num_frames = self.lengths[video_id]
        frames_THWC = np.random.default_rng(0).integers(0, 256, (num_frames, 64, 80, 3), np.uint8)
        frames_THWC[:, 0, 0] = [(t, list(self.lengths).index(video_id), 0) for t in range(num_frames)]
        motion_TYX2 = np.ones((num_frames, 8, 10, 2), np.float32) * np.arange(num_frames)[:, None, None, None]
        return MemoryVideo(video_id, frames_THWC, motion_TYX2.astype(np.float32))


def keep(clip, rng):
    return clip


def pretrain_dataset(store, **settings):
    mask = partial(mask_of, strategy="mgm")
    return PretrainDataset(store, **({"num_frames": 16, "stride": 2, "augment": keep, "mask": mask} | settings))


def mask_of(clip, rng, strategy):
    return make_mask(strategy, clip.motion_TYX2[:, :8, :8, 0], ratio=0.75, rng=rng)


def frame_numbers(sample):
    return sample["frames_CTHW"][0, :, 0, 0].tolist()


@given(lengths, clip_lengths, st.integers(1, 6), seeds)
def test_a_clip_is_a_run_of_frames_inside_the_video(num_frames_in_video, num_frames, stride, seed):
    indices_T = sample_indices(num_frames_in_video, num_frames, stride, np.random.default_rng(seed))
    assert len(indices_T) == num_frames
    assert indices_T.min() >= 0
    assert indices_T.max() < num_frames_in_video
    if num_frames_in_video >= num_frames:
        (used,) = set(np.diff(indices_T).tolist())
        assert used == min(stride, (num_frames_in_video - 1) // (num_frames - 1))
    else:
        expected = [*range(num_frames_in_video), *[num_frames_in_video - 1] * (num_frames - num_frames_in_video)]
        assert indices_T.tolist() == expected


def test_every_start_is_drawn():
    rng = np.random.default_rng(0)
    starts = {int(sample_indices(35, 16, 2, rng)[0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}


def test_the_stride_shrinks_for_a_short_video():
    assert [fitting_stride(length, 16, 4) for length in (61, 60, 31, 30, 16, 15, 1)] == [4, 3, 2, 1, 1, 1, 1]


@given(lengths, clip_lengths, seeds)
def test_each_segment_gives_one_frame(num_frames_in_video, num_frames, seed):
    edges = np.arange(num_frames + 1) * num_frames_in_video / num_frames
    for rng in (np.random.default_rng(seed), None):
        indices_T = segment_indices(num_frames_in_video, num_frames, rng)
        assert (np.floor(edges[:-1]) <= indices_T).all()
        assert (indices_T < np.ceil(edges[1:])).all()
    if num_frames_in_video > 1:
        assert len(set(indices_T.tolist())) > 1


@given(lengths, clip_lengths, st.integers(1, 6), st.integers(1, 7))
def test_dense_views_spread_from_the_first_frame_to_the_last(num_frames_in_video, num_frames, stride, num_views):
    indices_VT = view_indices(num_frames_in_video, num_frames, stride, num_views, "dense")
    assert indices_VT.shape == (num_views, num_frames)
    assert indices_VT.min() >= 0
    assert indices_VT.max() < num_frames_in_video
    if num_views > 1:
        assert indices_VT[0, 0] == 0
        assert indices_VT[-1, -1] == num_frames_in_video - 1


def test_one_view_takes_the_middle_and_segment_views_interleave():
    assert view_indices(100, 16, 2, 1, "dense")[0].tolist() == [*range(34, 66, 2)]
    assert view_indices(64, 16, 4, 2, "segment").tolist() == [[*range(1, 64, 4)], [*range(3, 64, 4)]]
    assert view_indices(16, 16, 4, 1, "segment")[0].tolist() == [*range(16)]


@pytest.mark.parametrize("indices", [[2, 4, 6, 8], [0, 1, 2, 3], [5, 8, 9, 9, 9], [3, 3, 3], [7], [1, 4, 4, 6]])
def test_motion_between_sampled_frames_is_the_mean_of_the_known_vectors(indices):
    rng = np.random.default_rng(0)
    stored_TYX2 = rng.normal(size=(10, 3, 2, 2)).astype(np.float32)
    stored_TYX2[rng.random((10, 3, 2)) < 0.4] = np.nan
    indices_T = np.array(indices)
    clip_TYX2 = motion_between(stored_TYX2[indices[0] : indices[-1] + 1], indices_T)
    for k, now in enumerate(indices):
        before = indices[k - 1] if k else now - 1
        for y in range(3):
            for x in range(2):
                known = [v for v in stored_TYX2[before + 1 : now + 1, y, x] if not np.isnan(v[0])]
                expected = [0, 0] if before == now else np.mean(known, axis=0) if known else [np.nan, np.nan]
                np.testing.assert_allclose(clip_TYX2[k, y, x], expected, rtol=1e-5)


def test_a_clip_holds_the_frames_and_motion_it_was_asked_for():
    clip = read_clip(MemoryStore({"a": 5, "b": 40})["b"], np.array([3, 7, 11]), label=2)
    assert clip.frames_THWC[:, 0, 0, :2].tolist() == [[3, 1], [7, 1], [11, 1]]
    # The motion of frame t is t in this store: the means of {3}, {4 … 7} and {8 … 11}.
    assert clip.motion_TYX2[:, 0, 0, 0].tolist() == [3, 5.5, 9.5]
    assert (clip.label, clip.video_id) == (2, "b")


def test_a_damaged_video_is_named():
    class Damaged:
        def __getitem__(self, key):
            raise OSError("c.0.0.0.0: checksum mismatch")

    video = MemoryVideo("bad.mp4", Damaged(), Damaged())
    with pytest.raises(UserError, match=r"'bad.mp4'.*checksum"):
        read_clip(video, np.arange(4))


def test_a_sample_depends_on_seed_epoch_and_index_alone():
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


def test_a_pretraining_sample_has_the_promised_shapes():
    ((sample),) = pretrain_dataset(MemoryStore({"a": 90}), augment=PretrainAugment(size_px=64))[0, 0]
    assert sample["frames_CTHW"].shape == (3, 16, 64, 64)
    assert sample["frames_CTHW"].dtype == torch.uint8
    assert sample["mask_N"].shape == (8 * 4 * 4,)
    assert sample["mask_N"].sum() == 8 * 12
    assert (sample["label"], sample["index"]) == (-1, 0)


def test_repeats_share_the_frames_but_not_the_crop_and_mask():
    samples = pretrain_dataset(MemoryStore({"a": 90}), repeats=3)[0, 0]
    assert len(samples) == 3
    assert frame_numbers(samples[0]) == frame_numbers(samples[1]) == frame_numbers(samples[2])
    assert len({sample["mask_N"].numpy().tobytes() for sample in samples}) == 3


def test_a_batch_flattens_the_repeats_and_keeps_them_together():
    dataset = pretrain_dataset(MemoryStore({"a": 90, "b": 90}), repeats=2)
    batch = collate([dataset[0, 1], dataset[0, 0]])
    assert batch["frames_BCTHW"].shape == (4, 3, 16, 64, 80)
    assert batch["frames_BCTHW"].is_contiguous()
    assert batch["frames_BCTHW"][:, 1, 0, 0, 0].tolist() == [1, 1, 0, 0]
    assert batch["mask_BN"].shape == (4, 128)
    assert batch["index_B"].tolist() == [1, 1, 0, 0]
    assert batch["label_B"].dtype == torch.int64


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_batches_of_one_process(context):
    dataset = LabelledDataset(
        MemoryStore({"a": 40, "b": 40}, {"a": "x", "b": "y"}),
        num_frames=4,
        stride=2,
        augment=FinetuneAugment(size_px=32),
        classes=["x", "y"],
    )
    keys = [(0, 0), (0, 1), (1, 1), (1, 0)]
    here, there = (
        list(DataLoader(dataset, batch_size=2, sampler=keys, collate_fn=collate, **settings))
        for settings in ({}, {"num_workers": 1, "worker_init_fn": start_worker, "multiprocessing_context": context})
    )
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one["frames_BCTHW"], other["frames_BCTHW"])
    assert [label for batch in there for label in batch["label_B"].tolist()] == [0, 1, 1, 0]


def test_labelled_clips_follow_their_sampling():
    store = MemoryStore({"a": 160}, {"a": "x"})
    for sampling, steps in (("dense", {2}), ("segment", set(range(1, 20)))):
        dataset = LabelledDataset(store, num_frames=16, stride=2, augment=keep, classes=["w", "x"], sampling=sampling)
        (sample,) = dataset[0, 0]
        assert set(np.diff(frame_numbers(sample)).tolist()) <= steps
        assert sample["label"] == 1
        assert "mask_N" not in sample
    assert frame_numbers(sample)[-1] >= 150


def test_frames_keep_their_pixels_on_the_way_into_a_sample():
    def cut(clip, rng):
        return replace(clip, frames_THWC=clip.frames_THWC[:, 3:35, 5:53])

    store = MemoryStore({"a": 16})
    ((sample),) = pretrain_dataset(store, stride=1, augment=cut)[0, 0]
    expected_CTHW = store["a"].frames[:, 3:35, 5:53].transpose(3, 0, 1, 2)
    assert np.array_equal(sample["frames_CTHW"].numpy(), expected_CTHW)

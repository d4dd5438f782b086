"""The multi-view test: each video read once, scored once, never replaced."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data._utils.pin_memory import pin_memory
from toy import run_processes

from mgm_shared import shard_reader
from mgm_shared.store import Store, open_store
from mgm_train.config import EvaluateConfig
from mgm_train.data import packed_batch
from mgm_train.data.augmentation.augment import view_boxes
from mgm_train.data.labels import class_names
from mgm_train.data.packed_batch import Packing
from mgm_train.data.sampling import view_indices
from mgm_train.data.views import View, read_views
from mgm_train.evaluation.multiview import (
    ViewDataset,
    _one_ahead,
    clips_at_once,
    collate_views,
    score_every,
    score_views,
)
from mgm_train.model_config import model_config
from mgm_train.models.videomae import VideoClassifier, build
from mgm_train.runtime.distributed import Distributed, init_distributed

MODEL = model_config("vit_tiny", num_frames=8, image_px=64)
CPU = Distributed(device=torch.device("cpu"))


def _dataset(store: Any, **settings: Any) -> ViewDataset:
    config = EvaluateConfig(stride=2, num_workers=0, batch_size=3, **settings)
    return ViewDataset(store, class_names(store), MODEL, config)


def frames_of(dataset: ViewDataset, index: int) -> torch.Tensor:
    """The views of one video, (V, C, T, H, W)."""
    frames_VCTHW: torch.Tensor = collate_views([dataset[index]])["frames_NVCTHW"][0]
    return frames_VCTHW


def test_views_are_those_of_a_loop_over_views(pan_store: Store) -> None:
    dataset = _dataset(pan_store, num_temporal_views=2, num_spatial_views=3)
    frames_VCTHW = frames_of(dataset, 1)
    video = pan_store[dataset[1].video_id]
    assert frames_VCTHW.shape == (6, 3, 8, 64, 64)
    import cv2

    expected = []
    for indices_T in view_indices(video.num_frames, 8, 2, 2, "dense"):
        for left in (0, 16, 32):
            crop_THWC = video.frames[indices_T][:, :, left : left + 128]
            expected.append([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in crop_THWC])
    np.testing.assert_array_equal(frames_VCTHW.permute(0, 2, 3, 4, 1), np.array(expected))


def test_one_view_works_and_is_the_middle(pan_store: Store) -> None:
    dataset = _dataset(pan_store, num_temporal_views=1, num_spatial_views=1)
    assert frames_of(dataset, 0).shape == (1, 3, 8, 64, 64)


def test_the_softmax_is_averaged_over_views(pan_store: Store) -> None:
    model = build(lambda: VideoClassifier(MODEL, 4), seed=0)
    dataset = _dataset(pan_store, num_temporal_views=2, num_spatial_views=1)
    scores, predictions = score_views(model, dataset, CPU)
    assert (scores.scored, scores.listed, scores.unreadable) == (4, 4, {})
    with torch.no_grad():
        expected = model.eval()(frames_of(dataset, 2)).softmax(1).mean(0)
    np.testing.assert_allclose(predictions[2].probability_K, expected, rtol=1e-4)


class _AlwaysClassOne(nn.Module):
    def forward(self, frames_BCTHW: Any) -> Any:
        return torch.tensor([[0.0, 5.0, 0.0, 0.0]]).repeat(len(frames_BCTHW), 1)


class _RightInATest(nn.Module):
    """Knows the four videos by their number, but only when it is not learning."""

    def forward(self, frames_BCTHW: Any) -> Any:
        return torch.eye(4)[: len(frames_BCTHW)] * (0 if self.training else 9)


def test_epochs_are_scored_by_a_model_that_does_not_learn(pan_store: Store) -> None:
    said: list[str] = []
    views = EvaluateConfig(stride=2, num_workers=0, batch_size=4, num_temporal_views=1, num_spatial_views=1)
    dataset = ViewDataset(pan_store, class_names(pan_store), MODEL, views)
    order = torch.from_numpy(dataset.labels)
    score_epoch, model = score_every(2, dataset, said.append, CPU), _RightInATest()
    assert order.tolist() == [0, 1, 2, 3]
    assert score_epoch(1, model.train()) == {}
    assert score_epoch(2, model.train()) == {"test_top1": 1, "test_top5": 1, "test_scored": 4, "test_listed": 4}
    assert said == ["epoch 2 | test top-1 100.0% | 4 of 4 videos"]


def test_a_damaged_video_is_named_and_not_replaced(pan_store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "damaged.store"
    shutil.copytree(str(pan_store.path), copy)
    store = open_store(copy)
    broken = store["test/left/0.mp4"]
    (shard,) = Path(str(broken.part), "frames").glob("c.*")
    index = shard_reader._shard_index(str(shard), broken.frames.array.shard_frames, broken.frames.array.version)
    content = bytearray(shard.read_bytes())
    for frame in range(broken.record["start"], broken.record["start"] + broken.num_frames):
        content[int(index[frame, 0]) + 50] ^= 1
    shard.write_bytes(content)
    scores, predictions = score_views(
        _AlwaysClassOne(), _dataset(store, num_temporal_views=1, num_spatial_views=1), CPU
    )
    assert (scores.scored, scores.listed) == (3, 4)
    assert list(scores.unreadable) == ["test/left/0.mp4"]
    assert "checksum" in scores.unreadable["test/left/0.mp4"]
    assert [prediction.sample_id for prediction in predictions] == [
        "test/down/0.mp4",
        "test/right/0.mp4",
        "test/up/0.mp4",
    ]
    assert scores.top1 == 0


def _evaluate_and_list(store: Path, out: Path) -> None:
    dataset = _dataset(open_store(store), num_temporal_views=1, num_spatial_views=1)
    with init_distributed("cpu") as distributed:
        _, predictions = score_views(_AlwaysClassOne(), dataset, distributed)
    out.with_suffix(f".{distributed.rank}").write_text(" ".join(prediction.sample_id for prediction in predictions))


def test_more_processes_than_divide_the_videos_score_each_once(pan_store: Store, tmp_path: Path) -> None:
    assert run_processes(3, _evaluate_and_list, pan_store.path, tmp_path / "ids") == [0, 0, 0]
    listed = [f"test/{label}/0.mp4" for label in ("down", "left", "right", "up")]
    for rank in range(3):
        assert (tmp_path / f"ids.{rank}").read_text().split() == listed


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_frames_of_a_batch_are_pinned(pan_store: Store, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    """What torch's own pinning thread does with a batch; only the copy itself needs a GPU."""
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    dataset = _dataset(pan_store, num_temporal_views=1, num_spatial_views=1)
    batch = Packing(collate_views)([dataset[0], dataset[1]])
    if num_workers:
        monkeypatch.setattr(packed_batch, "get_worker_info", lambda: "as in a worker")
        batch = Packing(collate_views)([dataset[0], dataset[1]])
    pinned_batch = pin_memory(batch)
    assert pinned == [pinned_batch["frames_NVCTHW"].data_ptr()]
    assert [video.video_id for video in pinned_batch["videos"]] == [dataset[index].video_id for index in range(2)]


@pytest.mark.parametrize("sampling", ["dense", "segment"])
def test_frames_that_several_views_share_are_shown_in_each(pan_store: Store, sampling: str) -> None:
    """More clips than the video has frames for: they overlap."""
    dataset = _dataset(pan_store, num_temporal_views=5, num_spatial_views=1, sampling=sampling)
    video = pan_store[dataset[0].video_id]
    indices_VT = view_indices(video.num_frames, 8, 2, 5, sampling)
    assert sampling == "segment" or len(np.unique(indices_VT)) < indices_VT.size
    frames_VCTHW = frames_of(dataset, 0)
    (box,) = view_boxes(video.height, video.width, 1)
    for frames_CTHW, indices_T in zip(frames_VCTHW, indices_VT, strict=True):
        (expected,) = read_views(video, np.sort(indices_T), [View(box=box, size_px=64)])
        np.testing.assert_array_equal(frames_CTHW, expected)


def test_results_come_one_batch_later_and_none_is_lost() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number

    given = []
    for number in _one_ahead(items()):
        given.append(number)
        assert len(made) == min(number + 2, 3)
    assert given == [0, 1, 2]
    assert list(_one_ahead(iter([]))) == []


def test_the_clips_of_a_forward_pass_fit_into_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    base = model_config("vit_base")
    for free_gib, expected in ((80, 128), (1, 11), (0.01, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free_gib: (int(free * 2**30), 0))
        assert clips_at_once(base, torch.device("cuda")) == expected
    assert clips_at_once(base, torch.device("cpu")) == 32

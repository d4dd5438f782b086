"""Which frames a clip has."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgm_shared.geometry import Box
from mgm_shared.progress import SILENT
from mgm_shared.store import Store
from mgm_train.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from mgm_train.data.clips import read_clips
from mgm_train.data.labels import class_names
from mgm_train.data.sampling import fitting_stride, sample_indices, segment_indices, view_indices
from mgm_train.data.views import View
from mgm_train.evaluation.multiview import ViewDataset, collate_views
from mgm_train.figures.paper_figures import Subject
from mgm_train.model_config import model_config
from mgm_train.tasks.finetune import finetune_job
from mgm_train.tasks.pretrain import pretrain_dataset

lengths = st.integers(1, 200)
clip_lengths = st.sampled_from([2, 8, 16])
seeds = st.integers(0, 2**32)


@given(lengths, clip_lengths, st.integers(1, 6), seeds)
def test_a_clip_is_a_run_of_frames_inside_the_video(
    num_frames_in_video: Any, num_frames: Any, stride: int, seed: Any
) -> None:
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


@given(lengths, clip_lengths, st.integers(1, 6), seeds, st.integers(1, 4))
def test_repeating_keeps_the_stride_and_ends_on_the_last_frame(
    num_frames_in_video: Any, num_frames: Any, stride: int, seed: Any, num_views: int
) -> None:
    """A loop as the oracle: step on while there is a next frame, then stay on the last one."""
    span = (num_frames - 1) * stride + 1
    drawn_T = sample_indices(num_frames_in_video, num_frames, stride, np.random.default_rng(seed), "repeat")
    views_VT = view_indices(num_frames_in_video, num_frames, stride, num_views, "dense", "repeat")
    for indices_T in (drawn_T, *views_VT):
        place, expected = int(indices_T[0]), []
        for _ in range(num_frames):
            expected.append(min(place, num_frames_in_video - 1))
            place += stride
        assert indices_T.tolist() == expected
        assert indices_T[0] == 0 or num_frames_in_video > span
    if num_frames_in_video >= span:
        as_ever_T = sample_indices(num_frames_in_video, num_frames, stride, np.random.default_rng(seed))
        assert drawn_T.tolist() == as_ever_T.tolist(), "no video that is long enough is read otherwise"


def test_a_short_video_by_hand() -> None:
    """HMDB51's shortest have 18 frames, where stride 4 needs 61."""
    rng = np.random.default_rng(0)
    assert sample_indices(18, 16, 4, rng, "stride").tolist() in ([*range(16)], [*range(1, 17)], [*range(2, 18)])
    assert sample_indices(18, 16, 4, rng, "repeat").tolist() == [0, 4, 8, 12, 16, *[17] * 11]


def test_every_start_is_drawn() -> None:
    rng = np.random.default_rng(0)
    starts = {int(sample_indices(35, 16, 2, rng)[0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}


def test_the_stride_shrinks_for_a_short_video() -> None:
    assert [fitting_stride(length, 16, 4) for length in (61, 60, 31, 30, 16, 15, 1)] == [4, 3, 2, 1, 1, 1, 1]


@given(lengths, clip_lengths, seeds)
def test_each_segment_gives_one_frame(num_frames_in_video: Any, num_frames: Any, seed: Any) -> None:
    edges = np.arange(num_frames + 1) * num_frames_in_video / num_frames
    for rng in (np.random.default_rng(seed), None):
        indices_T = segment_indices(num_frames_in_video, num_frames, rng)
        assert (np.floor(edges[:-1]) <= indices_T).all()
        assert (indices_T < np.ceil(edges[1:])).all()
    if num_frames_in_video > 1:
        assert len(set(indices_T.tolist())) > 1


@given(lengths, clip_lengths, st.integers(1, 6), st.integers(1, 7))
def test_dense_views_spread_from_the_first_frame_to_the_last(
    num_frames_in_video: Any, num_frames: Any, stride: int, num_views: int
) -> None:
    indices_VT = view_indices(num_frames_in_video, num_frames, stride, num_views, "dense")
    assert indices_VT.shape == (num_views, num_frames)
    assert indices_VT.min() >= 0
    assert indices_VT.max() < num_frames_in_video
    if num_views > 1:
        assert indices_VT[0, 0] == 0
        assert indices_VT[-1, -1] == num_frames_in_video - 1


def test_one_view_takes_the_middle_and_segment_views_interleave() -> None:
    assert view_indices(100, 16, 2, 1, "dense")[0].tolist() == [*range(34, 66, 2)]
    assert view_indices(64, 16, 4, 2, "segment").tolist() == [[*range(1, 64, 4)], [*range(3, 64, 4)]]
    assert view_indices(16, 16, 4, 1, "segment")[0].tolist() == [*range(16)]


@pytest.mark.parametrize("short_videos", ["stride", "repeat"])
def test_training_testing_and_figures_read_short_videos_alike(
    pan_store: Store, tmp_path: Path, short_videos: Literal["stride", "repeat"]
) -> None:
    """Eight frames at stride 4 span 29 frames, and the videos have 24: only repeating shows the last frame twice."""
    shape: dict[str, Any] = {
        "model": "vit_tiny",
        "num_frames": 8,
        "image_px": 32,
        "stride": 4,
        "short_videos": short_videos,
    }
    plain: dict[str, Any] = {"num_workers": 0, "batch_size": 2, "repeats": 1}
    pretrain = PretrainConfig(**shape, **plain)
    finetune = FinetuneConfig(**shape, **plain, eval_split="test", random_erasing=0.0, randaug="")
    labelled = finetune_job(pan_store.path, tmp_path, finetune, SILENT)[0].dataset
    views = EvaluateConfig(stride=4, short_videos=short_videos, num_temporal_views=1, num_spatial_views=1)
    probe = ProbeConfig(stride=4, short_videos=short_videos)
    model = model_config("vit_tiny", num_frames=8, image_px=32)
    clips_CTHW = [
        pretrain_dataset(pan_store, pretrain)[(0, 0)][0]["frames_CTHW"],
        labelled[(0, 0)][0]["frames_CTHW"],
        torch.from_numpy(Subject.of(pan_store.video_at(0), pretrain).clip.frames_CTHW),
    ]
    for config in (views, EvaluateConfig.while_training(finetune), probe.for_training(), probe):
        dataset = ViewDataset(pan_store, class_names(pan_store), model, config)
        clips_CTHW.append(collate_views([dataset[0]])["frames_NVCTHW"][0, 0])
    for frames_CTHW in clips_CTHW:
        assert torch.equal(frames_CTHW[:, 6], frames_CTHW[:, 7]) == (short_videos == "repeat")
        assert not torch.equal(frames_CTHW[:, 5], frames_CTHW[:, 6])


def test_a_repeated_frame_has_not_moved(pan_store: Store) -> None:
    """Of videos that pan by 3 px a frame: 4 stored frames to the next one shown, 3 to the last, then none."""
    video = pan_store["train/right/0.mp4"]
    indices_T = sample_indices(24, 8, 4, np.random.default_rng(0), "repeat")
    assert indices_T.tolist() == [0, 4, 8, 12, 16, 20, 23, 23]
    (clip,) = read_clips(video, indices_T, [View(box=Box(x=0, y=0, width=128, height=128), size_px=128)])
    dx_T = np.nanmedian(clip.motion_TYX2[1:, ..., 0], axis=(1, 2))
    np.testing.assert_allclose(dx_T, [3, 3, 3, 3, 3, 3, 0], atol=0.5)

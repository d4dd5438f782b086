"""Which frames a clip has."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mgm_train.data.sampling import fitting_stride, sample_indices, segment_indices, view_indices

lengths = st.integers(1, 200)
clip_lengths = st.sampled_from([2, 8, 16])
seeds = st.integers(0, 2**32)


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

"""Videos cut from one recording lie on one side of the probe's hold-out."""

from collections import Counter

import numpy as np
import pytest
import torch

from mgm_shared.errors import UserError
from mgm_train.config import ProbeConfig
from mgm_train.evaluation.features import Features
from mgm_train.evaluation.groups import video_groups
from mgm_train.evaluation.linear_probe import fit_and_score, held_out_videos

UCF101 = [
    f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi"
    for label in ("HandStandPushups", "YoYo", "Jumping_Jack")
    for group in range(8, 26)
    for clip in range(1, 5 + group % 3)
]
# Names from HMDB51's own lists, and the recording that each one says it comes from.
HMDB51 = {
    "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi": "April_09_brush_hair",
    "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_1.avi": "April_09_brush_hair",
    "cartwheel/#122_Cartwheel_(Rad)_cartwheel_f_cm_np1_le_med_0.avi": "#122_Cartwheel_(Rad)_cartwheel",
    "cartwheel/#122_Cartwheel_(Rad)_cartwheel_f_cm_np1_ri_bad_12.avi": "#122_Cartwheel_(Rad)_cartwheel",
    "smoke/AmericanGangster_smoke_h_cm_np1_fr_goo_27.avi": "AmericanGangster_smoke",
    "kick_ball/Best!_&_Worst's_kick_ball_l_nm_np2_ri_med_3.avi.mp4": "Best!_&_Worst's_kick_ball",
}


def test_names_of_ucf101_tell_the_group() -> None:
    groups = video_groups(UCF101)
    assert groups == [video_id.split("/")[1][: -len("_c01.avi")] for video_id in UCF101]
    assert len(set(groups)) == 3 * 18
    assert video_groups(["v_YoYo_g01_c02", "clips/v_YoYo_g01_c03.avi.mp4"]) == ["v_YoYo_g01"] * 2


def test_names_of_hmdb51_tell_the_source() -> None:
    assert video_groups(list(HMDB51)) == list(HMDB51.values())


@pytest.mark.parametrize(
    "video_id",
    [
        "abseiling/0wR5jVB-WPk_000417_000427.mp4",
        "78687.webm",
        "_8Vy3dlHg2w_00000.mp4",
        "v_ApplyEyeMakeup.avi",
        "a_c01.avi",
    ],
)
def test_other_names_are_groups_of_their_own(video_id: str) -> None:
    assert video_groups([video_id, "x.mp4"]) == [video_id, "x.mp4"]


def test_a_pattern_of_ones_own() -> None:
    diving48 = ["_8Vy3dlHg2w_00000.mp4", "_8Vy3dlHg2w_00001.mp4", "9ZtPn3W21o4_00210.mp4", "other.mp4"]
    expected = ["_8Vy3dlHg2w", "_8Vy3dlHg2w", "9ZtPn3W21o4", "other.mp4"]
    assert video_groups(diving48, r"^(.{11})_\d{5}\.") == expected
    assert video_groups(diving48, r"^.{11}(?=_\d{5}\.)") == expected, "without parentheses, the match"
    assert video_groups(diving48, "none") == diving48
    with pytest.raises(UserError, match=r"matches no training video, such as '_8Vy3dlHg2w_00000\.mp4'"):
        video_groups(diving48, r"^subject(\d+)")


@pytest.mark.parametrize("pattern", ["", "(", "[a"])
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="group-pattern is"):
        ProbeConfig(group_pattern=pattern)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides_and_the_share_is_about_kept(seed: int) -> None:
    label_N = np.unique([video_id.split("/")[0] for video_id in UCF101], return_inverse=True)[1]
    is_held_N = held_out_videos(label_N, UCF101, 0.1, seed, "auto")
    groups = np.array(video_groups(UCF101))
    assert not set(groups[is_held_N]) & set(groups[~is_held_N])
    for label in range(3):
        of_class = label_N == label
        size = max(Counter(groups[of_class].tolist()).values())
        assert 0.1 * of_class.sum() - 1 <= is_held_N[of_class].sum() < 0.1 * of_class.sum() + size
    is_drawn_alone_N = held_out_videos(label_N, UCF101, 0.1, seed, "none")
    assert set(groups[is_drawn_alone_N]) & set(groups[~is_drawn_alone_N]), "what this is about"


def test_a_class_of_one_group_holds_nothing_out() -> None:
    names = ["v_A_g01_c01", "v_A_g01_c02", "v_B_g01_c01", "v_B_g02_c01"]
    is_held_N = held_out_videos(np.array([0, 0, 1, 1]), names, 0.5, 0, "auto")
    assert is_held_N[:2].tolist() == [False, False]
    assert is_held_N[2:].sum() == 1
    with pytest.raises(UserError, match="see group-pattern"):
        held_out_videos(np.array([0, 0]), names[:2], 0.5, 0, "auto")


def _recordings(num_groups: int, seed: int) -> Features:
    """Two classes, recordings of six clips: what the clips of a recording share is far louder than their class."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels, features = [], [], []
    for label in range(2):
        for group in range(num_groups):
            scene_D = 3 * torch.randn(60, generator=generator)
            scene_D[:6] += 1.5 * (2 * label - 1)
            for clip in range(6):
                ids.append(f"v_C{label}_g{group:02d}_c{clip:02d}.avi")
                labels.append(label)
                features.append(scene_D + 0.1 * torch.randn(60, generator=generator))
    return Features(
        feature_NVD=torch.stack(features)[:, None].half(), label_N=torch.tensor(labels), sample_ids=ids, unreadable={}
    )


def test_the_accuracy_on_whole_recordings_is_an_honest_estimate() -> None:
    """A head that learns recordings by heart knows their twins, and not recordings that it has never seen."""
    train, scored = _recordings(60, seed=0), _recordings(100, seed=1)
    optimism = {}
    for pattern in ("none", "auto"):
        config = ProbeConfig(
            learning_rates=(0.1,), weight_decays=(0.0,), epochs=20, held_out=0.3, group_pattern=pattern
        )
        ((choice,), _, _) = fit_and_score(train, scored, 2, config, torch.device("cpu"))
        optimism[pattern] = choice.held_out_top1 - choice.top1
    assert optimism["none"] > 0.25
    assert abs(optimism["auto"]) < 0.15

"""Motion50: what needs no renderer is tested anywhere, the clips where Meta-World and OpenGL work."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from synthetic import pan, texture, write_video

from mgm_shared.boxes import read_boxes
from mgm_shared.errors import UserError

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

from motion50 import cli, make, one_frame, opengl, pictures  # noqa: E402
from motion50.episode import movement  # noqa: E402
from motion50.make import Item, Settings, list_items  # noqa: E402
from motion50.scenes import CLASSES, SCENES  # noqa: E402

NUM_FRAMES, SIZE_PX = 9, 64
# Angles over this are turns; under it the object slides.
TURN_RAD = 0.5


@pytest.fixture(scope="module")
def needs_renderer() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    reason = opengl.why_not()
    if reason:
        pytest.skip(reason)
    with warnings.catch_warnings():
        # Meta-World and Gymnasium warn of their own deprecations when they are imported.
        warnings.simplefilter("ignore")
        importlib.import_module("metaworld.policies")
    yield
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of five videos: textures that pan."""
    folder = tmp_path_factory.mktemp("corpus")
    for k in range(5):
        frames = (np.roll(texture(96, 128, seed=k, is_grey=False), 2 * t, axis=1) for t in range(24))
        write_video(folder / f"video{k}-0000.mp4", frames)
    return folder


@pytest.fixture
def settings(corpus: Path) -> Settings:
    return Settings(corpus=str(corpus), size_px=SIZE_PX, num_frames=NUM_FRAMES)


def decode(path: Path) -> tuple[Any, Any]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        types = "".join("?IPB"[int(frame.pict_type)] for frame in frames)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(float), types


def content(folder: Path) -> dict[Any, Any]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Without a renderer


def test_thirteen_pairs() -> None:
    assert len(SCENES) == 13
    assert len(set(CLASSES)) == 26


def test_an_unfinished_set_is_balanced() -> None:
    items = list_items(8, 2)
    assert len(items) == len(set(items)) == 13 * 10
    first = items[: 13 * 5]
    assert {sum(item.scene == scene for item in first) for scene in range(13)} == {5}
    assert {item.split for item in first} == {"train", "test"}
    # A larger set begins with the clips of a smaller one.
    assert set(items) < set(list_items(16, 4))


def test_both_classes_get_as_many_clips_played_backwards() -> None:
    for scene in range(13):
        pairs = [make.clip_names(Item(split="train", scene=scene, number=number)) for number in range(4)]
        forward, backward = SCENES[scene].classes
        assert [pair[0].split("/")[1] for pair in pairs] == [forward, backward] * 2
        assert [pair[1].split("/")[1] for pair in pairs] == [backward, forward] * 2
        assert all(pair[0].split("/")[2] == pair[1].split("/")[2] for pair in pairs)


def test_movement_is_the_steepest_rise() -> None:
    # Falls, rests, rises by 1 from step 30 to 50, rests.
    curve_S = np.concatenate([np.linspace(0.5, 0, 10), np.zeros(20), np.linspace(0, 1, 21), np.ones(20)])
    found = movement(curve_S)
    assert found is not None
    assert 29 <= found.start <= 31
    assert 49 <= found.stop - 1 <= 51
    assert movement(-np.maximum.accumulate(curve_S)) is None
    assert movement(curve_S * 0.01) is None


def test_no_video_serves_both_splits(tmp_path: Path) -> None:
    for k in range(8):
        for view in ("", "crop1-"):
            write_video(tmp_path / f"v{k}-{view}000{k}.mp4", pan((1, 0), num_frames=2, height=32, width=48))
    splits = pictures.split_clips(tmp_path)
    videos = {split: {path.name.split("-")[0] for path in paths} for split, paths in splits.items()}
    assert videos["train"] | videos["test"] == {f"v{k}" for k in range(8)}
    assert not videos["train"] & videos["test"]
    assert videos["test"]
    assert len(splits["train"]) + len(splits["test"]) == 16


def test_flat_pictures_are_drawn_again(corpus: Path, tmp_path: Path) -> None:
    assert pictures.flat_share(np.full((64, 64, 3), 90, np.uint8)) == 1
    assert pictures.flat_share(texture(64, 64)) == 0
    half_HWC = texture(64, 64)
    half_HWC[:, :32] = 0
    assert pictures.flat_share(half_HWC) == 0.5
    write_video(tmp_path / "a-0000.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 24)
    clips = [tmp_path / "a-0000.mp4", corpus / "video0-0000.mp4"]
    for seed in range(5):
        picture_HWC = pictures.draw_picture(clips, 64, np.random.default_rng(seed))
        assert picture_HWC.shape == (64, 64, 3)
        assert pictures.flat_share(picture_HWC) < 0.5


def test_a_short_clip_runs_to_and_fro(tmp_path: Path) -> None:
    levels = [20, 80, 140, 200]
    noise_HWC = texture(64, 64).astype(int) - 128
    frames = [np.clip(noise_HWC // 8 + level, 0, 255).astype(np.uint8) for level in levels]
    write_video(tmp_path / "a.mp4", frames, options={"crf": "5"})
    run_THWC = pictures.draw_background([tmp_path / "a.mp4"], 9, 64, np.random.default_rng(0))
    found_T = [int(np.argmin(np.abs(np.array(levels) - frame.mean()))) for frame in run_THWC]
    assert found_T == [0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_bad_input_is_one_line(tmp_path: Path, corpus: Path, settings: Settings) -> None:
    for arguments, message in (
        (["--corpus", str(corpus), "--size", "33"], "even"),
        (["--corpus", str(tmp_path)], "0 videos" if not opengl.why_not() else opengl.why_not()[:20]),
    ):
        result = CliRunner().invoke(cli.main, [str(tmp_path / "out"), *arguments])
        assert result.exit_code == 2
        assert len(result.output.strip().splitlines()) == 1
        assert message in result.output
    make.check_record(tmp_path / "set", settings)
    make.check_record(tmp_path / "set", settings)
    with pytest.raises(UserError, match="another seed"):
        make.check_record(tmp_path / "set", replace(settings, seed=1))


def test_one_frame_tells_the_scene_and_the_clip_the_class() -> None:
    """On textures that pan left or right: the measure itself must find 50 % and nearly all."""
    clips, labels = [], []
    for seed in range(24):
        for label, step in enumerate((3, -3)):
            frames = [np.roll(texture(24, 24, seed=seed), step * t, axis=1) for t in range(-2, 3)]
            clips.append(np.stack(frames).transpose(3, 0, 1, 2))
            labels.append(label)
    data = torch.from_numpy(np.stack(clips)), torch.tensor(labels)
    train, test = ((data[0][rows], data[1][rows]) for rows in (slice(32), slice(32, None)))
    with torch.random.fork_rng():
        one = one_frame.train_and_test(train, test, True, epochs=2, seed=0)
        clip = one_frame.train_and_test(train, test, False, epochs=12, seed=0)
    # The middle frame is the same under both labels.
    assert one["top1"] == one["pair"] == 0.5
    assert clip["top1"] >= 0.9


def test_scores_of_a_hand_made_example() -> None:
    # Right; right scene but the other class; another scene, ahead in the own pair; another scene, behind in it.
    logits_NK = torch.tensor([[3.0, 1, 0, 0], [3, 1, 0, 0], [1, 0, 0, 3], [0, 1, 3, 0]])
    labels_N = torch.tensor([0, 1, 0, 0])
    assert one_frame.score(logits_NK, labels_N) == {"top1": 0.25, "scene": 0.5, "pair": 0.5}


# With a renderer

MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from motion50.make import Item, Settings, make_item
settings = Settings(corpus=sys.argv[3], size_px={size}, num_frames={frames})
for scene, number in ((4, 1), (2, 0)):
    make_item(Item(split="train", scene=scene, number=number), settings, sys.argv[2])
"""


def test_the_same_seed_gives_the_same_bytes(
    needs_renderer: Any, settings: Settings, corpus: Path, tmp_path: Path
) -> None:
    items = [Item(split="train", scene=scene, number=number) for scene, number in ((2, 0), (4, 1))]
    for item in items:
        assert make.make_item(item, settings, str(tmp_path / "one")) == 2
    # Another process, the other order: nothing of one clip gets into the next.
    script = MAKE.format(size=SIZE_PX, frames=NUM_FRAMES)
    command = [sys.executable, "-W", "ignore", "-c", script, str(PIPELINES), str(tmp_path / "two"), str(corpus)]
    subprocess.run(command, check=True, capture_output=True)
    one = content(tmp_path / "one")
    assert len(one) == 2 * 2 * 3
    assert one == content(tmp_path / "two")
    assert make.make_item(items[0], settings, str(tmp_path / "one")) == 0
    make.make_item(items[0], replace(settings, seed=1), str(tmp_path / "three"))
    other = content(tmp_path / "three")
    assert all(one[name] != other[name] for name in other)


def test_dask_makes_the_same_clips(needs_renderer: Any, settings: Settings, tmp_path: Path) -> None:
    items = list_items(1, 0, scenes=(2, 7))
    assert make.run(items, settings, tmp_path / "here", 0) == 4
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DASK, PIPELINES, tmp_path / "dask", settings.corpus], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "here") == content(tmp_path / "dask")


DASK = f"""
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from motion50.make import Settings, list_items, run
    settings = Settings(corpus=sys.argv[3], size_px={SIZE_PX}, num_frames={NUM_FRAMES})
    run(list_items(1, 0, scenes=(2, 7)), settings, Path(sys.argv[2]), 1)
"""


def sense(scene: Any, expert: Any) -> Any:
    """How the object moves in an episode: its turn on a hinge (axis times angle) or its displacement, (3,).

    From the places of the moving geoms in a model of their own, not from the coordinate that the set is cut by.
    """
    from motion50.episode import find_episode, scene_file
    from motion50.render import Studio
    from motion50.stage import build_stage, place

    episode = find_episode(scene, expert, np.random.default_rng(5))
    stage = build_stage(scene_file(scene.experts[expert]))
    place(stage, episode.body_pos_B3, episode.body_quat_B4)
    studio = Studio.__new__(Studio)
    studio.stage, studio.data = stage, __import__("mujoco").MjData(stage.model)
    moving = studio.moving_geoms(episode.qpos_SQ)[0]
    places, turns = [], []
    for qpos_Q in episode.qpos_SQ[[0, -1]]:
        studio.pose(qpos_Q)
        places.append(studio.data.geom_xpos[moving].mean(0))
        turns.append(studio.data.geom_xmat[moving[0]].reshape(3, 3).copy())
    turn_3 = cv2.Rodrigues(turns[1] @ turns[0].T)[0][:, 0]
    # A carried object may turn in the hand; what hangs on a hinge turns by itself.
    is_hinged = not scene.bodies and np.linalg.norm(turn_3) > TURN_RAD
    return turn_3 if is_hinged else places[1] - places[0]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_the_two_experts_of_a_scene_move_the_object_opposite_ways(needs_renderer: Any, scene: Any) -> None:
    forward_3, backward_3 = (sense(scene, expert) for expert in (0, 1))
    cosine = forward_3 @ backward_3 / np.linalg.norm(forward_3) / np.linalg.norm(backward_3)
    assert cosine < -0.3, (forward_3, backward_3)


@pytest.fixture(scope="module")
def clips(needs_renderer: Any, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of a drawer, one by each expert."""
    out = tmp_path_factory.mktemp("clips")
    settings = Settings(corpus=str(corpus), size_px=96, num_frames=17)
    for number in (0, 1):
        make.make_item(Item(split="test", scene=2, number=number), settings, str(out))
    return out


def truth(clips: Path, name: Any, number: Any) -> Any:
    return json.loads((clips / "truth" / "test" / name / f"{number:04d}.json").read_text())


def test_the_label_is_in_the_motion_and_not_in_one_frame(clips: Path) -> None:
    for number in (0, 1):
        frames = {name: decode(clips / "videos/test" / name / f"{number:04d}.mp4")[0] for name in SCENES[2].classes}
        open_THWC, close_THWC = frames["drawer-open"], frames["drawer-close"]
        # Every frame occurs under both labels, but for what the encoder makes of it.
        same_T = np.abs(open_THWC - close_THWC[::-1]).mean((1, 2, 3))
        other_T = np.abs(open_THWC - close_THWC).mean((1, 2, 3))
        assert same_T.max() < 6
        assert other_T[[0, -1]].min() > 2 * same_T.max()
        assert np.abs(open_THWC[8] - close_THWC[8]).mean() < 6
        # The motion decides.
        opening, closing = (truth(clips, name, number)["progress"] for name in SCENES[2].classes)
        assert opening[-1] - opening[0] > 0.05
        assert opening == closing[::-1]


def test_clips_are_h264_with_b_frames_and_real_texture(clips: Path) -> None:
    for path in (clips / "videos").rglob("*.mp4"):
        frames_THWC, types = decode(path)
        assert frames_THWC.shape == (17, 96, 96, 3)
        assert types.count("B") > 4
        assert pictures.flat_share(frames_THWC[8].astype(np.uint8), levels=2) < 0.15
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"


def test_boxes_follow_what_moves(clips: Path) -> None:
    for number in (0, 1):
        for name in SCENES[2].classes:
            file = clips / "boxes" / "test" / name / f"{number:04d}.txt"
            boxes = read_boxes(file)
            assert len(boxes.frame_K)
            assert boxes.frame_K.max() < 17
            assert (boxes.box_K4[:, :2] >= 0).all()
            assert (boxes.box_K4[:, :2] + boxes.box_K4[:, 2:] <= 96).all()
            rows = [line.split(",") for line in file.read_text().splitlines()]
            # The distractor is told to ignore, and the reader does.
            assert len(boxes.frame_K) == sum(row[1] != "3" for row in rows)
            drawer_T4 = np.array([[float(value) for value in row[2:6]] for row in rows if row[1] == "1"])
            assert len(drawer_T4) > 8
            assert np.abs(drawer_T4[0] - drawer_T4[-1]).max() > 2


def test_the_box_of_a_mask(needs_renderer: Any) -> None:
    from motion50.render import SUPERSAMPLE, box_of

    mask_HW = np.zeros((64, 64), bool)
    assert box_of(mask_HW) is None
    mask_HW[10:20, 30:50] = True
    assert box_of(mask_HW) == tuple(value / SUPERSAMPLE for value in (30, 10, 20, 10))


def test_the_camera_is_where_mujoco_has_it_and_moves_the_background(needs_renderer: Any) -> None:
    import mujoco
    from motion50 import camera

    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
    model.vis.global_.fovy = camera.FOVY_DEG
    path = camera.draw_camera(np.array([0.1, 0.6, 0.1]), 0.2, 33, np.random.default_rng(1))
    assert np.ptp(path.azimuth_T) > 1
    scene, view = mujoco.MjvScene(model, 10), mujoco.MjvCamera()
    far_3 = camera.axes(path, 16)[1] * 1e5
    for frame in (0, 16, 32):
        pose = camera.pose(path, frame, view)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, mujoco.MjData(model), mujoco.MjvOption(), None, pose, everything, scene)
        position_3, forward_3, right_3, up_3 = camera.axes(path, frame)
        eyes = scene.camera
        np.testing.assert_allclose((eyes[0].pos + eyes[1].pos) / 2, position_3, atol=0.02)
        np.testing.assert_allclose(eyes[0].forward, forward_3, atol=1e-4)
        np.testing.assert_allclose(eyes[0].up, up_3, atol=1e-4)
        # Something far, straight ahead at mid-clip, appears where the truth says.
        ray_3 = far_3 - position_3
        focal_px = 64 / np.tan(np.deg2rad(camera.FOVY_DEG / 2))
        seen_2 = focal_px * np.array([ray_3 @ right_3, -(ray_3 @ up_3)]) / (ray_3 @ forward_3)
        np.testing.assert_allclose(seen_2, camera.background_shift(path, 128)[frame], atol=1)

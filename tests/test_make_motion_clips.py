"""The demo's labelled set: its classes differ in motion alone, and the codec's vectors show which is which."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner
from synthetic import texture, write_video

SCRIPT = Path(__file__).parents[1] / "pipelines" / "make_motion_clips.py"
CLASSES = ["down", "left", "nearer", "right", "turning", "up"]
SMALL = ("--per-class", "2", "--test-per-class", "1", "--size", "96", "--frames", "17", "--seed", "3")


def load_script() -> Any:
    specification = importlib.util.spec_from_file_location("make_motion_clips", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


script = load_script()


def decode(path: Path) -> tuple[Any, Any, Any]:
    """Frames (T, H, W, 3), picture types, and of each frame with vectors the blocks' (x, y, dx, dy), (K, 4)."""
    frames, types, blocks_TK4 = [], "", []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24"))
            types += "?IPB"[int(frame.pict_type)]
            side_data = frame.side_data.get("MOTION_VECTORS")
            if side_data is not None:
                vectors = side_data.to_ndarray()
                past = vectors[vectors["source"] < 0]
                steps = [-past[name] / past["motion_scale"] for name in ("motion_x", "motion_y")]
                blocks_TK4.append(np.stack([past["dst_x"], past["dst_y"], *steps], axis=1))
    return np.stack(frames), types, blocks_TK4


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for seed, name in enumerate(("one", "two")):
        picture_HWC = texture(140, 180, seed=seed, is_grey=False)
        write_video(folder / f"{name}.mp4", [picture_HWC] * 30)
    return folder


@pytest.fixture(scope="module")
def motion_set(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "set"
    test = ("--test-backgrounds", str(sources / "two.mp4"))
    result = CliRunner().invoke(script.main, [str(out), str(sources / "one.mp4"), *test, *SMALL])
    assert result.exit_code == 0, result.output
    return out


def test_the_layout_is_split_class_clip(motion_set: Path) -> None:
    found = sorted(path.relative_to(motion_set).as_posix() for path in motion_set.rglob("*.mp4"))
    train = [f"train/{name}/000{k}.mp4" for name in CLASSES for k in range(2)]
    assert found == [f"test/{name}/0000.mp4" for name in CLASSES] + train
    assert [path.name for path in motion_set.parent.iterdir()] == ["set"]


def test_clips_are_h264_with_b_frames(motion_set: Path) -> None:
    types = ""
    for path in sorted(motion_set.rglob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 96, 96)
            assert stream.frames == 17
        types += decode(path)[1]
    assert types.count("B") > 17
    assert types.count("P") > 17


def test_at_mid_clip_all_classes_look_the_same() -> None:
    frames_SHWC = np.stack([texture(140, 180, seed=k, is_grey=False) for k in range(4)])
    clips = {name: script.make_clip([frames_SHWC], name, 17, 96, (0, 0, 5)) for name in CLASSES}
    for name in CLASSES:
        assert np.array_equal(clips[name][8], clips["left"][8]), name
        assert name == "left" or not np.array_equal(clips[name][3], clips["left"][3])


@pytest.mark.parametrize(("name", "axis", "sign"), [("left", 2, -1), ("right", 2, 1), ("up", 3, -1), ("down", 3, 1)])
def test_the_vectors_of_a_shift_point_its_way(motion_set: Path, name: str, axis: int, sign: int) -> None:
    for path in motion_set.glob(f"*/{name}/*.mp4"):
        blocks_K4 = np.concatenate(decode(path)[2])
        moving_K4 = blocks_K4[np.abs(blocks_K4[:, 2:]).sum(1) > 0]
        along, across = np.median(moving_K4[:, axis]), np.median(moving_K4[:, 5 - axis])
        assert sign * along > 0
        assert abs(across) < abs(along)


def test_the_vectors_of_nearer_diverge_and_those_of_turning_curl(motion_set: Path) -> None:
    for split in ("train", "test"):
        radial, tangential = {}, {}
        for name in ("nearer", "turning"):
            blocks_K4 = np.concatenate(decode(motion_set / split / name / "0000.mp4")[2]).astype(float)
            moving_K4 = blocks_K4[np.abs(blocks_K4[:, 2:]).sum(1) > 0]
            away_K2 = moving_K4[:, :2] - moving_K4[:, :2].mean(0)
            away_K2 /= np.linalg.norm(away_K2, axis=1, keepdims=True) + 1e-6
            step_K2 = moving_K4[:, 2:]
            radial[name] = (away_K2 * step_K2).sum(1).mean()
            tangential[name] = abs((away_K2[:, 0] * step_K2[:, 1] - away_K2[:, 1] * step_K2[:, 0]).mean())
        assert radial["nearer"] > 2 * abs(radial["turning"]), (radial, tangential)
        assert tangential["turning"] > 2 * tangential["nearer"], (radial, tangential)


def test_the_same_seed_gives_the_same_files(sources: Path, tmp_path: Path) -> None:
    arguments = ["--per-class", "1", "--test-per-class", "1", "--size", "48", "--frames", "6", "--seed"]
    for name, seed in (("one", "7"), ("same", "7"), ("other", "8")):
        result = CliRunner().invoke(script.main, [str(tmp_path / name), str(sources / "one.mp4"), *arguments, seed])
        assert result.exit_code == 0, result.output
    for path in (tmp_path / "one").rglob("*.mp4"):
        relative = path.relative_to(tmp_path / "one")
        assert path.read_bytes() == (tmp_path / "same" / relative).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / relative).read_bytes()


def test_without_test_videos_the_splits_are_parts_of_time() -> None:
    frames_SHWC = np.arange(100, dtype=np.uint8)[:, None, None, None]
    splits = script.split_sources([frames_SHWC], [])
    assert splits["train"][0].ravel().tolist() == [*range(60)]
    assert splits["test"][0].ravel().tolist() == [*range(70, 100)]


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    no_video = tmp_path / "text.mp4"
    no_video.write_text("not a video")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    for arguments, message in (
        ((tmp_path / "out", no_video), "not a video"),
        ((tmp_path / "out", tmp_path / "missing.mp4"), "missing.mp4"),
        ((full, no_video), "not empty"),
        ((tmp_path / "out", no_video, "--size", 33), "even"),
    ):
        done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "text.mp4"]
    assert (full / "mine.txt").read_text() == "keep"

"""The demo's set of scenes: cuts divide it, training and test frames are apart, and the same seed gives the same files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic import texture, write_video

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

import make_scene_clips as script  # noqa: E402

SMALL = ("--per-class", "2", "--test-per-class", "1", "--size", "48", "--seed", "3")


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 30 frames of a dark texture, 40 of a bright one, and 5 of a dark one."""
    dark_HWC, bright_HWC = (texture(96, 128, seed=seed, is_grey=False) // 3 for seed in (0, 1))
    path = tmp_path_factory.mktemp("sources") / "film.mp4"
    write_video(path, [dark_HWC] * 30 + [bright_HWC + 150] * 40 + [dark_HWC] * 5)
    return path


def test_a_class_lies_between_two_cuts(two_scenes: Path) -> None:
    scenes = script.read_scenes((two_scenes,), 8)
    assert {name: len(frames_SHWC) for name, frames_SHWC in scenes.items()} == {"film-0": 30, "film-1": 40}
    means = [frames_SHWC.mean((1, 2, 3)) for frames_SHWC in scenes.values()]
    assert means[0].max() < means[1].min()


@pytest.mark.parametrize("num_frames", [2, 8, 16])
def test_training_and_test_frames_are_apart(num_frames: int) -> None:
    for length in range(script.min_scene(num_frames), 5 * num_frames):
        numbers_S = np.arange(length, dtype=np.uint8)[:, None, None, None]
        parts = {name: set(part.ravel().tolist()) for name, part in script.split_scene(numbers_S, num_frames).items()}
        assert not parts["train"] & parts["test"], length
        assert min(map(len, parts.values())) >= num_frames, length


def test_windows_are_squares_of_the_scene_at_rest() -> None:
    frames_SHWC = np.zeros((12, 60, 90, 3), np.uint8)
    frames_SHWC[..., 0] = np.arange(12)[:, None, None]
    frames_SHWC[..., 1] = np.arange(90)
    frames_SHWC[..., 2] = np.arange(60)[:, None]
    for seed in range(20):
        window_THWC = script.cut_window(frames_SHWC, 8, 24, np.random.default_rng(seed)).astype(int)
        assert window_THWC.shape == (8, 24, 24, 3)
        times_T = window_THWC[:, 0, 0, 0]
        assert np.array_equal(times_T, np.arange(times_T[0], times_T[0] + 8))
        spans = np.ptp(window_THWC[0, ..., 1]), np.ptp(window_THWC[0, ..., 2])
        assert abs(spans[0] - spans[1]) <= 2
        assert 0.4 * 60 - 4 <= spans[0] <= 60
        assert np.array_equal(window_THWC[0, ..., 1:], window_THWC[7, ..., 1:])


def test_the_set_is_made_alike_by_the_same_seed(two_scenes: Path, tmp_path: Path) -> None:
    for name in ("one", "same"):
        result = CliRunner().invoke(script.main, [str(tmp_path / name), str(two_scenes), *SMALL])
        assert result.exit_code == 0, result.output
    found = sorted(path.relative_to(tmp_path / "one").as_posix() for path in (tmp_path / "one").rglob("*.mp4"))
    train = [f"train/film-{scene}/000{k}.mp4" for scene in (0, 1) for k in (0, 1)]
    assert found == ["test/film-0/0000.mp4", "test/film-1/0000.mp4", *train]
    for path in found:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "same" / path).read_bytes()
    assert (tmp_path / "one" / train[0]).read_bytes() != (tmp_path / "one" / train[1]).read_bytes()


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    still = tmp_path / "still.mp4"
    write_video(still, [texture(96, 128, seed=0)] * 30)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    for arguments, message in (
        ((tmp_path / "out", still), "have 1 scenes"),
        ((tmp_path / "out", tmp_path / "missing.mp4"), "missing.mp4"),
        ((full, still), "not empty"),
        ((tmp_path / "out", still, "--size", 33), "even"),
    ):
        command = [sys.executable, str(PIPELINES / "make_scene_clips.py"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "still.mp4"]

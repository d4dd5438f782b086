"""The stage as a whole: what is in the store, what a second run does, what a killed run leaves."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner, Result
from synthetic import ffmpeg, ffmpeg_rgb, pan, psnr, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.colour import PlaneScaler
from mgm_prep.extraction.extract import extract
from mgm_prep.runtime.execution import Execution
from mgm_shared.store import Store, open_store


def _bytes(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def native_clips(real_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real clip whose sides are multiples of 8, limited-range as it is and made full-range."""
    root = tmp_path_factory.mktemp("native")
    (root / "limited.mp4").symlink_to(real_videos / "bikes.mp4")
    full = ["-vf", "scale=out_range=pc", "-color_range", "pc", "-crf", "16", "-preset", "veryfast"]
    ffmpeg("-i", str(real_videos / "bikes.mp4"), "-t", "2", *full, str(root / "full.mp4"))
    return root


@pytest.mark.parametrize(("codec", "least_db"), [("jpeg", 36), ("planes", 38), ("lossless", 44)])
def test_stored_pixels_are_the_ffmpeg_program_s(
    native_clips: Path, tmp_path: Path, codec: Literal["jpeg", "planes", "lossless"], least_db: int
) -> None:
    extract(native_clips, tmp_path / "out.store", ExtractSettings(short_side=4096, frame_codec=codec))
    store = open_store(tmp_path / "out.store")
    for name in ("limited.mp4", "full.mp4"):
        video = store[name]
        reference = ffmpeg_rgb(native_clips / name, video.height, video.width)
        assert len(reference) == video.num_frames
        assert psnr(reference[::5], video.frames[::5]) >= least_db, name


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good and bad files of two sizes."""
    root = tmp_path / "in"
    root.mkdir()
    for k, size in enumerate([(64, 96), (96, 64), (64, 96)]):
        write_video(root / f"good{k}.mp4", pan((2, 1), num_frames=10 + k, height=size[0], width=size[1]))
    (root / "empty.mp4").touch()
    (root / "text.mkv").write_text("not a video\n" * 40)
    (root / "notes.txt").write_text("mine")
    return root


def test_bad_files_are_told_and_the_rest_is_done(mixed: Path, tmp_path: Path) -> None:
    result = _run("extract", mixed, tmp_path / "out.store", "--workers", 0, "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["listed"], summary["done"], summary["failed"], summary["ignored_files"]) == (5, 3, 2, 1)
    failures = [json.loads(line) for line in (tmp_path / "out.store/failures.jsonl").read_text().splitlines()]
    assert [failure["video_id"] for failure in failures] == ["empty.mp4", "text.mkv"]
    assert all(failure["reason"] for failure in failures)
    assert open_store(tmp_path / "out.store").videos["num_frames"].to_dict() == {
        "good0.mp4": 10,
        "good1.mp4": 11,
        "good2.mp4": 12,
    }


def test_the_same_command_again_does_only_what_is_missing(mixed: Path, tmp_path: Path) -> None:
    store = tmp_path / "out.store"
    _run("extract", mixed, store, "--workers", 0)
    before = _bytes(store)
    again = json.loads(_run("extract", mixed, store, "--workers", 0, "--json").stdout)
    assert again["extracted_now"] == 0
    assert _bytes(store) == before
    write_video(mixed / "new.mp4", pan((1, 1), num_frames=5, height=64, width=96))
    outlook = json.loads(_run("extract", mixed, store, "-n", "--json").stdout)
    assert (outlook["to_do"], outlook["new"], outlook["done"], outlook["failed"]) == (1, 1, 3, 2)
    more = json.loads(_run("extract", mixed, store, "--workers", 0, "--json").stdout)
    assert (more["extracted_now"], more["done"]) == (1, 4)
    after = _bytes(store)
    assert all(after[name] == content for name, content in before.items() if name.startswith("parts/"))


@pytest.mark.starts_dask
def test_workers_do_not_change_a_byte(mixed: Path, tmp_path: Path) -> None:
    for number, workers in enumerate((0, 2)):
        extract(mixed, tmp_path / f"{number}.store", ExtractSettings(), Execution(workers=workers))
    assert _bytes(tmp_path / "0.store") == _bytes(tmp_path / "1.store")


def test_a_video_that_fails_half_way_leaves_no_frame(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, calls = PlaneScaler.planes, iter(range(10**6))

    def breaks_once(self: Any, frame: Any, height: Any, width: Any) -> Any:
        if next(calls) == 15:
            raise ValueError("made up")
        return convert(self, frame, height, width)

    monkeypatch.setattr(PlaneScaler, "planes", breaks_once)
    extract(mixed, tmp_path / "out.store", ExtractSettings())
    monkeypatch.undo()
    (mixed / "good2.mp4").rename(tmp_path / "good2.mp4")
    extract(mixed, tmp_path / "without.store", ExtractSettings())
    broken, without = open_store(tmp_path / "out.store"), open_store(tmp_path / "without.store")
    assert set(broken.videos.index) == set(without.videos.index)
    for video_id in without.videos.index:
        np.testing.assert_array_equal(broken[video_id].frames[:], without[video_id].frames[:])
        np.testing.assert_array_equal(broken[video_id].motion[:], without[video_id].motion[:])


def test_a_full_disk_blames_no_video(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgm_shared import shard_writer

    def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer.ShardWriter, "_write_chunk", full)
    result = _run("extract", mixed, tmp_path / "out.store", "--workers", 0)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr.splitlines()[-1]
    monkeypatch.undo()
    again = json.loads(_run("extract", mixed, tmp_path / "out.store", "--workers", 0, "--json").stdout)
    assert (again["done"], again["failed"]) == (3, 2)


@pytest.mark.parametrize(
    ("workers", "num_kills"), [(0, 3), *(pytest.param(workers, 10, marks=pytest.mark.slow) for workers in (1, 2, 4))]
)
def test_a_killed_run_is_completed(tmp_path: Path, workers: Any, num_kills: Any) -> None:
    """SIGKILL at random moments; then the store is, byte for byte, that of a run nobody disturbed, in this process."""
    videos = tmp_path / "in"
    videos.mkdir()
    for k in range(14):
        write_video(videos / f"{k:02d}.mp4", pan((2, 1), num_frames=40, height=128, width=160))
    extract(videos, tmp_path / "calm.store", ExtractSettings())
    start_s = time.monotonic()
    subprocess.run(_program(videos, tmp_path / "timed.store", workers), check=True, capture_output=True, env=_path())
    whole_s = time.monotonic() - start_s
    rng = random.Random(workers)
    num_killed = 0
    for k in range(num_kills):
        command = _program(videos, tmp_path / f"killed{k}.store", workers)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=_path())
        time.sleep(whole_s * (0.3 + 0.6 * rng.random()))
        num_killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run(command, check=True, capture_output=True, env=_path())
        assert _bytes(tmp_path / f"killed{k}.store") == _bytes(tmp_path / "calm.store")
    assert num_killed >= num_kills / 2


def _program(videos: Any, store: Any, workers: Any) -> list[Any]:
    return [sys.executable, "-m", "mgm_prep", "extract", str(videos), str(store), "--workers", str(workers)]


def _path() -> dict[str, Any]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_run_that_was_killed_at_once_is_no_foreign_store(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "out.store/parts").mkdir(parents=True)
    (tmp_path / "out.store/parts/zarr.json").write_text("{}")
    assert extract(mixed, tmp_path / "out.store", ExtractSettings()).done == 3


def test_bad_input_is_one_line_and_leaves_nothing(mixed: Path, tmp_path: Path) -> None:
    store = tmp_path / "out.store"
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.yaml").write_text("extract:\n  short_side: 64\n  jpeg_qualty: 80\n")
    cases = {
        ("extract", tmp_path / "nowhere", store): "does not exist",
        ("extract", tmp_path / "empty", store): "holds no video",
        ("extract", mixed, mixed): "is not an mgm store",
        ("extract", mixed, store, "--jpeg-quality", 0): "0 is not in the range 1<=x<=100",
        ("extract", mixed, store, "--config", tmp_path / "config.yaml"): "`extract` has no option jpeg-qualty",
        ("extract", mixed, store, "--config", tmp_path / "none.yaml"): "cannot be read",
        ("inspect", tmp_path): "is not an mgm store",
        ("index", tmp_path / "nowhere"): "is not an mgm store",
    }
    for arguments, message in cases.items():
        result = _run(*arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert not store.exists()


def test_another_setting_or_a_busy_store_is_refused(mixed: Path, tmp_path: Path) -> None:
    store = tmp_path / "out.store"
    _run("extract", mixed, store, "--workers", 0)
    before = _bytes(store)
    result = _run("extract", mixed, store, "--workers", 0, "--jpeg-quality", 80)
    assert result.exit_code == 2
    assert "was extracted with jpeg_quality = 90" in result.stderr
    assert _bytes(store) == before
    forced = _run("extract", mixed, store, "--workers", 0, "--jpeg-quality", 80, "--force")
    assert forced.exit_code == 3
    assert _bytes(tmp_path / "out.store.old-1") == before


def test_a_config_file_sets_what_flags_do_not(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("extract:\n  short_side: 32\n  jpeg_quality: 80\npretrain: {}\n")
    _run(
        "extract",
        mixed,
        tmp_path / "out.store",
        "--workers",
        0,
        "--config",
        tmp_path / "config.yaml",
        "--jpeg-quality",
        70,
    )
    settings = open_store(tmp_path / "out.store").attributes["settings"]
    assert (settings["short_side"], settings["jpeg_quality"], settings["frame_codec"]) == (32, 70, "jpeg")


def test_inspect(pan_store: Store, tmp_path: Path) -> None:
    result = _run("inspect", pan_store.path, "--json")
    described = json.loads(result.stdout)
    assert (described["videos"], described["frames"], described["labels"]) == (8, 192, 4)
    video = json.loads(
        _run("inspect", pan_store.path, "train/left", "--json", "--figure", tmp_path / "left.png").stdout
    )
    assert video["speed_p50_px"] == 3.0
    assert video["picture_types"]["I"] == 1
    assert (tmp_path / "left.png").read_bytes().startswith(b"\x89PNG")
    index = json.loads(_run("index", pan_store.path, "--json").stdout)
    assert (index["videos"], index["frames"]) == (8, 192)
    assert "has no video 'left'; 2 ids contain it" in _run("inspect", pan_store.path, "left").stderr


def test_times_are_the_streams(tmp_path: Path) -> None:
    """Variable frame rate, and a clip that starts late."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/vfr.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x64:r=25:d=2", "-vf", "select='not(mod(n,3))+lt(n,10)'",
           "-fps_mode", "vfr", "-c:v", "libx264", str(path))  # fmt: skip
    extract(tmp_path / "in", tmp_path / "out.store", ExtractSettings())
    video = open_store(tmp_path / "out.store")["vfr.mp4"]
    chosen = [n for n in range(50) if n % 3 == 0 or n < 10]
    np.testing.assert_allclose(video.time_s, np.array(chosen) / 25, atol=1e-3)
    assert video.fps == pytest.approx((len(chosen) - 1) / (chosen[-1] / 25), rel=1e-3)

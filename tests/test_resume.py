"""Killed and interrupted runs on a real store: the same clips, the same losses, nothing left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy import assert_same_run, process_server, train_on_store

from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder, load_last
from mgm_train.checkpoint.weights import save_weights
from mgm_train.model_config import model_config
from mgm_train.models.videomae import VideoClassifier, build

NUM_STEPS = 24


def _start(run: Path, store: Store, num_workers: int) -> BaseProcess:
    process = process_server().Process(target=train_on_store, args=(run, store.path, num_workers))
    process.start()
    return process


def _steps(run: Path) -> list[list[Any]]:
    """[the step's seed, what was seen in it] for each step, in the order in which they were taken."""
    file = run.with_suffix(".steps")
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _wait_until(is_so: Callable[[], bool], timeout_s: float = 120.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.002)


def _kill(process: BaseProcess, run: Path, is_odd: bool) -> None:
    """Now, or as soon after as the last checkpoint is of an odd step, if `is_odd`, or else not of the last step taken.

    Most are of even steps here, at which a count of what was seen may be rounded without harm.
    """
    running = psutil.Process(process.pid)
    while True:
        running.suspend()
        _wait_until(lambda: running.status() == psutil.STATUS_STOPPED)
        if _step_saved(run) % 2 if is_odd else _step_saved(run) < len(dict(_steps(run))):
            break
        running.resume()
        time.sleep(0.005)
    process.kill()
    process.join()


def _is_past(run: Path, num_before: int, step: int) -> bool:
    """Whether the run has gone on since it had `num_before` rows, and has done `step` steps."""
    return len(_steps(run)) > num_before and len(dict(_steps(run))) >= step


def _step_saved(run: Path) -> int:
    last = load_last(RunFolder(run))
    return 0 if last is None else int(last["position"]["samples_seen"])


@pytest.mark.parametrize("num_kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_neither_clips_nor_losses(num_kills: int, pan_store: Store, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = _start(whole, pan_store, 0)
    chance = random.Random(num_kills)
    readers: list[psutil.Process] = []
    for kill, step in enumerate(sorted(chance.sample(range(1, NUM_STEPS - 3), num_kills))):
        process, num_before = _start(parts, pan_store, (0, 1, 3)[kill % 3]), len(_steps(parts))
        _wait_until(partial(_is_past, parts, num_before, step))
        time.sleep(chance.uniform(0, 0.02))
        readers += psutil.Process(process.pid).children(recursive=True)
        _kill(process, parts, is_odd=kill % 2 == 0)
        assert process.exitcode == -signal.SIGKILL
    last = _start(parts, pan_store, 1)
    last.join()
    undisturbed.join()
    assert (undisturbed.exitcode, last.exitcode) == (0, 0), parts.with_suffix(".log").read_text()
    seen_at = dict(_steps(whole))
    assert len(seen_at) == NUM_STEPS
    taken = _steps(parts)
    assert len(taken) > NUM_STEPS, "some steps were lost and taken again"
    assert {seed for seed, _ in taken} == seen_at.keys()
    for seed, seen in taken:
        assert seen == seen_at[seed]
    assert_same_run(whole, parts)
    _, alive = psutil.wait_procs(readers, timeout=20)
    assert readers
    assert not alive, "readers outlive the run that was killed"
    assert not list((parts / "checkpoints").glob(".*"))


def _orphans(pids: Iterable[int]) -> list[str]:
    """Pieces of shared memory that these processes left. torch names a piece `torch_PID_…`."""
    return [name for name in os.listdir("/dev/shm") if not {f"{pid}" for pid in pids}.isdisjoint(name.split("_"))]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_ctrl_c_saves_and_leaves_nothing_behind(start: str, pan_store: Store, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shape = "--model vit_tiny --num-frames 4 --image-px 64 --stride 2 --batch-size 4 --log-every-steps 1".split()
    said = _interrupted(
        ["pretrain", str(pan_store.path), "--run", str(run), *shape, "--epochs", "1000"],
        start,
        lambda running: len(RunFolder(run).read_metrics()) >= 2,
    )
    assert "run the same command again to continue" in said
    assert (run / "checkpoints/last.pt").exists()


@pytest.mark.parametrize(
    "start", ["fork", *(pytest.param(start, marks=pytest.mark.slow) for start in ("spawn", "forkserver"))]
)
def test_ctrl_c_ends_a_test_and_leaves_nothing_behind(start: str, pan_store: Store, tmp_path: Path) -> None:
    """Half a second after its reader began: a new interpreter still loads its modules then, a fork reads."""
    shape = model_config("vit_tiny", num_frames=8, image_px=112)
    model = build(lambda: VideoClassifier(shape, 4), seed=0)
    labels = json.dumps(["down", "left", "right", "up"])
    save_weights(tmp_path / "weights.safetensors", model.state_dict(), shape, {"labels": labels})
    out = tmp_path / "out"

    def is_reading(running: psutil.Process) -> bool:
        return any(time.time() - reader.create_time() > 0.5 for reader in _readers(running))

    command = ["evaluate", str(pan_store.path), str(tmp_path / "weights.safetensors"), "--out", str(out)]
    command += ["--batch-size", "1", "--num-temporal-views", "100"]
    assert _interrupted(command, start, is_reading) == "stopped\n"
    assert not out.exists()


def _readers(running: psutil.Process) -> list[psutil.Process]:
    """Its processes that read, or start those: no others are Pythons, but one that counts what they share."""
    found = []
    for child in running.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            found += [child] if "python" in command and "resource_tracker" not in command else []
    return found


def _interrupted(command: list[str], start: str, is_under_way: Callable[[psutil.Process], bool]) -> str:
    """What `mgm-train COMMAND` with one reader says to a Ctrl-C, which ends it with 130 and without a trace."""
    # Not below pytest's folder: the path of a socket has at most 107 bytes.
    scratch = Path(tempfile.mkdtemp())
    settings = ["--num-workers", "1", "--worker-start", start, "--device", "cpu"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }
    # A terminal sends Ctrl-C to a whole group of processes; a session of its own is one.
    with subprocess.Popen(
        [sys.executable, "-m", "mgm_train", *command, *settings],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        running = psutil.Process(process.pid)
        _wait_until(lambda: is_under_way(running) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        family = running.children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert family, "there were readers"
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    # It holds nothing any more.
    scratch.rmdir()
    assert not _orphans([running.pid, *(child.pid for child in family)])
    # Python's resource tracker says so of semaphores.
    assert "leaked" not in said
    return said

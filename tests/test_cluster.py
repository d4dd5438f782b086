"""Clusters as they are in real life: started by hand, losing workers, stopped in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from synthetic import pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.runtime.cluster import open_cluster
from mgm_prep.runtime.execution import Execution

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
PATIENCE_S = 120


def _bytes(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def _wait_for(is_so: Any) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def _num_parts(store: Path) -> int:
    return len(list(store.glob("parts/*-*")))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Forty videos, and their store as a run makes it that nobody disturbs."""
    root = tmp_path_factory.mktemp("calm")
    (root / "in").mkdir()
    first = write_video(root / "in/00.mp4", pan((2, 1), num_frames=52, height=128, width=160))
    for number in range(1, 40):
        (root / f"in/{number:02d}.mp4").hardlink_to(first)
    extract(root / "in", root / "calm.store", ExtractSettings())
    assert _num_parts(root / "calm.store") == 8
    return root / "in", root / "calm.store"


def _start(*arguments: object) -> subprocess.Popen[str]:
    """A Python module as a process group of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


@pytest.fixture
def hand_started(tmp_path: Path) -> Iterator[tuple[Path, list[subprocess.Popen[str]]]]:
    """`dask scheduler` and two `dask worker`: the scheduler's file, and the workers."""
    file = tmp_path / "scheduler.json"
    local = ["--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard"]
    processes = [_start("dask", "scheduler", *local, "--port", 0)]
    _wait_for(file.exists)
    processes += [
        _start("dask", "worker", *local, "--nthreads", 1, "--local-directory", tmp_path / f"scratch{number}")
        for number in range(2)
    ]
    yield file, processes[1:]
    for process in processes:
        for member in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            member.kill()
        process.kill()
        process.communicate()


def test_a_hand_started_cluster_that_loses_a_worker(
    calm: tuple[Path, Path], hand_started: tuple[Path, list[subprocess.Popen[str]]], tmp_path: Path
) -> None:
    """The scheduler and its workers have their own settings; one worker and its nanny are killed in the middle."""
    file, workers = hand_started
    store = tmp_path / "out.store"
    run = _start("mgm_prep", "extract", calm[0], store, "--scheduler", file, "--json")
    _wait_for(lambda: _num_parts(store) >= 1)
    num_parts = _num_parts(store)
    os.killpg(workers[0].pid, signal.SIGKILL)
    stdout, stderr = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, stderr
    assert num_parts < 8, "the worker was killed too late to matter"
    assert json.loads(stdout)["failed"] == 0
    assert "dask dashboard: http://" in stderr
    assert _bytes(store) == _bytes(calm[1])


@pytest.mark.parametrize(
    ("number", "is_to_all"),
    [
        pytest.param(signal.SIGINT, True, id="ctrl-c"),
        pytest.param(signal.SIGTERM, False, id="sigterm", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_leaves_a_store_and_says_how_to_go_on(
    calm: tuple[Path, Path], tmp_path: Path, number: Any, is_to_all: bool
) -> None:
    """A terminal's Ctrl-C reaches the workers too; a cluster manager may ask the main process alone."""
    store = tmp_path / "out.store"
    run = _start("mgm_prep", "extract", calm[0], store, "--workers", 2)
    _wait_for(lambda: _num_parts(store) >= 1)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 2
    (os.killpg if is_to_all else os.kill)(run.pid, number)
    _, stderr = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 130
    assert stderr.splitlines()[-1] == "stopped; run the same command again to continue"
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert not (store / ".unfinished").exists()
    assert not (store / ".lock").exists()
    assert 1 <= _num_parts(store) < 8
    extract(calm[0], store, ExtractSettings())
    assert _bytes(store) == _bytes(calm[1])


@pytest.mark.starts_dask
def test_no_scheduler_is_one_line(calm: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgm_prep.runtime import cluster
    from mgm_shared.errors import UserError

    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    with pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        extract(calm[0], tmp_path / "out.store", ExtractSettings(), Execution(scheduler="tcp://127.0.0.1:9"))


def dies_twice(number: int, marks: Path) -> int:
    """Ends its process at once, before the nanny has heard that it is there; the third time it answers."""
    deaths = len(list(marks.glob(f"{number}-*")))
    if deaths == 2:
        return number
    (marks / f"{number}-{deaths}").touch()
    os._exit(1)


@pytest.mark.slow
@pytest.mark.starts_dask
def test_workers_that_die_at_once_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's nannies give up on such a worker, and a cluster that has lost all would wait for ever."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    with open_cluster(Execution(workers=2)) as cluster:
        assert sorted(cluster.map(dies_twice, range(3), tmp_path, after_deaths=lambda number: number)) == [0, 1, 2]

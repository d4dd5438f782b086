"""How many cores a process may use, and how many data loading workers it starts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mgm_shared import cores
from mgm_shared.errors import UserError
from mgm_train.data import packed_batch, workers
from mgm_train.data.workers import WorkerCount, clip_bytes, count_workers

GPU, CPU = torch.device("cuda"), torch.device("cpu")
BATCH_BYTES = 64 * clip_bytes(16, 224)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend a number of cores, processes and free bytes of shared memory."""

    def pretend(num_cores: int, num_processes: int = 1, free_bytes: float = math.inf) -> None:
        monkeypatch.setattr(workers, "num_usable_cores", lambda: num_cores)
        monkeypatch.setattr(workers, "free_shared_bytes", lambda: free_bytes)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))

    return pretend


@pytest.mark.parametrize(
    ("num_cores", "num_processes", "device", "expected"),
    [
        (16, 1, GPU, 15),
        (128, 8, GPU, 15),
        (10, 4, GPU, 1),
        (4, 8, GPU, 1),
        (1, 1, GPU, 1),
        (2, 1, CPU, 1),
        (16, 1, CPU, 4),
        (16, 2, CPU, 2),
    ],
)
def test_auto_divides_the_cores_among_the_processes(
    machine: Any, num_cores: int, num_processes: int, device: torch.device, expected: int
) -> None:
    machine(num_cores, num_processes)
    assert count_workers("auto", BATCH_BYTES, device) == WorkerCount(number=expected)


def test_a_number_that_was_set_is_taken_up_to_the_cores(machine: Any) -> None:
    machine(16)
    assert [count_workers(number, BATCH_BYTES, GPU).number for number in (0, 3, 16, 99)] == [0, 3, 16, 16]


def test_without_torchruns_word_all_processes_are_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert workers.local_world_size() == 4
    monkeypatch.delenv("WORLD_SIZE")
    assert workers.local_world_size() == 1


def test_shared_memory_is_checked_before_the_start(machine: Any) -> None:
    """64 clips × 2 batches × 16 workers are 4.6 GiB."""
    needed_bytes = 16 * 2 * 64 * 3 * 16 * 224 * 224
    machine(17, free_bytes=needed_bytes)
    assert count_workers("auto", BATCH_BYTES, GPU) == WorkerCount(number=16)
    machine(17, free_bytes=needed_bytes - 1)
    fewer = count_workers("auto", BATCH_BYTES, GPU)
    assert fewer.number == 15
    assert fewer.remark.startswith("num-workers is 15: num-workers 16 needs 4.6 GiB of shared memory (2 batches of 147")
    with pytest.raises(UserError, match=r"num-workers 16 needs .* free; lower num-workers to 15, or batch-size, or"):
        count_workers(16, BATCH_BYTES, GPU)
    assert count_workers(15, BATCH_BYTES, GPU) == WorkerCount(number=15)
    machine(17, num_processes=2, free_bytes=needed_bytes)
    assert count_workers("auto", BATCH_BYTES, GPU) == WorkerCount(number=7)
    # Docker's default.
    machine(17, free_bytes=64 * 2**20)
    none = count_workers("auto", BATCH_BYTES, GPU)
    assert none.number == 0
    assert "docker run --shm-size 6g" in none.remark
    assert count_workers(0, BATCH_BYTES, GPU) == WorkerCount(number=0)


def test_free_shared_memory_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packed_batch, "SHARED_MEMORY", tmp_path / "none")
    assert packed_batch.free_shared_bytes() == math.inf


def _files(folder: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("own", "contents", "expected"),
    [
        # Docker's --cpus 2.5, seen from inside, by both versions of control groups.
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        # A job of systemd or SLURM: the group above is the tighter one.
        ("0::/job/step\n", {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "max 100000\n"}, 3.0),
        ("0::/job/step\n", {"job/cpu.max": "max 100000\n", "job/step/cpu.max": "50000 100000\n"}, 0.5),
        ("3:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "400000", "cpu/job/cpu.cfs_period_us": "100000"}, 4.0),
        ("0::/elsewhere\n", {}, math.inf),
        ("nonsense", {"cpu.max": "nonsense"}, math.inf),
    ],
)
def test_the_quota_of_a_control_group_is_known(
    tmp_path: Path, own: str, contents: dict[str, str], expected: float
) -> None:
    (tmp_path / "own").write_text(own)
    assert cores.cpu_quota(tmp_path / "own", _files(tmp_path / "fs", contents)) == expected
    assert cores.cpu_quota(tmp_path / "missing", tmp_path / "nowhere") == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (2.9, 2), (math.inf, 8), (64.0, 8)])
def test_usable_cores_are_no_more_than_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(cores, "_num_cores_of_affinity", lambda: 8)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.num_usable_cores() == expected

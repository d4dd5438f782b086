"""A folder has one writer; the second is told who it is; an owner that is gone is told from one that lives."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mgm_shared import lock
from mgm_shared.errors import UserError
from mgm_shared.lock import LOCK_FILE, one_writer
from mgm_shared.processes import ProcessId

# Holds a folder, forks a child that outlives it, and waits to be killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from mgm_shared.lock import one_writer
with one_writer(Path(sys.argv[1])):
    if os.fork() == 0:
        # Said by the child: by then it has let go of the lock, as it does at the start.
        print(os.getpid(), flush=True)
        time.sleep(30)
        os._exit(0)
    time.sleep(30)
"""


@pytest.fixture(autouse=True)
def _fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)


@pytest.fixture
def no_kernel_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system without flock."""

    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)


def _elsewhere() -> ProcessId:
    return replace(ProcessId.own(), host="node4", machine="node4 another-boot", pid=7)


def _leave(folder: Path, owner: ProcessId, beat: int = 3) -> None:
    (folder / LOCK_FILE).write_text(json.dumps({"token": "x", "owner": asdict(owner), "beat": f"{beat:012d}"}))


def _refuses(folder: Path, owner: str) -> None:
    with pytest.raises(UserError, match=rf"another command \({owner}\) is writing to .*; wait for it, or stop it"):  # noqa: SIM117
        with one_writer(folder):
            raise AssertionError


def test_the_second_writer_is_told_host_and_process(tmp_path: Path) -> None:
    for _ in range(2):
        with one_writer(tmp_path / "run") as check_lock:
            _refuses(tmp_path / "run", f"process {os.getpid()} on {socket.gethostname()}")
            check_lock()
        assert not (tmp_path / "run").exists(), "nobody wrote into the folder that the call made"


def test_writers_of_other_files_do_not_meet(tmp_path: Path) -> None:
    with one_writer(tmp_path), one_writer(tmp_path, name=".test.lock"):
        assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A folder whose owner was killed; a child that it forked lives on."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        _refuses(tmp_path, f"process {holder.pid} on {socket.gethostname()}")
        holder.kill()
        holder.wait()
    yield tmp_path
    os.kill(child, 9)


def test_a_killed_owner_is_nobody_at_once(killed: Path) -> None:
    start_s = time.monotonic()
    with one_writer(killed):
        pass
    assert time.monotonic() - start_s < 0.5


def test_a_killed_owner_is_nobody_at_once_without_kernel_locks(killed: Path, no_kernel_lock: None) -> None:
    said: list[str] = []
    with one_writer(killed, said.append):
        pass
    assert said == []


def test_another_machines_silent_lock_is_taken(tmp_path: Path) -> None:
    _leave(tmp_path, _elsewhere())
    said: list[str] = []
    with one_writer(tmp_path, said.append) as check_lock:
        check_lock()
    (line,) = said
    assert "is of process 7 on node4; waiting up to 1 s for a sign of it" in line


@pytest.mark.parametrize("has_kernel_lock", [True, False])
def test_another_machines_beating_lock_is_not(tmp_path: Path, has_kernel_lock: bool, request: Any) -> None:
    if not has_kernel_lock:
        request.getfixturevalue("no_kernel_lock")
    _leave(tmp_path, _elsewhere())
    beating = threading.Timer(0.3, _leave, [tmp_path, _elsewhere(), 4])
    beating.start()
    _refuses(tmp_path, "process 7 on node4")
    beating.join()


def test_a_living_owner_is_seen_without_kernel_locks(tmp_path: Path, no_kernel_lock: None) -> None:
    with one_writer(tmp_path):
        _refuses(tmp_path, f"process {os.getpid()} on {socket.gethostname()}")


def test_of_two_that_come_at_once_one_gets_it_without_kernel_locks(tmp_path: Path, no_kernel_lock: None) -> None:
    barrier, outcomes = threading.Barrier(4), []

    def come() -> None:
        barrier.wait()
        try:
            with one_writer(tmp_path):
                outcomes.append("held")
                time.sleep(1)
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_who_was_cut_off_and_replaced_is_told_before_it_writes(tmp_path: Path) -> None:
    with one_writer(tmp_path) as check_lock:
        _leave(tmp_path, _elsewhere())
        time.sleep(0.5)
        with pytest.raises(UserError, match=r"has taken .* over; run the same command again when it is done"):
            check_lock()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["owner"]["host"] == "node4"


def test_a_folder_that_is_renamed_is_released_where_it_is(tmp_path: Path) -> None:
    with one_writer(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "run.old-1")
    assert not list((tmp_path / "run.old-1").iterdir())


@pytest.mark.parametrize("text", ["", "text", "[1]", '{"token": "x"}', '{"owner": {"pid": 1}}'])
def test_a_file_that_names_nobody_is_free(tmp_path: Path, text: str) -> None:
    """Earlier versions left an empty one."""
    (tmp_path / LOCK_FILE).write_text(text)
    with one_writer(tmp_path):
        pass


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space left"), one_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_process_is_known_to_have_ended_or_not() -> None:
    own = ProcessId.own()
    assert not own.has_ended()
    assert replace(own, start="1").has_ended(), "a later process has its number"
    assert not replace(own, machine="elsewhere", pid=2**22 - 1).has_ended(), "of another machine nothing is known"
    with subprocess.Popen(["sleep", "0"]) as child:
        stat = Path(f"/proc/{child.pid}/stat")
        end_s = time.monotonic() + 5
        while ") Z " not in stat.read_text() and time.monotonic() < end_s:
            time.sleep(0.01)
        zombie = replace(own, pid=child.pid, start="1")
        assert zombie.has_ended()
    assert replace(own, pid=child.pid, start="").has_ended()

"""Data loading workers: they end with their block, however it ends; a dead one is named; no batch is lost silently."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from toy import CPU, SAVING_OFTEN, MovingStripes, assert_same_run, pretrain_job, process_server, toy_config

from mgm_shared.errors import UserError
from mgm_train.checkpoint.run_folder import RunFolder, load_last
from mgm_train.data import loader as loader_module
from mgm_train.data import packed_batch
from mgm_train.data.loader import collate_counted
from mgm_train.data.packed_batch import Packed, Packing
from mgm_train.data.readers import ReaderDied, how_it_ended, reading, start_reader
from mgm_train.evaluation.multiview import UnreadViews, collate_views
from mgm_train.training.loop import train

# More than enough for a forced end, and far less than a read of `Slow` takes.
LIMIT_S = 12.0
# A new interpreter needs seconds to import PyTorch; the fork server of these tests has done it.
SPAWN = pytest.param("spawn", marks=pytest.mark.slow)
STARTS = ["fork", "forkserver", SPAWN]


@dataclass
class Acts(MovingStripes):
    """At the read number `act_at` of a worker it calls `act`."""

    act: Callable[[], object] = int
    act_at: int = 2

    def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any]]:
        samples = super().__getitem__(key)
        if self.num_reads == self.act_at and multiprocessing.parent_process() is not None:
            self.act()
        return samples


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _exit() -> None:
    os._exit(7)


def _sleep() -> None:
    time.sleep(600)


def _exhaust_shared_memory() -> None:
    """A file in shared memory is a file: one of more than 4 KiB is refused as if /dev/shm were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def _loader(dataset: Any, start: str = "fork", num_workers: int = 2, **changes: Any) -> DataLoader[Any]:
    keys = [[(epoch, index)] for epoch in range(20) for index in range(8)]
    settings: dict[str, Any] = {"collate_fn": Packing(collate_counted), "batch_sampler": keys} | changes
    return DataLoader(
        dataset,
        num_workers=num_workers,
        multiprocessing_context=start,
        worker_init_fn=start_reader,
        **settings,
    )


@pytest.fixture(autouse=True)
def _leaves_nobody() -> Iterator[None]:
    process_server()
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_kill, r"was killed by SIGKILL, probably because memory ran out; lower num-workers or batch-size"),
        (_segfault, r"was killed by SIGSEGV, a fault in a library; num-workers 0 shows where"),
        (_exit, r"exited with code 7; num-workers 0 shows what it does"),
    ],
)
def test_a_dead_worker_is_named(start: str, act: Callable[[], object], message: str, capfd: Any) -> None:
    with (
        pytest.raises(ReaderDied, match=rf"a data loading worker \(pid \d+\) {message}"),
        reading(_loader(Acts(act=act), start)) as batches,
    ):
        list(batches)
    assert capfd.readouterr().err == "", "one line is enough, and the caller writes it"


def test_what_exit_codes_mean() -> None:
    assert "/dev/shm" in how_it_ended(-signal.SIGBUS)
    assert how_it_ended(-signal.SIGTERM) == "was killed by SIGTERM"
    assert how_it_ended(-63) == "was killed by signal 63"


@pytest.mark.parametrize("start", STARTS)
def test_an_error_while_workers_are_busy_ends_them_at_once(start: str) -> None:
    with pytest.raises(ZeroDivisionError), reading(_loader(Acts(act=_sleep, act_at=3), start)) as batches:  # noqa: PT012
        next(batches)
        started = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
        begin_s = time.monotonic()
        raise ZeroDivisionError
    assert time.monotonic() - begin_s < LIMIT_S
    assert len(started) == 2
    assert not any(reader.is_running() and reader.status() != psutil.STATUS_ZOMBIE for reader in started)


def test_a_worker_that_ignores_everything_is_killed() -> None:
    def stubborn() -> None:
        # The first batch must still be handed over; then nobody but this thread runs Python any more.
        time.sleep(1)
        sys.setswitchinterval(1000)
        while True:
            pass

    with pytest.raises(ZeroDivisionError), reading(_loader(Acts(act=stubborn, act_at=3))) as batches:  # noqa: PT012
        next(batches)
        time.sleep(2)
        raise ZeroDivisionError


@pytest.mark.parametrize("start", STARTS)
def test_signals_to_the_group_do_not_reach_workers(start: str) -> None:
    with reading(_loader(MovingStripes(), start)) as batches:
        # One of each worker: a worker that still starts has not yet said which signals it ignores.
        first, _ = next(batches), next(batches)
        for child in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Not from this process, whose SIGTERM ends a worker.
                subprocess.run(["kill", f"-{number}", str(child.pid)], check=True)
        time.sleep(0.2)
        rest = list(batches)
    assert len(rest) == 158
    assert first["frames_BCTHW"].shape == (1, 3, 4, 32, 32)


@pytest.mark.parametrize("start", ["fork", pytest.param("forkserver", marks=pytest.mark.slow), SPAWN])
def test_the_loaders_own_sigterm_ends_a_worker(start: str) -> None:
    """Python sends one at exit and then waits: a loop whose block is never left must not keep the program."""
    script = f"""
        import sys
        from test_readers import _loader, MovingStripes
        if __name__ == "__main__":
            batches = iter(_loader(MovingStripes(), {start!r}))
            next(batches)
            raise ZeroDivisionError
    """
    ended = _run_script(script)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("ZeroDivisionError")


@pytest.mark.parametrize("start", STARTS)
def test_workers_of_a_killed_loader_end_in_the_middle_of_a_read(start: str) -> None:
    script = f"""
        import os, signal, multiprocessing
        from test_readers import _loader, Acts, _sleep
        from mgm_train.data.readers import reading
        if __name__ == "__main__":
            with reading(_loader(Acts(act=_sleep, act_at=3), {start!r})) as batches:
                next(batches)
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = _run_script(script)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    started = [psutil.Process(int(pid)) for pid in ended.stdout.split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(started, timeout=LIMIT_S)
    assert not alive


def _run_script(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=100, env=environment, check=False,
    )  # fmt: skip


@dataclass
class ManyViews:
    """What a test reads of a video, after something happened."""

    act: Callable[[], object]

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> UnreadViews:
        if index == 2:
            self.act()
        return unread(index, partial(np.copyto, src=np.uint8(index)))


def unread(index: int, read: Callable[[Any], None]) -> UnreadViews:
    return UnreadViews(sample_id=str(index), video_id=str(index), label=0, shape_VCTHW=(2, 3, 4, 32, 32), read=read)


def _torn(out: object) -> None:
    raise OSError("torn")


@pytest.mark.parametrize("start", STARTS)
def test_a_batch_that_cannot_be_handed_over_is_an_error(start: str) -> None:
    """PyTorch prints it in a worker's thread, drops the batch, and waits for it for ever."""
    message = r"cannot get shared memory for a batch of \d\.\d MiB \(.*lower batch-size or num-workers, or enlarge"
    with pytest.raises(UserError, match=message), reading(_loader(Acts(act=_exhaust_shared_memory), start)) as batches:
        list(batches)
    views = _loader(ManyViews(_exhaust_shared_memory), start, batch_sampler=[[k, k + 1] for k in range(0, 8, 2)])
    views.collate_fn = Packing(collate_views)
    with pytest.raises(UserError, match=message), reading(views) as batches:
        list(batches)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("unable to open shared memory object </torch_1_2_3>: Too many open files (24)"),
         "too many open files in a data loading worker; lower batch-size, or raise `ulimit -n`"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"),
         "a batch of 12.0 MiB (No space left on device"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files in a data loading worker"),
        (RuntimeError("a fault of the program (28)"), "a fault of the program (28)"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_batch_that_cannot_be_handed_over(error: Exception, message: str, monkeypatch: Any) -> None:
    def fail(samples: object, allocate: object) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(packed_batch, "get_worker_info", object)
    clip = {"frames_CTHW": torch.zeros(3, 2**20)}
    with pytest.raises((UserError, RuntimeError)) as caught:
        Packing(fail)([[clip]])
    assert message in str(caught.value)
    assert isinstance(caught.value, UserError) == ("fault" not in message)


def test_a_batch_of_views_is_one_tensor_in_the_order_of_the_videos() -> None:
    videos = [ManyViews(int)[k] for k in range(3)]
    videos[1] = unread(1, _torn)
    batch = collate_views(videos)
    assert batch["is_readable"] == [True, False, True]
    assert [(video.video_id, video.reason) for video in batch["videos"]] == [("0", ""), ("1", "torn"), ("2", "")]
    assert batch["frames_NVCTHW"][:, 0, 0, 0, 0, 0].tolist() == [0, 2]
    assert "frames_NVCTHW" not in collate_views(videos[1:2])


def test_packed_batches_are_those_of_one_process() -> None:
    keys = [[(0, 1), (0, 2)]]
    with reading(DataLoader(MovingStripes(2), batch_sampler=keys, collate_fn=Packing(collate_counted))) as batches:  # type: ignore[arg-type]
        (alone,) = batches
    with reading(_loader(MovingStripes(2), batch_sampler=keys)) as batches:
        (packed,) = batches
    assert alone.keys() == packed.keys()
    for name, value in alone.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(packed[name])), name


def test_pinning_pins_the_tensors_of_a_packed_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's thread does it, without a GPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    packed = Packed({"frames_BCTHW": torch.zeros(2), "index": 3, "unreadable": {"a": "torn"}})
    batch = pin_memory(packed)
    assert batch["frames_BCTHW"].tolist() == [1, 1]
    assert (batch["index"], batch["unreadable"]) == (3, {"a": "torn"})


def test_full_shared_memory_is_said_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 16, 1, 1, 0, 0, 0, 0, 255)))
    with pytest.raises(UserError, match=r"/dev/shm is full"), reading(_loader(MovingStripes())):
        pass


def test_workers_that_cannot_start_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fail)
    with (
        pytest.raises(UserError, match=r"cannot start 2 data loading workers: Resource temporarily.*lower num-workers"),
        reading(_loader(MovingStripes())),
    ):
        pass


def test_pytorchs_own_handler_does_not_raise_in_the_block_and_comes_back() -> None:
    with reading(_loader(MovingStripes())) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        # It would raise from any statement, also in the middle of saving.
        for _ in range(20):
            time.sleep(0.01)
        with pytest.raises(ReaderDied):
            list(batches)
    assert callable(signal.getsignal(signal.SIGCHLD))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_whose_worker_dies_is_saved_after_its_last_step(
    tmp_path: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "num_usable_cores", lambda: 2)
    settings = {"num_workers": 1, "worker_start": "fork", "grad_accum_steps": accumulate, "log_every_steps": 2}
    # A read of the sixth step; the worker is some batches ahead.
    job = pretrain_job(tmp_path / "parts", toy_config(**settings), Acts(act=_kill, act_at=21), max_saving_share=1e-9)
    num_calls = 0

    def objective(model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        return job.objective(model, batch, seed)

    with pytest.raises(ReaderDied):
        train(replace(job, objective=objective), CPU)
    last = load_last(RunFolder(tmp_path / "parts"))
    if num_calls % accumulate == 0:
        assert last is not None
        assert last["position"]["samples_seen"] == 4 * num_calls / accumulate
    assert train(pretrain_job(tmp_path / "parts", toy_config(**settings), **SAVING_OFTEN), CPU).is_complete
    train(pretrain_job(tmp_path / "whole", toy_config(**settings), **SAVING_OFTEN), CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def _fail_in_training(run: Path, start: str) -> None:
    def fail(epoch: int, model: torch.nn.Module) -> dict[str, float]:
        raise ZeroDivisionError

    setattr(loader_module, "num_usable_cores", lambda: 2)  # noqa: B010
    job = pretrain_job(run, toy_config(num_workers=2, worker_start=start), on_epoch_end=fail)
    train(job, CPU)


@pytest.mark.parametrize("start", ["fork", pytest.param("forkserver", marks=pytest.mark.slow), SPAWN])
def test_an_unexpected_error_ends_the_program(start: str, tmp_path: Path) -> None:
    process = process_server().Process(target=_fail_in_training, args=(tmp_path / "run", start))
    process.start()
    process.join(60)
    assert process.exitcode == 1

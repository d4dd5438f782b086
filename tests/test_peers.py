"""When one process of torchrun fails, the others end within seconds, and say which one it was."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import run_processes

from mgm_shared.errors import UserError
from mgm_train.runtime.distributed import init_distributed


def _join(run: Path, failure: str, wait: str) -> None:
    """Process 1 fails; process 0 waits for it, for ever unless it is told."""
    sys.stderr = run.with_suffix(f".{os.environ['RANK']}").open("w")
    try:
        with init_distributed("cpu") as distributed:
            distributed.wait()
            if not distributed.is_main:
                _fail(failure)
            elif wait == "sleep":
                # As in NCCL's operations, no handler of Python is called here that could raise.
                time.sleep(600)
            else:
                distributed.sum(torch.ones(1))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except ValueError:
        raise SystemExit(1) from None


def _fail(failure: str) -> None:
    if failure == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if failure == "user":
        raise UserError("a data loading worker died")
    raise ValueError("a fault\nof the program")


@pytest.mark.parametrize("wait", ["sleep", "collective"])
@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        ("killed", -signal.SIGKILL, r"was killed or crashed; this one ends too"),
        ("user", 2, r"failed: a data loading worker died; this one ends too"),
        ("error", 1, r"failed: a fault of the program; this one ends too"),
    ],
)
def test_the_others_end_and_say_which_one_failed(tmp_path: Path, wait: str, failure: str, code: int, text: str) -> None:
    start_s = time.monotonic()
    assert run_processes(2, _join, tmp_path / "run", failure, wait) == [2, code]
    assert time.monotonic() - start_s < 90, "importing and joining take most of it"
    said = (tmp_path / "run.0").read_text().splitlines()
    assert len(said) == 1
    assert said[0].startswith("process 1 of 2 (process ")
    assert said[0].endswith(text)


def test_a_process_that_has_left_in_order_is_not_missed(tmp_path: Path) -> None:
    assert run_processes(2, _leave_once, tmp_path / "run") == [0, 0]


def _leave_once(run: Path) -> None:
    with init_distributed("cpu") as distributed:
        distributed.wait()
        if distributed.rank == 0:
            # What only the main process does, long after the others have gone.
            time.sleep(5)


def _join_twice(run: Path) -> None:
    for number in range(2):
        with init_distributed("cpu") as distributed:
            distributed.wait()
            time.sleep(2)
        # Process 0 holds the store of the group here. The other must not join the store that is about to close; under
        # torchrun, the agent holds one for the whole run.
        closed = run.with_suffix(f".closed{number}")
        if distributed.rank == 0:
            closed.touch()
        while not closed.exists():
            time.sleep(0.05)


def test_a_program_may_join_again(tmp_path: Path) -> None:
    assert run_processes(2, _join_twice, tmp_path / "run") == [0, 0]

"""The other processes of a run: when one of them fails, this one ends too, instead of waiting for it.

A collective operation waits for all processes. With gloo it ends with an error when a connection breaks; NCCL waits for
a process of the same machine up to its time limit of ten minutes, where no signal handler of Python is called. So each
process writes into the store that all share when it fails, and looks there every second. It also looks for processes of
its machine that have ended without writing anything, because they were killed.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta

import torch.distributed as dist

from mgm_shared.errors import UserError
from mgm_shared.processes import ProcessId

CHECK_S = 1.0
# A process has so long to end by its own error after another one has failed.
GRACE_S = 6.0
# One that ended this number of checks ago, while the store cannot be asked, has not left properly.
MAX_SILENT_CHECKS = 3
EXIT_FAILED = 2


class Peers:
    """The processes that `init_process_group` has joined, seen from the one of `rank`."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A client of its own: the process group's may be busy with an operation that waits.
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))  # type: ignore[attr-defined]
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        # A program may join several times, one after the other; what was written before must not be read again.
        number = store.add(f"mgm_peers/{restart}/{rank}", 1)
        self._store = dist.PrefixStore(f"mgm_peers/{restart}/{number}", store)  # type: ignore[attr-defined]
        self._store.set(f"process{rank}", json.dumps(asdict(ProcessId.own())))
        self._known: dict[int, ProcessId] = {}
        self._num_silent: dict[int, int] = {}
        self._ended = threading.Event()
        self.failure = ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Until the block ends, end this process when another one has failed; tell the others when the block fails.

        An error that is only the consequence of another process's becomes a UserError that names that one.
        """
        watch = threading.Thread(target=self._watch, name="peers", daemon=True)
        watch.start()
        try:
            yield
        except Exception as error:
            if failure := self._cause_elsewhere(error):
                raise UserError(failure) from error
            self._tell(error)
            raise
        else:
            with suppress(RuntimeError):
                self._store.set(f"left{self.rank}", "")
        finally:
            self._ended.set()
            watch.join()

    def _watch(self) -> None:
        while not self._ended.wait(CHECK_S):
            self.failure = self.failure or self._look()
            if self.failure:
                break
        if self.failure and not self._ended.wait(GRACE_S):
            print(self.failure, file=sys.stderr, flush=True)
            # The main thread is inside an operation that never ends; readers end with their parent.
            os._exit(EXIT_FAILED)

    def _look(self) -> str:
        """What has happened to another process; empty when nothing has."""
        has_store = True
        try:
            if self._store.check(["failed"]):
                return self._store.get("failed").decode()
        except RuntimeError:
            # It ends with the process of rank 0, where torchrun does not keep it.
            has_store = False
        for rank in set(range(self.world_size)) - {self.rank}:
            process = self._process(rank)
            if process is None or not process.has_ended():
                continue
            self._num_silent[rank] = self._num_silent.get(rank, 0) + 1
            if (has_store and not self._has_left(rank)) or self._num_silent[rank] > MAX_SILENT_CHECKS:
                return f"process {rank} of {self.world_size} ({process}) was killed or crashed; this one ends too"
        return ""

    def _process(self, rank: int) -> ProcessId | None:
        if rank not in self._known:
            with suppress(RuntimeError):
                if self._store.check([f"process{rank}"]):
                    self._known[rank] = ProcessId(**json.loads(self._store.get(f"process{rank}")))
        return self._known.get(rank)

    def _has_left(self, rank: int) -> bool:
        # It may have written that in the moment before it ended.
        with suppress(RuntimeError):
            if self._store.check([f"left{rank}"]):
                self._num_silent[rank] = -sys.maxsize
                return True
        return False

    def _cause_elsewhere(self, error: Exception) -> str:
        """What failed in another process, if that may be why this one fails: an operation with it was broken off."""
        if isinstance(error, UserError) or not isinstance(error, RuntimeError):
            return ""
        end_s = time.monotonic() + 3 * CHECK_S
        while not self.failure and time.monotonic() < end_s:
            time.sleep(CHECK_S / 10)
        return self.failure

    def _tell(self, error: Exception) -> None:
        text = " ".join(str(error).split()).rpartition("UserError: ")[2] or type(error).__name__
        with suppress(RuntimeError):
            place = f"process {self.rank} of {self.world_size} ({ProcessId.own()})"
            self._store.compare_set("failed", "", f"{place} failed: {text}; this one ends too")


def leave_broken_group(limit_s: float = 5.0) -> None:
    """Leave the process group after an error, in which others may never answer. Python's exit is not kept waiting."""
    leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
    leaving.start()
    leaving.join(limit_s)
    if leaving.is_alive():
        # At exit NCCL's destructors may wait as well; this timer needs no interpreter.
        faulthandler.dump_traceback_later(2 * limit_s, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115

"""Run a function over many items on Dask, with a bounded number in flight; `workers=0` runs it in this process.

Workers are processes with one thread each: a decoder that crashes takes one task with it, and the items in flight are
plain records, never arrays.
"""

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mgm_prep.runtime.signals import StopRequest, noting_signals, sigint_blocked
from mgm_shared.errors import UserError

CONNECT_S, RESULT_S, POLL_S, REVIVE_S, PATIENCE_S = 20, 10, 0.05, 5, 60
SETTLE_S = 1

Item = TypeVar("Item")
Result = TypeVar("Result")
Say = Callable[[str], None]

# Enough waiting work that an adaptive cluster sees what it is needed for.
IN_FLIGHT_PER_THREAD, MIN_IN_FLIGHT = 2, 64
# From glibc's malloc.h, with the values that it comes to by itself where nobody sets any.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 64 << 20
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 32 << 20
LOCAL_CONFIG = {
    # One worker may die of anything; the second that dies of the same item convicts it.
    "distributed.scheduler.allowed-failures": 1,
    # A nanny gives up for ever on a worker that dies before it has heard from it; after so long it is replaced.
    "distributed.deploy.lost-worker-timeout": "8s",
    # Dask looks after itself 50 times a second, which with two workers is an eighth of a core (measured). Ours have one
    # task of minutes each: a tenth of that is enough.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.worker.profile.enabled": False,
}


class Cluster:
    """Where work runs: this process, or a Dask client."""

    def __init__(
        self,
        client: Any = None,
        stop: StopRequest | None = None,
        say: Say = lambda line: None,
        revive: Callable[[], object] = lambda: None,
    ) -> None:
        self._client = client
        self._stop = stop or StopRequest()
        self._say = say
        self._revive = revive

    def map(
        self,
        function: Callable[..., Result],
        items: Iterable[Item],
        *arguments: Any,
        after_deaths: Callable[[Item], Item] | None = None,
    ) -> Iterator[Result]:
        """`function(item, *arguments)` for each item, in the order of completion.

        An item that ended several workers is handed to `after_deaths`, and what that returns is tried instead.
        """
        if self._client is None:
            for item in items:
                yield function(item, *arguments)
            return
        from distributed import KilledWorker, as_completed

        submitted: dict[str, Item] = {}

        def submit(item: Item) -> Any:
            # pure=False: Dask must not hand back a result that it remembers from before.
            future = self._client.submit(function, item, *arguments, pure=False)
            submitted[future.key] = item
            return future

        waiting = iter(items)
        completed = as_completed(map(submit, islice(waiting, self._num_in_flight())), loop=self._client.loop)
        for future in self._in_turn(completed):
            try:
                result = future.result(timeout=RESULT_S)
            except KilledWorker:
                if after_deaths is None:
                    raise
                completed.add(submit(after_deaths(submitted.pop(future.key))))
                continue
            except TimeoutError:
                if future.status == "error":
                    raise
                # Its worker died with the answer, and Dask has it done again.
                completed.add(future)
                continue
            del submitted[future.key]
            future.release()
            # A cluster may grow and shrink while we work.
            for following in islice(waiting, max(0, self._num_in_flight() - len(submitted))):
                completed.add(submit(following))
            yield result

    def _in_turn(self, completed: Any) -> Iterator[Any]:
        """The futures as they are done. KeyboardInterrupt between two of them when a signal came."""
        revived_s = said_s = time.monotonic()
        while completed.count():
            self._stop.check()
            if completed.has_ready():
                yield next(completed)
                said_s = time.monotonic()
                continue
            time.sleep(POLL_S)
            if time.monotonic() - revived_s > REVIVE_S:
                self._revive()
                revived_s = time.monotonic()
            if time.monotonic() - said_s > PATIENCE_S and not self._client.nthreads():
                self._say("the cluster has no worker; still waiting for one")
                said_s = time.monotonic()

    def _num_in_flight(self) -> int:
        num_threads: int = sum(self._client.nthreads().values())
        return max(MIN_IN_FLIGHT, IN_FLIGHT_PER_THREAD * num_threads)


def is_expendable() -> bool:
    """Whether this process is a Dask worker whose nanny starts another when it dies."""
    # Where nobody has imported it there is no worker, and importing it takes half a second.
    distributed = sys.modules.get("distributed")
    try:
        return distributed is not None and distributed.get_worker().nanny is not None
    except ValueError:
        return False


@cache
def settle() -> None:
    """Wait, once in a worker's life, before what may end it: its nanny must have heard that it is there."""
    time.sleep(SETTLE_S)


@cache
def keep_freed_memory() -> None:
    """Undo, once in a worker's life, what Dask asks of malloc: to give freed memory back to the system at once.

    A decoder frees a picture's memory only to take the next one's, and would pay with a quarter of its time (measured).
    """
    # Other C libraries have no mallopt, and need none.
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


@contextmanager
def open_cluster(workers: int, scheduler: str | None, say: Say = lambda line: None) -> Iterator[Cluster]:
    """A cluster of `workers` local processes, the one at `scheduler`, or this process when `workers` is 0.

    `say` hears of the dashboard, and what the user should know of the workers. UserError when no scheduler answers.
    """
    if scheduler is None and workers == 0:
        yield Cluster()
        return
    # Half-started and half-stopped clusters leave processes behind, and pages of tracebacks.
    with noting_signals() as stop, ExitStack() as opened:
        try:
            with sigint_blocked():
                client = opened.enter_context(_local_client(workers) if scheduler is None else _client_of(scheduler))
        except Exception:
            # Whoever sent us the signal may have sent it to the workers too.
            stop.check()
            raise
        say(f"dask dashboard: {client.dashboard_link}")
        num_threads = client.nthreads().values()
        if not num_threads:
            say("the cluster has no worker yet; waiting for one")
        if any(num > 1 for num in num_threads):
            say("start workers with --nthreads 1: a crash in one of several threads costs the others their work")
        local = client.cluster
        yield Cluster(client, stop, say, revive=(lambda: None) if local is None else lambda: local.scale(workers))


@contextmanager
def _local_client(workers: int) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    # What Dask says while it is shut down would stand between the user and the result.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        dask.config.set(LOCAL_CONFIG),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _client_of(scheduler: str) -> Iterator[Any]:
    from distributed import Client

    # What Dask says while it is shut down would stand between the user and the result.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    place = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = Client(**place, set_as_default=False, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {scheduler}: {' '.join(str(error).split())}") from None
    with client:
        yield client

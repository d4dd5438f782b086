"""Run a function over many items on Dask, with a bounded number in flight; with `workers=0` in this process.

Workers are processes with one thread each, so a decoder that crashes ends one task. The items in flight are small
records, never arrays.
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

from mgm_prep.runtime.execution import Execution
from mgm_shared.errors import UserError
from mgm_shared.progress import SILENT, Progress
from mgm_shared.signals import StopRequest, sigint_blocked, stop_after_block

CONNECT_S, RESULT_S, POLL_S, REVIVE_S, PATIENCE_S = 20, 10, 0.05, 5, 60
SETTLE_S = 1

Item = TypeVar("Item")
Result = TypeVar("Result")

# Enough waiting work that an adaptive cluster sees how many workers it needs.
IN_FLIGHT_PER_THREAD, MIN_IN_FLIGHT = 2, 64
# From glibc's malloc.h, with the values that malloc reaches by itself where nobody sets any.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 64 << 20
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 32 << 20
LOCAL_CONFIG = {
    # One worker may die for any reason. An item that ends a second worker is handed to `after_deaths`.
    "distributed.scheduler.allowed-failures": 1,
    # A nanny stops replacing a worker that dies before it has reported to the nanny; after this time it is replaced.
    "distributed.deploy.lost-worker-timeout": "8s",
    # Dask checks itself 50 times a second, which costs an eighth of a core with two workers (measured). Each of our
    # workers has one task of minutes, so a tenth of that is enough.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.worker.profile.enabled": False,
}


class Cluster:
    """Where tasks run: this process, or the workers of a Dask client."""

    def __init__(
        self,
        client: Any = None,
        stop: StopRequest | None = None,
        progress: Progress = SILENT,
        revive: Callable[[], object] = lambda: None,
    ) -> None:
        self._client = client
        self._stop = stop or StopRequest()
        self._progress = progress
        self._revive = revive

    def map(
        self,
        function: Callable[..., Result],
        items: Iterable[Item],
        *arguments: Any,
        after_deaths: Callable[[Item], Item] | None = None,
    ) -> Iterator[Result]:
        """Yield `function(item, *arguments)` for each item, in order of completion.

        An item that ended several workers is given to `after_deaths`, and the item that this returns is tried instead.
        """
        if self._client is None:
            for item in items:
                yield function(item, *arguments)
            return
        from distributed import KilledWorker, as_completed

        submitted: dict[str, Item] = {}

        def submit(item: Item) -> Any:
            # pure=False: Dask must not return a result that it remembers from an earlier call.
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
                # Its worker died with the result, and Dask computes it again.
                completed.add(future)
                continue
            del submitted[future.key]
            future.release()
            # The cluster may grow and shrink meanwhile.
            for following in islice(waiting, max(0, self._num_in_flight() - len(submitted))):
                completed.add(submit(following))
            yield result

    def _in_turn(self, completed: Any) -> Iterator[Any]:
        """The futures as they complete. Raises KeyboardInterrupt between two of them after a signal."""
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
                self._progress.say("the cluster has no worker; still waiting for one")
                said_s = time.monotonic()

    def _num_in_flight(self) -> int:
        num_threads: int = sum(self._client.nthreads().values())
        return max(MIN_IN_FLIGHT, IN_FLIGHT_PER_THREAD * num_threads)


def is_expendable() -> bool:
    """Whether this process is a Dask worker that its nanny replaces when it dies."""
    # If nobody has imported distributed, this is no worker; importing it takes half a second.
    distributed = sys.modules.get("distributed")
    try:
        return distributed is not None and distributed.get_worker().nanny is not None
    except ValueError:
        return False


@cache
def settle() -> None:
    """Wait once in the life of a worker, before it opens its first video: its nanny must know that it has started."""
    time.sleep(SETTLE_S)


@cache
def keep_freed_memory() -> None:
    """Undo, once in the life of a worker, Dask's setting that malloc returns freed memory to the system at once.

    A decoder frees the memory of each frame only to allocate the next one; the setting costs it a quarter of its time
    (measured).
    """
    # Other C libraries have no mallopt, and need none.
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


@contextmanager
def open_cluster(execution: Execution) -> Iterator[Cluster]:
    """Open the cluster that `execution` describes. UserError when no scheduler answers."""
    if execution.scheduler is None and execution.workers == 0:
        yield Cluster()
        return
    say = execution.progress.say
    # A cluster that is half started or half stopped leaves processes behind, and pages of tracebacks.
    with stop_after_block() as stop, ExitStack() as opened:
        try:
            with sigint_blocked():
                client = opened.enter_context(_client(execution))
        except Exception:
            # Whoever sent a signal to this process may have sent it to the workers too.
            stop.check()
            raise
        say(f"dask dashboard: {client.dashboard_link}")
        num_threads = client.nthreads().values()
        if not num_threads:
            say("the cluster has no worker yet; waiting for one")
        if any(num > 1 for num in num_threads):
            say("start workers with --nthreads 1: a crash in one thread loses the work of the others")
        local = client.cluster
        revive = (lambda: None) if local is None else lambda: local.scale(execution.workers)
        yield Cluster(client, stop, execution.progress, revive)


@contextmanager
def _client(execution: Execution) -> Iterator[Any]:
    # The log messages of Dask's shutdown would hide the result from the user.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if execution.scheduler is not None:
        with _connect(execution.scheduler) as client:
            yield client
        return
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set(LOCAL_CONFIG),
        LocalCluster(
            n_workers=execution.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


def _connect(scheduler: str) -> Any:
    """A Dask client. UserError when no scheduler answers."""
    from distributed import Client

    place = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        return Client(**place, set_as_default=False, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {scheduler}: {' '.join(str(error).split())}") from None

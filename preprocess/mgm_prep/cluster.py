"""Run a function over many items on Dask, with a bounded number in flight; `workers=0` runs it in this process.

Workers are processes with one thread each: a decoder that crashes takes one task with it, and the items in flight are
plain records, never arrays.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Enough waiting work that an adaptive cluster sees what it is needed for.
IN_FLIGHT_PER_THREAD, MIN_IN_FLIGHT = 2, 64
# One worker may die of anything; the second that dies of the same item convicts it.
ALLOWED_DEATHS = 1


class Cluster:
    """Where work runs: this process, or a Dask client."""

    def __init__(self, client: Any = None) -> None:
        self._client = client

    @property
    def dashboard(self) -> str | None:
        """The address of Dask's status page."""
        return None if self._client is None else self._client.dashboard_link

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
        for future in completed:
            item = submitted.pop(future.key)
            try:
                result = future.result()
            except KilledWorker:
                if after_deaths is None:
                    raise
                completed.add(submit(after_deaths(item)))
                continue
            future.release()
            # A cluster may grow and shrink while we work.
            for following in islice(waiting, max(0, self._num_in_flight() - len(submitted))):
                completed.add(submit(following))
            yield result

    def _num_in_flight(self) -> int:
        return max(MIN_IN_FLIGHT, IN_FLIGHT_PER_THREAD * sum(self._client.nthreads().values()))


def is_expendable() -> bool:
    """Whether this process is a Dask worker whose nanny starts another when it dies."""
    # Where nobody has imported it there is no worker, and importing it takes half a second.
    distributed = sys.modules.get("distributed")
    try:
        return distributed is not None and distributed.get_worker().nanny is not None
    except ValueError:
        return False


@contextmanager
def open_cluster(workers: int, scheduler: str | None) -> Iterator[Cluster]:
    """A cluster of `workers` local processes, the one at `scheduler`, or this process when `workers` is 0."""
    if scheduler is None and workers == 0:
        yield Cluster()
        return
    import dask
    from distributed import Client, LocalCluster

    # Dask's own log lines on shutdown would stand between the user and the result.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if scheduler is not None:
        with Client(scheduler, set_as_default=False) as client:
            yield Cluster(client)
        return
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED_DEATHS}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.ERROR
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield Cluster(client)

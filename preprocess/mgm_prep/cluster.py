"""Run a function over many items on Dask, with a bounded number in flight; `workers=0` runs it in this process.

Workers are processes with one thread each: a decoder that crashes takes one task with it, and the items in flight are
plain records, never arrays.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 2


class Cluster:
    """Where work runs: this process, or a Dask client."""

    def __init__(self, client: Any = None) -> None:
        self._client = client

    @property
    def dashboard(self) -> str | None:
        """The address of Dask's status page."""
        return None if self._client is None else self._client.dashboard_link

    def map(self, function: Callable[..., Result], items: Sequence[Item], *arguments: Any) -> Iterator[Result]:
        """`function(item, *arguments)` for each item, in the order of completion."""
        if self._client is None:
            for item in items:
                yield function(item, *arguments)
            return
        from distributed import as_completed

        waiting = iter(items)

        def submit_next() -> list[Any]:
            # pure=False: Dask must not hand back a result that it remembers from before.
            return [
                self._client.submit(function, item, *arguments, pure=False) for item in [next(waiting, None)] if item
            ]

        num_workers = max(1, len(self._client.scheduler_info()["workers"]))
        first = [future for _ in range(IN_FLIGHT_PER_WORKER * num_workers) for future in submit_next()]
        completed = as_completed(first, loop=self._client.loop)
        for future in completed:
            result = future.result()
            future.release()
            for new in submit_next():
                completed.add(new)
            yield result


@contextmanager
def open_cluster(workers: int, scheduler: str | None) -> Iterator[Cluster]:
    """A cluster of `workers` local processes, the one at `scheduler`, or this process when `workers` is 0."""
    if scheduler is None and workers == 0:
        yield Cluster()
        return
    from distributed import Client, LocalCluster

    # Dask's own log lines on shutdown would stand between the user and the result.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if scheduler is not None:
        with Client(scheduler, set_as_default=False) as client:
            yield Cluster(client)
        return
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.ERROR
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield Cluster(client)

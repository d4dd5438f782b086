"""The contract of both stages; for notebooks: `from mgm_shared import open_store`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgm_shared.store import Store, Video, open_store

__all__ = ["Store", "Video", "open_store"]


def __getattr__(name: str) -> Any:
    # On demand, so that `--help`, which needs neither pandas nor zarr, is there at once.
    if name in __all__:
        from mgm_shared import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

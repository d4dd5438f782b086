"""What both stages agree on: the store and how to read it. For notebooks: `from mgm_shared import open_store`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgm_shared.errors import UserError
    from mgm_shared.progress import Progress, TerminalProgress
    from mgm_shared.samples import Samples
    from mgm_shared.store import Store, Video, open_store
    from mgm_shared.times import frames_between, nearest_frames

# Imported on demand, so that `--help` does not wait for pandas and zarr.
_HOMES = {
    "Progress": "progress",
    "Samples": "samples",
    "Store": "store",
    "TerminalProgress": "progress",
    "UserError": "errors",
    "Video": "store",
    "frames_between": "times",
    "nearest_frames": "times",
    "open_store": "store",
}

__all__ = [
    "Progress",
    "Samples",
    "Store",
    "TerminalProgress",
    "UserError",
    "Video",
    "frames_between",
    "nearest_frames",
    "open_store",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mgm_shared.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

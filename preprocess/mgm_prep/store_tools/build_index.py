"""Rebuild the index of a store from its parts."""

from dataclasses import dataclass

from mgm_shared.index import numbers, write_index
from mgm_shared.storage import PathLike, store_path
from mgm_shared.store import check_schema


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """What the new index holds."""

    store: str
    videos: int
    frames: int


def build_index(store: PathLike) -> IndexSummary:
    """Write index.parquet from the metadata of the parts and the attached labels. UserError when it is no store."""
    place = store_path(store)
    check_schema(place)
    table = write_index(place)
    return IndexSummary(store=str(place), videos=len(table), frames=int(numbers(table, "num_frames").sum()))

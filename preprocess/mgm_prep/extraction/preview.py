"""What an extraction would do, found without opening a video: for `mgm-prep extract --dry-run`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgm_prep.extraction.changes import Changes, find_changes
from mgm_prep.extraction.failures import read_failures
from mgm_prep.extraction.plan import read_plan
from mgm_prep.sources.discover import ONLY_IMAGES, ONLY_VIDEOS, find_sources
from mgm_shared.index import extracted_ids
from mgm_shared.storage import PathLike, is_file, store_path
from mgm_shared.store import check_schema
from mgm_shared.store_files import METADATA_FILE


@dataclass(frozen=True, kw_only=True)
class ExtractPreview:
    """What `extract` would do."""

    store: str
    listed: int
    done: int
    failed: int
    changed: int
    vanished: int
    to_do: int
    """Videos that would be extracted."""
    new: int
    """Videos among them that are not planned yet."""


def preview_extract(
    videos: str | os.PathLike[str], store: PathLike, *, cameras: Sequence[str] = (), images: bool = False
) -> ExtractPreview:
    """Compare a data set with its store without opening a video. UserError as `extract`."""
    kinds = ONLY_IMAGES if images else ONLY_VIDEOS
    found, place = find_sources(Path(videos), cameras, kinds), store_path(store)
    if is_file(place / METADATA_FILE):
        check_schema(place)
        changes = find_changes(place, {source.video_id: source for source in found.sources})
        done = extracted_ids(place)
    else:
        changes, done = Changes(), set()
    planned = {video_id for part in read_plan(place) for video_id in part.videos}
    failed = read_failures(place).keys()
    listed = {source.video_id for source in found.sources}
    return ExtractPreview(
        store=str(place),
        listed=len(listed),
        done=len(listed & done),
        failed=len(listed & failed),
        changed=len(changes.changed),
        vanished=len(changes.vanished),
        to_do=len(listed - done - failed),
        new=len(listed - planned - failed),
    )

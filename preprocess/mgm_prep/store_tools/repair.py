"""Repair a store: delete broken parts and extract them again by the plan, which gives the same bytes."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.plan import read_plan
from mgm_prep.runtime.execution import Execution
from mgm_prep.runtime.lock import locked
from mgm_prep.sources.discover import ANY_KIND, find_sources
from mgm_prep.store_tools.verify import Verdict, stored_sources, verify
from mgm_shared.index import part_attributes
from mgm_shared.progress import Progress
from mgm_shared.schema import PARTS_DIR, UNFINISHED_DIR
from mgm_shared.storage import PathLike, StorePath, store_path, withdraw
from mgm_shared.store import check_schema, open_store


def repair(
    store: PathLike, videos: str | os.PathLike[str], execution: Execution | None = None, *, num_compared: int = 8
) -> Verdict:
    """Verify a store, extract its broken parts again from `videos`, and verify the repaired store.

    A part is repaired only when all of its videos are among `videos`, so that readable videos of it are never lost.
    Arguments and errors as for `verify`; `execution` are the workers and the progress of the extraction.
    """
    execution, place = execution or Execution(), store_path(store)
    verdict = verify(place, videos, num_compared=num_compared, progress=execution.progress)
    if not verdict.problems:
        return verdict
    for problem in verdict.problems:
        execution.progress.say(problem)
    withdrawn = _withdraw_broken(place, Path(videos), verdict.broken_parts, execution.progress)
    settings = ExtractSettings(**check_schema(place)["settings"])
    # Also when no part is broken, because this rebuilds the index.
    is_of_images = any(source.is_image for source in stored_sources(open_store(place), Path(videos)))
    extract(videos, place, settings, execution, images=is_of_images)
    return replace(verify(place, progress=execution.progress), repaired_parts=withdrawn)


def _withdraw_broken(store: StorePath, videos: Path, broken_parts: Sequence[str], progress: Progress) -> list[str]:
    """Delete the broken parts that can be extracted again. Returns their names."""
    found = {source.video_id for source in find_sources(videos, kinds=ANY_KIND).sources}
    withdrawn = []
    with locked(store, progress):
        for name in broken_parts:
            missing = [video_id for video_id in _videos(store, name) if video_id not in found]
            if missing:
                example = f"{len(missing)} of its videos are not in {videos}, such as {missing[0]}"
                progress.say(f"{name} is not repaired: {example}")
                continue
            withdraw(store / PARTS_DIR / name, store / UNFINISHED_DIR / f"{name}-{uuid.uuid4().hex}")
            withdrawn.append(name)
    return withdrawn


def _videos(store: StorePath, name: str) -> Sequence[str]:
    """The videos of a part: those of the plan, or those of its own metadata if the plan lacks it."""
    planned = {row.name: row.videos for row in read_plan(store)}
    if name in planned:
        return planned[name]
    return [record["video_id"] for record in part_attributes(store, name)["videos"]]

"""Mend a store: broken parts are taken out and extracted again by the plan, so they come back byte for byte."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import Report, extract
from mgm_prep.extraction.plan import read_plan
from mgm_prep.runtime.lock import locked
from mgm_prep.sources.discover import find_sources
from mgm_prep.store_tools.verify import Verdict, verify
from mgm_shared.index import part_attributes
from mgm_shared.schema import PARTS_DIR, UNFINISHED_DIR
from mgm_shared.storage import StorePath, withdraw
from mgm_shared.store import check_schema


def repair(
    store: StorePath,
    videos: Path,
    verdict: Verdict,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    report: Report = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """Extract the broken parts of `verdict` again from `videos`, and look at the whole store once more.

    A part is only touched when all of its videos are among `videos`: what is left of the others is not thrown away.
    """
    found = {source.video_id for source in find_sources(videos).sources}
    mended = []
    with locked(store):
        for name in verdict.broken_parts:
            missing = [video_id for video_id in _videos(store, name) if video_id not in found]
            if missing:
                say(f"{name} is left as it is: {len(missing)} of its videos are not in {videos}, such as {missing[0]}")
                continue
            withdraw(store / PARTS_DIR / name, store / UNFINISHED_DIR / f"{name}-{uuid.uuid4().hex}")
            mended.append(name)
    settings = ExtractSettings(**check_schema(store)["settings"])
    # Also without a broken part: it makes the index anew.
    extract(videos, store, settings, workers=workers, scheduler=scheduler, report=report, say=say)
    return replace(verify(store), repaired_parts=mended)


def _videos(store: StorePath, name: str) -> Sequence[str]:
    """The videos of a part, by the plan, or by itself should it stand in none."""
    planned = {row.name: row.videos for row in read_plan(store)}
    if name in planned:
        return planned[name]
    return [record["video_id"] for record in part_attributes(store, name)["videos"]]

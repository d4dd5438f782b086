"""Open each video and decode its first frame: what the plan needs to know."""

from collections.abc import Sequence
from dataclasses import dataclass

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.image import ImageFile
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.failures import Failure, failure_of
from mgm_prep.extraction.part import REJECTED
from mgm_prep.extraction.tasks import Job, Task
from mgm_prep.runtime.crash_journal import journal
from mgm_prep.sources.discover import Source
from mgm_shared.geometry import stored_size
from mgm_shared.storage import StorePath

PROBES_PER_TASK = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What the header of a video says for the plan."""

    video_id: str
    height: int
    width: int
    """Size in pixels as stored."""
    num_frames_estimate: int
    codec: str


def read_headers(job: Job[StorePath, ExtractSettings], sources: Sequence[Source]) -> tuple[list[Probe], list[Failure]]:
    """The probes of all videos that can be opened, and the failures of the others."""
    job.progress.start("reading headers", len(sources), "video")
    starts = range(0, len(sources), PROBES_PER_TASK)
    batches = (
        Task(name=f"headers-{start}", sources=tuple(sources[start : start + PROBES_PER_TASK])) for start in starts
    )
    probes: list[Probe] = []
    failures: list[Failure] = []
    for found in job.map(probe_all, batches):
        probes.extend(probe for probe in found if isinstance(probe, Probe))
        failures.extend(probe for probe in found if isinstance(probe, Failure))
        job.progress.advance(len(found), failed=len(failures))
    return probes, failures


def probe_all(batch: Task, store: StorePath, settings: ExtractSettings) -> list[Probe | Failure]:
    """`probe` for a batch of videos: one task of the cluster."""
    found: list[Probe | Failure] = list(batch.rejected)
    with journal(store, batch.name, settings.max_seconds) as notes:
        for source in batch.sources:
            notes.opening(source.video_id)
            found.append(probe(source, settings))
    return found


def probe(source: Source, settings: ExtractSettings) -> Probe | Failure:
    """Open a video and decode its first frame."""
    try:
        with (ImageFile if source.is_image else VideoFile)(source.path, settings) as video:
            header = video.header
    except (Unreadable, *REJECTED) as error:
        return failure_of(source, error)
    height, width = stored_size(header.display_height, header.display_width, settings.short_side)
    return Probe(
        video_id=source.video_id,
        height=height,
        width=width,
        num_frames_estimate=header.num_frames_estimate,
        codec=header.codec,
    )

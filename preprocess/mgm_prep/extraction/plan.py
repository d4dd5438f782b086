"""The plan of a store: which video goes into which part.

The plan is made from the headers of the files and written before the first frame is decoded. A resumed run follows it,
so a store does not depend on how often it was interrupted. Videos that are added later get new parts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.image import is_image_codec
from mgm_prep.extraction.failures import Failure, read_failures, write_failures
from mgm_prep.extraction.headers import Probe, read_headers
from mgm_prep.extraction.part import Part
from mgm_prep.extraction.tasks import Job
from mgm_prep.motion.x264 import VECTOR_CODECS
from mgm_prep.sources.discover import Source
from mgm_shared.index import all_attributes, extracted_ids
from mgm_shared.progress import Progress
from mgm_shared.schema import PLAN_FILE
from mgm_shared.storage import StorePath, read_rows, write_rows

# A part is a 64th of the data set, so that a few workers share even a small one evenly. Smaller parts would make too
# many files, and with larger ones a retry would cost too much.
PARTS_PER_DATASET = 64
MIN_PART_FRAMES, MAX_PART_FRAMES = 256, 8192
MOTION_WITHOUT_VECTORS = {
    "transcode": "their motion comes from an H.264 transcode",
    "estimate": "their motion is estimated by block matching",
    "skip": "their motion is left missing",
}


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """A row of plan.jsonl."""

    name: str
    height: int
    width: int
    videos: tuple[str, ...]
    replaces: str | None = None
    """The part that held these videos before some of their files changed."""

    @property
    def number(self) -> int:
        return int(self.name.rpartition("-")[2])

    def part(self, sources: Mapping[str, Source], failures: Mapping[str, Failure]) -> Part:
        """The part with the current paths and labels of its videos. Videos whose files are gone are rejected."""
        known = {video_id: failures[video_id] for video_id in self.videos if video_id in failures}
        gone = [video_id for video_id in self.videos if video_id not in sources and video_id not in known]
        return Part(
            name=self.name,
            height=self.height,
            width=self.width,
            sources=tuple(sources[video_id] for video_id in self.videos if video_id not in {*known, *gone}),
            rejected=(
                *known.values(),
                *(Failure(video_id=name, path=name, reason="the file is gone", exception="KeyError") for name in gone),
            ),
        )


def plan_parts(probes: Iterable[Probe], first_number: int) -> list[PlannedPart]:
    """Divide videos, sorted by id, into parts of one stored size and about the same number of frames.

    The parts are numbered from `first_number`.
    """
    ordered = sorted(probes, key=lambda found: found.video_id)
    total = sum(found.num_frames_estimate for found in ordered)
    part_frames = min(MAX_PART_FRAMES, max(MIN_PART_FRAMES, total // PARTS_PER_DATASET))
    by_size: dict[tuple[int, int], list[list[Probe]]] = defaultdict(list)
    for found in ordered:
        groups = by_size[found.height, found.width]
        if not groups or sum(member.num_frames_estimate for member in groups[-1]) >= part_frames:
            groups.append([])
        groups[-1].append(found)
    groups_by_size = [(size, group) for size, groups in sorted(by_size.items()) for group in groups]
    return [
        PlannedPart(
            name=part_name(height, width, number),
            height=height,
            width=width,
            videos=tuple(member.video_id for member in group),
        )
        for number, ((height, width), group) in enumerate(groups_by_size, first_number)
    ]


def part_name(height: int, width: int, number: int) -> str:
    """The name of a part; the number makes it unique in the store."""
    return f"{height}x{width}-{number:06d}"


def next_number(plan: Iterable[PlannedPart]) -> int:
    """The first number that no part of the plan has."""
    return 1 + max((row.number for row in plan), default=-1)


def read_plan(store: StorePath) -> list[PlannedPart]:
    """The plan of a store; empty when there is none yet."""
    return [PlannedPart(**{**row, "videos": tuple(row["videos"])}) for row in read_rows(store / PLAN_FILE)]


def write_plan(store: StorePath, plan: Iterable[PlannedPart]) -> None:
    """Replace the plan of a store."""
    write_rows(store / PLAN_FILE, map(asdict, plan))


def extended_plan(
    job: Job[StorePath, ExtractSettings], plan: list[PlannedPart], sources: Iterable[Source]
) -> list[PlannedPart]:
    """The plan, extended by the sources that the store does not know yet."""
    store = job.place
    known = known_videos(store, plan)
    new = [source for source in sources if source.video_id not in known]
    if not new:
        return plan
    job.progress.say(f"reading the headers of {len(new)} videos")
    probes, rejected = read_headers(job, new)
    plan = [*plan, *plan_parts(probes, next_number(plan))]
    write_failures(store, [*read_failures(store).values(), *rejected])
    write_plan(store, plan)
    _say_without_vectors(probes, job.settings, job.progress)
    return plan


def known_videos(store: StorePath, plan: Iterable[PlannedPart]) -> set[str]:
    """The videos that are extracted, planned or rejected."""
    planned = {video_id for part in plan for video_id in part.videos}
    return planned | read_failures(store).keys() | extracted_ids(store)


def all_failures(store: StorePath) -> dict[str, Failure]:
    """The rejected videos of the list, and those of parts that a killed run did not add to the list."""
    failures = read_failures(store)
    planned = {row.name: row.videos for row in read_plan(store)}
    for part, attributes in all_attributes(store):
        for row in attributes["failures"]:
            # A video that has no place in the plan was tried again.
            if row["video_id"] in planned.get(part, ()):
                failures.setdefault(row["video_id"], Failure(**row))
    return failures


def _say_without_vectors(probes: Sequence[Probe], settings: ExtractSettings, progress: Progress) -> None:
    without = (probe.codec for probe in probes if probe.codec not in VECTOR_CODECS)
    # A single image has no motion that could be found anywhere.
    codecs = Counter(codec for codec in without if not is_image_codec(codec))
    if codecs:
        kinds = ", ".join(f"{codec} {count}" for codec, count in sorted(codecs.items()))
        instead = MOTION_WITHOUT_VECTORS[settings.no_vectors]
        progress.say(f"{codecs.total()} videos have a codec without motion vectors ({kinds}); {instead}")

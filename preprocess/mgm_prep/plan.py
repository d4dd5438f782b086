"""Which video goes into which part: made from the files' headers, written before the first frame is decoded.

A resumed run follows the plan that is there, so a store does not depend on how often it was interrupted; videos that
have come since get parts of their own.
"""

import fcntl
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgm_prep.config import ExtractSettings
from mgm_prep.decode import Unreadable, VideoFile
from mgm_prep.part import REJECTED, Failure, Part, Task, failure_of
from mgm_prep.sources import Source
from mgm_prep.strikes import journal
from mgm_shared.errors import UserError
from mgm_shared.files import replace_file
from mgm_shared.geometry import stored_size
from mgm_shared.schema import FAILURES_FILE, PLAN_FILE

# A part is a 64th of the data set, so that a few workers share even a small one evenly, within these bounds:
# below, files become too many; above, a retry costs too much.
PARTS_PER_DATASET = 64
MIN_PART_FRAMES, MAX_PART_FRAMES = 256, 8192


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a video's header says for the plan; sizes in px as stored."""

    video_id: str
    height: int
    width: int
    num_frames_estimate: int
    codec: str


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """A row of plan.jsonl."""

    name: str
    height: int
    width: int
    videos: tuple[str, ...]

    def part(self, sources: dict[str, Source], failures: dict[str, Failure]) -> Part:
        """The part with the paths and labels its videos have now; a vanished video keeps its place and will fail."""
        return Part(
            name=self.name,
            height=self.height,
            width=self.width,
            sources=tuple(
                sources.get(video_id, Source(video_id=video_id, path=Path(video_id), label=None, split=None))
                for video_id in self.videos
                if video_id not in failures
            ),
            rejected=tuple(failures[video_id] for video_id in self.videos if video_id in failures),
        )


def probe(source: Source, settings: ExtractSettings) -> Probe | Failure:
    """Open a video and decode its first picture."""
    try:
        with VideoFile(source.path, settings) as video:
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


def probe_all(batch: Task, store: Path, settings: ExtractSettings) -> list[Probe | Failure]:
    """`probe` for a batch: one task of the cluster."""
    found: list[Probe | Failure] = list(batch.rejected)
    with journal(store, batch.name, settings.max_seconds) as notes:
        for source in batch.sources:
            notes.opening(source.video_id)
            found.append(probe(source, settings))
    return found


def plan_parts(probes: Iterable[Probe], num_planned: int) -> list[PlannedPart]:
    """Divide videos, sorted by id, into parts of one size and about equal frames; numbers go on from `num_planned`."""
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
            name=f"{height}x{width}-{number:06d}",
            height=height,
            width=width,
            videos=tuple(member.video_id for member in group),
        )
        for number, ((height, width), group) in enumerate(groups_by_size, num_planned)
    ]


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store for oneself: two extractions into one would undo each other's plan. UserError when it is taken."""
    lock = store / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another command is writing to {store}; wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def read_plan(store: Path) -> list[PlannedPart]:
    """The plan of a store, empty when it has none yet."""
    return [PlannedPart(**{**row, "videos": tuple(row["videos"])}) for row in read_rows(store / PLAN_FILE)]


def write_plan(store: Path, plan: Iterable[PlannedPart]) -> None:
    """Replace the plan."""
    write_rows(store / PLAN_FILE, map(asdict, plan))


def read_failures(store: Path) -> list[Failure]:
    """The rejected videos of a store."""
    return [Failure(**row) for row in read_rows(store / FAILURES_FILE)]


def write_failures(store: Path, failures: Iterable[Failure]) -> None:
    """Replace the list of rejected videos, sorted by id."""
    write_rows(store / FAILURES_FILE, map(asdict, sorted(failures, key=lambda failure: failure.video_id)))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, none when it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a .jsonl file: one object a line, keys sorted."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    replace_file(file, lambda beside: beside.write_text(text))

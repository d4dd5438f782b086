"""Find the frames of segments in the videos of a store, and write the table of segments beside the parts.

Each row of the files either becomes a segment or is rejected, with the reason, in rejected_segments.jsonl.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from mgm_prep.config import SegmentSettings
from mgm_prep.extraction.failures import read_failures
from mgm_prep.extraction.matching import find_videos
from mgm_prep.sources.names import SPLITS, text_of
from mgm_prep.sources.segments import Segment
from mgm_shared.errors import UserError
from mgm_shared.index import numbers
from mgm_shared.progress import Progress
from mgm_shared.samples import SEGMENTS_SCHEMA, write_segments
from mgm_shared.schema import PARTS_DIR, REJECTED_SEGMENTS_FILE
from mgm_shared.storage import StorePath, remove, write_rows
from mgm_shared.times import ROUNDING_S, end_s, frames_between, interval_s

MAX_SHOWN = 10
UNKNOWN, AMBIGUOUS, UNREADABLE = "unknown video", "ambiguous video", "unreadable row"
BACKWARDS, OUTSIDE, EMPTY, TWICE = "end before start", "outside the video", "no frame", "id twice"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that is no segment."""

    where: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PlacedSegments:
    """The segments of some files by their frames, and the rows that were rejected."""

    table: pa.Table
    """See `mgm_shared.samples.SEGMENTS_SCHEMA`."""
    rejected: list[Rejected] = field(default_factory=list)
    num_cut: int = 0
    """Segments that were cut at the end of their video."""
    shared_videos: dict[str, list[str]] = field(default_factory=dict)
    """Videos that have samples in several splits, with the splits."""

    @property
    def counts(self) -> dict[str, int]:
        """Rejected rows by kind of reason."""
        return dict(Counter(one.kind for one in self.rejected).most_common())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claim:
    """A segment with its number in the files, and the number that it has among those of its video."""

    number: int
    of_video: int
    segment: Segment


def place_segments(
    store: StorePath, videos: pa.Table, segments: Sequence[Segment], settings: SegmentSettings
) -> PlacedSegments:
    """Find the video and the frames of each segment. `videos` is the index of the store. Nothing is written."""
    rejected: dict[int, Rejected] = {}
    claims = _claims(store, videos, segments, rejected)
    frames: dict[int, tuple[int, int]] = {}
    num_cut = 0
    for row, time_T in _times(store, videos, sorted(claims)):
        fps = float(videos["fps"][row].as_py())
        found, num_cut_here = _frames_of(claims[row], time_T, fps, settings, rejected)
        frames |= found
        num_cut += num_cut_here
    table = _table(videos, claims, frames, rejected)
    return PlacedSegments(
        table=table,
        rejected=[rejected[number] for number in sorted(rejected)],
        num_cut=num_cut,
        shared_videos=shared_videos(table, videos),
    )


def save_segments(store: StorePath, placed: PlacedSegments) -> None:
    """Replace the table of segments of a store, and the list of rejected rows."""
    write_segments(store, placed.table)
    if placed.rejected:
        write_rows(store / REJECTED_SEGMENTS_FILE, map(asdict, placed.rejected))
    else:
        remove(store / REJECTED_SEGMENTS_FILE)


def check_segments(placed: PlacedSegments, settings: SegmentSettings, progress: Progress) -> None:
    """Report what was rejected, cut, or is in several splits. UserError without a segment, and for shared videos."""
    for one in placed.rejected[:MAX_SHOWN]:
        progress.say(f"rejected: {one.where}: {one.reason}")
    if len(placed.rejected) > MAX_SHOWN:
        progress.say(f"{len(placed.rejected)} rows were rejected; {REJECTED_SEGMENTS_FILE} lists all of them")
    if placed.num_cut:
        progress.say(f"{placed.num_cut} segments end after their video and were cut at its end")
    if not len(placed.table):
        first = f"; the first: {placed.rejected[0].where}: {placed.rejected[0].reason}" if placed.rejected else ""
        raise UserError(f"the files have no segment of a video of the store{first}")
    check_shared_videos(placed.shared_videos, settings, progress)


def check_shared_videos(shared: dict[str, list[str]], settings: SegmentSettings, progress: Progress) -> None:
    """Report videos with samples in several splits. UserError unless they are allowed."""
    if not shared:
        return
    video_id, splits = next(iter(shared.items()))
    found = f"{len(shared)} videos have samples in several splits, such as {video_id!r} in {' and '.join(splits)}"
    if not settings.allow_shared_videos:
        raise UserError(
            f"{found}: a test would score scenes that were trained on. Correct the splits, or go on with "
            "--allow-shared-videos"
        )
    progress.say(f"warning: {found}")


def _claims(
    store: StorePath, videos: pa.Table, segments: Sequence[Segment], rejected: dict[int, Rejected]
) -> dict[int, list[_Claim]]:
    """The segments by the row of their video."""
    row_of = {video_id: row for row, video_id in enumerate(videos["video_id"].to_pylist())}
    failures = read_failures(store)
    found = find_videos([one.names for one in segments], row_of.keys() | failures.keys())
    claims: dict[int, list[_Claim]] = {}
    seen = Counter[int]()
    for number, one in enumerate(segments):
        ids = found[one.names]
        row = row_of.get(ids[0]) if len(ids) == 1 else None
        if row is not None:
            # Rows that are rejected count, so that the ids of the others stay when they are corrected.
            seen[row] += 1
        kind, reason = _why_not(one, ids, failures.keys())
        if reason or row is None:
            rejected[number] = Rejected(where=one.where, kind=kind, reason=reason)
        else:
            claims.setdefault(row, []).append(_Claim(number=number, of_video=seen[row] - 1, segment=one))
    return claims


def _why_not(one: Segment, ids: Sequence[str], failures: Collection[str]) -> tuple[str, str]:
    """Kind and reason for which a row is rejected before its frames are looked at; empty for none."""
    name = text_of(one.names[0]) if one.names else ""
    if one.problem:
        return UNREADABLE, one.problem
    if one.split and one.split not in SPLITS.values():
        return UNREADABLE, f"split {one.split!r} is not train, val or test"
    if not ids:
        return UNKNOWN, f"the store has no video {name!r}"
    if len(ids) > 1:
        return AMBIGUOUS, f"{name!r} could be {' or '.join(ids[:3])}"
    if one.folder and one.folder not in ids[0].split("/"):
        return UNKNOWN, f"the store has no video of {one.folder}: {ids[0]!r} may be another one"
    if ids[0] in failures:
        return UNKNOWN, f"the video {ids[0]!r} was rejected by the extraction"
    return "", ""


def _times(store: StorePath, videos: pa.Table, rows: Iterable[int]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The presentation times of some videos. The times of a part are read once."""
    starts, counts = (numbers(videos, name) for name in ("start", "num_frames"))
    by_part = sorted((videos["part"][row].as_py(), row) for row in rows)
    for part, members in groupby(by_part, key=lambda member: member[0]):
        times = np.asarray(zarr.open_array(str(store / PARTS_DIR / part / "time"), mode="r")[:], np.float64)
        for _, row in members:
            yield row, times[starts[row] : starts[row] + counts[row]]


def _frames_of(
    claims: Sequence[_Claim],
    time_T: NDArray[np.float64],
    fps: float,
    settings: SegmentSettings,
    rejected: dict[int, Rejected],
) -> tuple[dict[int, tuple[int, int]], int]:
    """First and last frame of the segments of one video, by number, and how many of them were cut at its end."""
    clock_T = time_T - time_T[0] if settings.times_from == "first-frame" else time_T
    ends = {False: end_s(clock_T, fps), True: float(len(time_T))}
    # Files state durations that differ from the sum of the frames by up to a frame.
    slack = {False: interval_s(fps) + ROUNDING_S, True: 0.0}
    found: dict[int, tuple[int, int]] = {}
    num_cut = 0
    for claim in claims:
        one, end = claim.segment, ends[claim.segment.is_frames]
        is_late = one.end > end + slack[one.is_frames]
        if settings.cut_at_end and is_late and one.start < end:
            num_cut += 1
            one, is_late = replace(one, end=end), False
        kind, reason = _outside(one, min(0.0, float(clock_T[0])), end, is_late)
        if not reason:
            first, stop = _frames_at(one, clock_T)
            if first < stop:
                found[claim.number] = (first, stop - 1)
                continue
            kind, reason = EMPTY, f"no frame begins from {_place(one)}"
        rejected[claim.number] = Rejected(where=one.where, kind=kind, reason=reason)
    return found, num_cut


def _frames_at(one: Segment, clock_T: NDArray[np.float64]) -> tuple[int, int]:
    """First frame, and the frame after the last."""
    if one.is_frames:
        return int(one.start), int(one.end)
    first, stop = frames_between(clock_T, one.start, one.end)
    return int(first), int(stop)


def _outside(one: Segment, first: float, end: float, is_late: bool) -> tuple[str, str]:
    """Kind and reason for which a place is none of a video from `first` to `end`; empty for none."""
    unit = "" if one.is_frames else " s"
    what = f"the video, which ends at {'frame ' if one.is_frames else ''}{end:.7g}{unit}"
    if one.end <= one.start:
        return BACKWARDS, f"its end is not after its start ({_place(one)})"
    if one.start < first - ROUNDING_S:
        return OUTSIDE, f"it starts before the video ({_place(one)})"
    if one.start >= end:
        return OUTSIDE, f"it starts after {what} ({_place(one)})"
    if is_late:
        return OUTSIDE, f"it ends after {what} ({_place(one)}); --cut-at-end cuts such segments"
    return "", ""


def _place(one: Segment) -> str:
    unit = "frame " if one.is_frames else ""
    return f"{unit}{one.start:.7g} to {one.end:.7g}" + ("" if one.is_frames else " s")


def _table(
    videos: pa.Table,
    claims: dict[int, list[_Claim]],
    frames: dict[int, tuple[int, int]],
    rejected: dict[int, Rejected],
) -> pa.Table:
    """The table of segments in the order of the files. A row whose id is taken is rejected."""
    by_number = {claim.number: (row, claim) for row, of_row in claims.items() for claim in of_row}
    video_ids = videos["video_id"].to_pylist()
    taken = set(video_ids)
    columns: dict[str, list[object]] = {name: [] for name in SEGMENTS_SCHEMA.names}
    for number in sorted(frames):
        row, claim = by_number[number]
        one = claim.segment
        sample_id = text_of(one.sample_id or f"{video_ids[row]}#{claim.of_video:04d}")
        if sample_id in taken:
            reason = f"the id {sample_id!r} is that of an earlier row or of a video"
            rejected[number] = Rejected(where=one.where, kind=TWICE, reason=reason)
            continue
        taken.add(sample_id)
        values = (sample_id, video_ids[row], *frames[number], one.label, one.split)
        for name, value in zip(SEGMENTS_SCHEMA.names, values, strict=True):
            columns[name].append(value)
    return pa.table(columns, schema=SEGMENTS_SCHEMA)


def shared_videos(segments: pa.Table, videos: pa.Table) -> dict[str, list[str]]:
    """Videos whose samples, the whole video among them, are in several splits, with the splits."""
    own = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    pairs = list(zip(segments["video_id"].to_pylist(), segments["split"].to_pylist(), strict=True))
    # A segment without a split has that of its video. Without that it trains, if no sample is marked for training.
    is_marked = any((split or own.get(video_id)) == "train" for video_id, split in pairs)
    splits: dict[str, set[str]] = {}
    for video_id, split in pairs:
        stated = own.get(video_id)
        found = splits.setdefault(video_id, {stated} if stated else set())
        found.add(split or stated or ("none" if is_marked else "train"))
    return {video_id: sorted(found) for video_id, found in splits.items() if len(found - {"none"}) > 1}

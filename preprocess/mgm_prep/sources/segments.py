"""Read segments, places in videos with a label, from a data set's own files.

A file is recognised by its columns or keys; `segment_tables.py`, `segment_json.py` and `lerobot.py` know the formats.
A row that cannot be used keeps its place and gets a `problem`: it is counted and reported, never repaired.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from mgm_shared.errors import UserError

# 12.5, 1:02.5 and 00:01:02.50 are times.
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")
FRAME_NUMBER = re.compile(r"\d+(?:\.0+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """What a file says about one place in a video."""

    where: str
    """File and row, for messages."""
    names: tuple[str, ...]
    """What the video is called there; each further one only where no video has those before it."""
    start: float
    """Seconds, or the number of the first frame, counted from 0."""
    end: float
    """Seconds, or the number of the frame after the last one."""
    is_frames: bool = False
    label: str | None = None
    split: str | None = None
    sample_id: str | None = None
    """The file's own id of the segment; None where it has none."""
    folder: str = ""
    """A folder that must be in the path of the video, where other videos have the same name; empty for none."""
    problem: str = ""
    """Why the row cannot be used; start and end then mean nothing."""


class About(TypedDict, total=False):
    """What a segment may have beside its place; empty text states nothing."""

    label: str | None
    split: str | None
    sample_id: str | None


def segment(where: str, names: Sequence[str], start: object, end: object, **about: Unpack[About]) -> Segment:
    """A segment between two times, numbers or text such as 12.5 or 00:01:02.5; one with a problem for anything else."""
    start_s, end_s = seconds(start), seconds(end)
    if start_s is None or end_s is None:
        name, value = ("start", start) if start_s is None else ("end", end)
        problem = f"{name} {value!r} is not a time" if value not in (None, "") else f"the {name} is missing"
        return unusable(where, names, problem, **about)
    return Segment(where=where, names=tuple(names), start=start_s, end=end_s, **_stated(about))


def frame_segment(where: str, names: Sequence[str], start: str, stop: str, **about: Unpack[About]) -> Segment:
    """A segment from frame `start` to the frame before `stop`; one with a problem where these are no frame numbers."""
    for name, value in (("start", start), ("end", stop)):
        if not FRAME_NUMBER.fullmatch(value.strip()):
            problem = f"{name} {value!r} is not a frame number" if value else f"the {name} is missing"
            return unusable(where, names, problem, **about)
    first, after = float(start), float(stop)
    return Segment(where=where, names=tuple(names), start=first, end=after, is_frames=True, **_stated(about))


def unusable(where: str, names: Sequence[str], problem: str, **about: Unpack[About]) -> Segment:
    """A segment without a place, and the reason."""
    return Segment(where=where, names=tuple(names), start=0, end=0, problem=problem, **_stated(about))


def seconds(value: object) -> float | None:
    """Seconds of a number or of text such as 12.5 or 00:01:02.5; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        if clock := CLOCK.fullmatch(text):
            return 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
        try:
            value = float(text)
        except ValueError:
            return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def not_found(where: str, what: str, known: Iterable[str]) -> UserError:
    """The error for a file whose rows lack something; it names what is there."""
    return UserError(f"{where}: {what}; there is {', '.join(known) or 'nothing'}")


def _stated(about: About) -> About:
    stated: Any = {name: str(value or "").strip() or None for name, value in about.items()}
    texts: About = stated
    return texts

"""Schedules of the size of clips: `128@0,224@0.8` is 128 from the start of a run, and 224 from 0.8 of its epochs on.

torch is not imported here.
"""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run in which all clips have one size; `first_epoch` is counted from 0."""

    first_epoch: int
    num_epochs: int
    num_frames: int
    image_px: int


def parse_schedule(text: str) -> list[tuple[int, float]]:
    """The values of a schedule, each with the share of the run at which it starts. ValueError for anything else."""
    values = []
    for part in text.split(","):
        value, at, share = part.partition("@")
        if not at:
            raise ValueError(f"{part!r} has no share")
        values.append((int(value), float(share)))
    shares = [share for _, share in values]
    is_rising = all(before < after for before, after in pairwise(shares))
    if shares[0] != 0 or not is_rising or not shares[-1] < 1 or any(value < 1 for value, _ in values):
        raise ValueError("the shares must rise from 0 to below 1")
    return values


def last_value(text: str) -> int:
    """The value at the end of a run. ValueError for a text that is no schedule."""
    return parse_schedule(text)[-1][0]


def epochs_of(text: str, epochs: int) -> list[tuple[int, int]]:
    """The first epoch of each value, (epoch, value): the share of the epochs, rounded to a whole one."""
    return [(round(share * epochs), value) for value, share in parse_schedule(text)]


def is_possible(text: str, epochs: int) -> bool:
    """Whether each value of the schedule has an epoch of its own."""
    firsts = [first for first, _ in epochs_of(text, epochs)] + [epochs]
    return all(before < after for before, after in pairwise(firsts))


def stages(epochs: int, *, num_frames: int, image_px: int, frames_text: str = "", px_text: str = "") -> list[Stage]:
    """The parts of a run with one size of clips each; one part without a schedule."""
    frames_from = epochs_of(frames_text, epochs) if frames_text else [(0, num_frames)]
    px_from = epochs_of(px_text, epochs) if px_text else [(0, image_px)]
    firsts = sorted({first for first, _ in (*frames_from, *px_from)})
    return [
        Stage(
            first_epoch=first,
            num_epochs=end - first,
            num_frames=_value_at(frames_from, first),
            image_px=_value_at(px_from, first),
        )
        for first, end in zip(firsts, [*firsts[1:], epochs], strict=True)
    ]


def _value_at(values: list[tuple[int, int]], epoch: int) -> int:
    return [value for first, value in values if first <= epoch][-1]

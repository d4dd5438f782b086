"""Segments in JSON files of nested objects: ActivityNet and the sets in its form, and FineGym.

ActivityNet, THUMOS14, HACS, FineAction:
    {"database": {"ID": {"subset": "training", "annotations": [{"segment": [3.2, 9.7], "label": "Polo"}]}}}

FineGym (`finegym_annotation_info_v1.1.json`). The times of a segment count from the start of its event; several
timestamps are the stages of one segment. Element lists (`gym99_train_element_v1.1.txt`) give a class to each segment
that counts, `ID_E_002184_002237_A_0035_0036 31`:
    {"ID": {"E_002184_002237": {"event": 1, "timestamps": [[2184.1, 2237.6]],
                                "segments": {"A_0035_0036": {"stages": 1, "timestamps": [[35.2, 36.0]]}}}}}
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgm_prep.sources.annotations import split_in_name
from mgm_prep.sources.names import SPLITS
from mgm_prep.sources.segments import Segment, segment
from mgm_shared.errors import UserError
from mgm_shared.text_files import read_lines

EVENT = re.compile(r"E_\d+_\d+")
ELEMENT_LINE = re.compile(r"(\S+_E_\d+_\d+_A_\d+_\d+)\s+(\d+)")
# The numbers of FineGym's event types.
EVENTS = {"1": "VT", "2": "FX", "3": "BB", "4": "UB"}


@dataclass(frozen=True, kw_only=True)
class Elements:
    """The element lists of FineGym: class number and split of each segment, by its id."""

    values: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    @classmethod
    def read(cls, files: list[Path]) -> "Elements":
        """Join the lists. UserError for a line of another form."""
        values: dict[str, tuple[str, str | None]] = {}
        for file in files:
            for number, line in read_lines(file).items():
                match = ELEMENT_LINE.fullmatch(line.strip())
                if not match:
                    raise UserError(f"{file}, line {number}: want the id of a segment and its class")
                values[match[1]] = (match[2], split_in_name(file))
        return cls(values=values)

    def named(self, names: Mapping[str, str]) -> "Elements":
        """The same with names for numbers, where there are some."""
        return Elements(values={key: (names.get(label, label), split) for key, (label, split) in self.values.items()})


def is_element_list(file: Path) -> bool:
    """Whether the first line of a text file is one of an element list of FineGym."""
    return bool(ELEMENT_LINE.fullmatch(next(iter(read_lines(file).values()), "").strip()))


def is_activitynet(content: Any) -> bool:
    """Whether this is JSON in the form of ActivityNet."""
    return isinstance(content, dict) and isinstance(content.get("database"), dict)


def is_finegym(content: Any) -> bool:
    """Whether this is JSON in the form of FineGym."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(events, dict) and all(map(EVENT.fullmatch, events)) for events in content.values())


def of_activitynet(file: Path, content: Mapping[str, Any]) -> Iterator[Segment]:
    """The segments of each video of the database."""
    for video, about in content["database"].items():
        where = f"{file}, {video}"
        if not isinstance(about, Mapping):
            raise UserError(f"{where}: want an object with `subset` and `annotations`")
        subset = str(about.get("subset") or "").lower()
        for number, one in enumerate(about.get("annotations") or []):
            place = f"{where}, annotation {number + 1}"
            edges = one.get("segment") if isinstance(one, Mapping) else None
            start, end = edges if isinstance(edges, list) and len(edges) == 2 else (None, None)
            label = str(one.get("label") or "") if isinstance(one, Mapping) else ""
            # ActivityNet's own files are called v_ID.mp4.
            yield segment(place, (video, f"v_{video}"), start, end, label=label, split=_split_of(subset))


def of_finegym(file: Path, content: Mapping[str, Any], elements: Elements, level: str) -> Iterator[Segment]:
    """The elements of each event, or the events themselves where `level` is event.

    The classes of elements are in the element lists. Without a list every element has the name of its event.
    """
    if level not in ("", "element", "event"):
        raise UserError(f"{file} has elements and events: --label element or event says which to take, not {level!r}")
    if level == "event":
        yield from _events(file, content)
        return
    for video, event_id, event in _each(content):
        for action_id, action in (event.get("segments") or {}).items():
            sample_id = f"{video}_{event_id}_{action_id}"
            if sample_id in elements.values or not elements.values:
                label, split = elements.values.get(sample_id, (_event_name(event), None))
                start, end = _span(action)
                event_s = _span(event)[0]
                edges = [None if edge is None or event_s is None else event_s + edge for edge in (start, end)]
                yield segment(f"{file}, {sample_id}", (video,), *edges, label=label, split=split, sample_id=sample_id)


def _events(file: Path, content: Mapping[str, Any]) -> Iterator[Segment]:
    for video, event_id, event in _each(content):
        sample_id, label = f"{video}_{event_id}", _event_name(event)
        yield segment(f"{file}, {sample_id}", (video,), *_span(event), label=label, sample_id=sample_id)


def _event_name(event: Mapping[str, Any]) -> str:
    number = str(event.get("event"))
    return EVENTS.get(number, number)


def _each(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for video, events in content.items():
        for event_id, event in events.items():
            yield video, event_id, event


def _span(timed: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """From the start of the first timestamp to the end of the last one; (None, None) without timestamps."""
    stages = timed.get("timestamps")
    try:
        return float(stages[0][0]), float(stages[-1][-1])  # type: ignore[index]
    except (TypeError, IndexError, ValueError, KeyError):
        return None, None


def _split_of(subset: str) -> str | None:
    return SPLITS.get(subset, subset or None)

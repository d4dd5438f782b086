"""The rejected videos of a store by reason."""

import re
from collections import Counter
from io import BytesIO
from json import loads

from mgm_shared.report.blocks import Cell, Table
from mgm_shared.schema import FAILURES_FILE
from mgm_shared.storage import StorePath, read_bytes

MAX_REASONS, NUM_EXAMPLES = 20, 3
# What differs between two videos that are rejected for the same reason.
OWN = re.compile(r"'[^']*'|\"[^\"]*\"|(?:[\w.-]*/)+[\w.-]+|\d+(?:\.\d+)?")


def rejected_by_reason(store: StorePath) -> tuple[Counter[str], dict[str, list[str]]]:
    """How many videos were rejected for each reason, and a few of their ids. One row is in memory at a time."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    try:
        content = read_bytes(store / FAILURES_FILE)
    except FileNotFoundError:
        return counts, examples
    for line in BytesIO(content):
        row = loads(line)
        reason = f"{OWN.sub('…', str(row['reason']))} ({row['exception']})"
        counts[reason] += 1
        known = examples.setdefault(reason, [])
        if len(known) < NUM_EXAMPLES:
            known.append(str(row["video_id"]))
    return counts, examples


def rejected_table(counts: Counter[str], examples: dict[str, list[str]]) -> Table:
    """The commonest reasons with examples. `…` stands for numbers, names and paths, which differ by video."""
    rows: list[list[Cell]] = [
        [reason, count, ", ".join(examples[reason]) + (", …" if count > len(examples[reason]) else "")]
        for reason, count in counts.most_common(MAX_REASONS)
    ]
    others = len(counts) - len(rows)
    caption = f"{others} rarer reasons are in {FAILURES_FILE}." if others > 0 else ""
    return Table(columns=["reason", "videos", "such as"], rows=rows, caption=caption)

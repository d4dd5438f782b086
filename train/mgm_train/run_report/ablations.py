"""The tables of an ablation, with a bar for each mean."""

from collections.abc import Mapping
from typing import Any

from mgm_shared.report.blocks import Block, Cell, Share, Table
from mgm_train.run_report.records import AblationRecord


def ablation_blocks(ablation: AblationRecord) -> list[Block]:
    """The tables that `mgm-train ablate` wrote into results.json."""
    return [_table(table) for table in ablation.tables]


def _table(table: Mapping[str, Any]) -> Table:
    rows = table["rows"]
    names = list(rows[0]["labels"]) if rows else []
    best = max((row["mean"] for row in rows if row["mean"] is not None), default=None)
    cells: list[list[Cell]] = [[*map(str, row["labels"].values()), *_result(row)] for row in rows]
    seeds = sorted({int(seed) for row in rows for seed in row["values"]})
    counts = sorted({len(row["values"]) for row in rows if row["values"]})
    num_runs = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "0"
    caption = f"Mean ± standard deviation, n = {num_runs} (seeds {', '.join(map(str, seeds)) or 'none'})."
    return Table(
        title=str(table["table"]),
        columns=[*names, "top-1, %", "runs", "remark"],
        rows=cells,
        caption=caption,
        marked=frozenset(place for place, row in enumerate(rows) if best is not None and row["mean"] == best),
    )


def _result(row: Mapping[str, Any]) -> list[Cell]:
    remarks = [f"seed {seed}: {reason}" for seed, reason in row["failures"].items()]
    remarks += [f"{row['not_run']} not run"] if row["not_run"] else []
    if row["mean"] is None:
        return [None, len(row["values"]), "; ".join(remarks)]
    text = f"{row['mean']:.1f}" + (f" ± {row['std']:.1f}" if row["std"] is not None else "")
    return [Share(share=row["mean"] / 100, text=text), len(row["values"]), "; ".join(remarks)]

"""The tables and the figure of docs/evidence.md are those of the rows that a grid wrote."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

from evidence import cli  # noqa: E402
from evidence.report import figure, read_lines  # noqa: E402


def _row(table: str, labels: dict[str, str], seed: int, top1: float, **more: float) -> dict[str, Any]:
    return {"table": table, "labels": labels, "seed": seed, "evaluate_top1": top1, **more}


ROWS = [
    _row("a", {"labels": "20 %", "pretraining": "scratch"}, 0, 0.5),
    _row("a", {"labels": "20 %", "pretraining": "scratch"}, 1, 0.6),
    _row("a", {"labels": "20 %", "pretraining": "tube"}, 0, 0.53, probe_top1=0.4, pretrain_last_loss=0.75),
    _row("a", {"labels": "20 %", "pretraining": "tube"}, 1, 0.65, probe_top1=0.45, pretrain_last_loss=0.7),
    _row("b", {"labels": "20 %", "mask type": "block"}, 1, 0.55),
    _row("c", {"labels": "5 %", "target": "rgb", "mask": "MGM"}, 0, 0.3),
]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"made": {}, "rows": ROWS}))
    return path


def test_the_tables_pair_the_seeds_with_scratch(rows_file: Path, tmp_path: Path) -> None:
    arguments = ["report", str(rows_file), "--figure", str(tmp_path / "figure.svg")]
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    lines = result.output.splitlines()
    assert "| scratch | 50.0, 60.0 | 55.0 |  |  |  |  |" in lines
    # 3 and 5 points: their standard deviation is √2, the standard error 1.
    assert "| tube | 53.0, 65.0 | 59.0 | +4.0 ± 1.0 | 40.0, 45.0 |  | 0.750, 0.700 |" in lines
    assert "| block | 55.0 | 55.0 | −5.0 |  |  |  |" in lines, "seed 1 alone is compared with seed 1"
    assert "| rgb, MGM | 30.0 | 30.0 |  |  |  |  |" in lines, "no model from scratch has 5 %"
    assert [line for line in lines if line.endswith("of the labels")] == [
        "a, 20 % of the labels", "b, 20 % of the labels", "c, 5 % of the labels",
    ]  # fmt: skip
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_the_figure_has_a_dot_for_each_seed(rows_file: Path) -> None:
    first, second = figure(read_lines(rows_file)).axes
    dots = [np.asarray(line.get_xdata()).round(6).tolist() for line in first.lines if line.get_marker() == "o"]
    assert dots == [[50, 60], [53, 65], [55]]
    assert [label.get_text() for label in first.get_yticklabels()] == ["scratch", "tube", "block"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["rgb, MGM"]

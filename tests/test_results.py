"""Means and std against numpy, and what the plot shows of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mgm_train.ablation.grid import Table, read_grid, runs_of
from mgm_train.ablation.results import markdown, plot, tabulate
from mgm_train.ablation.runner import RunResult

RATES = {"tube": (60.0, 61.5, 64.0), "mgm": (65.0, 70.0, 66.0)}


@pytest.fixture
def tables(tmp_path: Path) -> list[Table]:
    axes = {"mask": ["tube", "mgm"], "mask_ratio": [0.9, 0.5]}
    grid = {"seeds": [0, 1, 2], "tables": {"curves": axes, "marks": {"mask": {"A|B": "tube", "MGM": "mgm"}}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    return read_grid(tmp_path / "grid.yaml")


@pytest.fixture
def outcomes(tables: list[Table]) -> dict[str, RunResult]:
    def outcome(run: Any) -> RunResult:
        config = run.configs["pretrain"]
        percent = RATES[config.mask][run.seed] - 10 * (config.mask_ratio == 0.5)
        return RunResult(scores={"top1": percent / 100, "scored": 5, "listed": 5})

    return {run.name: outcome(run) for run in runs_of(tables)}


def test_mean_and_std_are_numpys(tables: list[Table], outcomes: dict[str, RunResult]) -> None:
    tube, mgm = tabulate(tables[1], outcomes)
    for result, rates in ((tube, RATES["tube"]), (mgm, RATES["mgm"])):
        assert result.mean == pytest.approx(np.mean(rates))
        assert result.std == pytest.approx(np.std(rates, ddof=1))
    assert str(tube) == f"{np.mean(RATES['tube']):.1f} ± {np.std(RATES['tube'], ddof=1):.1f}"
    # The bar in a name does not break the table.
    assert "| A\\|B | 61.8 ± 2.0 |" in markdown(tables[1], outcomes)


def test_one_run_has_no_std(tables: list[Table], outcomes: dict[str, RunResult]) -> None:
    left = {name: outcome if name.endswith("seed=1") else RunResult() for name, outcome in outcomes.items()}
    result = tabulate(tables[1], left)[0]
    assert (str(result), result.std, result.remark) == ("61.5", None, "2 not run")


def test_a_numeric_axis_is_a_curve_and_the_others_its_names(
    tables: list[Table], outcomes: dict[str, RunResult]
) -> None:
    curves, marks = plot(tables, outcomes).axes
    containers: list[Any] = curves.containers
    shown = {bars.get_label(): bars.lines[0].get_xydata() for bars in containers}
    for mask, rates in RATES.items():
        np.testing.assert_allclose(shown[mask], np.array([(0.5, np.mean(rates) - 10), (0.9, np.mean(rates))]))
    assert [text.get_text() for text in marks.get_yticklabels()] == ["A|B", "MGM"]
    containers = list(marks.containers)
    np.testing.assert_allclose(
        [bars.lines[0].get_xdata()[0] for bars in containers], np.array([61.8333, 67]), atol=1e-3
    )


def test_what_has_no_number_is_named(tables: list[Table], outcomes: dict[str, RunResult]) -> None:
    failed = {name: RunResult(reason="boom") if "tube" in name else one for name, one in outcomes.items()}
    curves, marks = plot(tables, failed).axes
    assert [bars.get_label() for bars in curves.containers] == ["mgm"]
    assert [text.get_text() for text in marks.texts] == ["failed", "67.0 ± 2.6"]
    nothing = plot(tables, {name: RunResult() for name in outcomes}).axes[0]
    assert [text.get_text() for text in nothing.texts] == ["not run"] * 4
    assert nothing.get_title() == "curves\nno finished run"


def test_the_plot_says_of_how_many_runs_and_videos(tables: list[Table], outcomes: dict[str, RunResult]) -> None:
    curves = plot(tables, outcomes).axes[0]
    assert curves.get_title() == "curves\nmean ± std, n = 3 (seeds 0, 1, 2), 5 test videos"
    some = {name: RunResult() if "tube" in name and name.endswith("seed=2") else one for name, one in outcomes.items()}
    assert plot(tables, some).axes[1].get_title().startswith("marks\nmean ± std, n = 2 to 3 (seeds 0, 1, 2)")
    single = {name: one if name.endswith("seed=1") else RunResult() for name, one in outcomes.items()}
    assert plot(tables, single).axes[1].get_title() == "marks\nn = 1 (seed 1), 5 test videos"

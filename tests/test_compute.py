"""The compute that is written in the recipes' heads and in docs/paper-tables.md is the calculated one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mgm_train.config import PretrainConfig
from mgm_train.models.flops import finetune_flops, pretrain_flops

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

import compute  # noqa: E402


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    """pipelines/bench/cost.py."""
    spec = importlib.util.spec_from_file_location("bench_cost", PIPELINES / "bench" / "cost.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_written_numbers_are_the_calculated_ones() -> None:
    assert [file.name for file, _ in compute.outdated()] == [], "run `python pipelines/compute.py --write`"


def test_a_wrong_number_is_found_and_mended() -> None:
    page = compute.TABLES.read_text()
    assert page.count("| 71.6 | 55.0 | 2.47 |") == 1
    wrong = page.replace("| 71.6 | 55.0 | 2.47 |", "| 71.6 | 55.0 | 2.40 |")
    assert compute.with_columns(wrong) == page
    without = "\n".join(line.rsplit("|", 3)[0] + "|" if line.startswith("|") else line for line in page.split("\n"))
    assert compute.with_columns(without) == page, "columns that are missing are added"


def test_no_setting_of_a_recipe_is_lost_without_an_empty_line(tmp_path: Path) -> None:
    text = (PIPELINES / "demo.yaml").read_text()
    head, rest = text.split("\n\n", 1)
    (tmp_path / "demo.yaml").write_text(f"{head}\n{rest}")
    assert compute.with_line(tmp_path / "demo.yaml") == text


def test_rows_by_hand() -> None:
    """Steps of MGM and VideoMAE as the test of flops.py has them, put together by hand."""
    shape = compute.VIDEOMAE.shape
    mgm, videomae = pretrain_flops(shape, 8 * 147), pretrain_flops(shape, 8 * 176)
    tuned = finetune_flops(shape, 400)
    rows = [line for line in compute.TABLES.read_text().splitlines() if line.startswith("|")]
    (longest,) = [row for row in rows if "| ssv2-2400 |" in row]
    assert longest.endswith(f"| {2400 * mgm / (800 * videomae):.2f} |")
    fine_tuned = {row for row in rows if "| k400-800-ft |" in row}
    # On SSv2, on Kinetics-400 and on AVA.
    assert len(fine_tuned) == 3
    for row in fine_tuned:
        assert row.endswith(f"| {(800 * mgm + 75 * 2 * tuned) / (800 * videomae):.2f} |")
    (scratch,) = [row for row in rows if "| k400 | k400_scratch |" in row]
    assert scratch.endswith(f"| {200 * 2 * tuned / (800 * videomae):.2f} |")
    head = (PIPELINES / "k400.yaml").read_text().split("\n\n")[0]
    assert "55 GMAC a clip, 1.65 ×; fine-tuning 180 GMAC a clip" in " ".join(head.replace("\n#", "").split())
    assert compute.gmacs(compute.VIDEOMAE) == pytest.approx(33.4, abs=0.05)


def test_the_page_of_costs_has_the_calculated_numbers(cost: ModuleType) -> None:
    """The rows of both tables of docs/cost.md, and of the results; the measured columns are what was measured."""
    for file, models in (
        (PIPELINES.parent / "docs" / "cost.md", ("vit_base", "vit_small")),
        (PIPELINES / "bench" / "RESULTS.md", ("vit_small",)),
    ):
        lines = file.read_text().splitlines()
        for model in models:
            configs = {name: PretrainConfig(**row | {"model": model}) for name, row in cost.ROWS.items()}
            for name, config in configs.items():
                calculated = " | ".join([name, *cost.calculated_row(config, configs[cost.MGM])])
                assert len([line for line in lines if line.startswith(f"| {calculated} |")]) == 1, (file, calculated)

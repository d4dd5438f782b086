"""The compute that is written in the recipes' heads and in docs/paper-tables.md is the calculated one."""

import sys
from pathlib import Path

import pytest

from mgm_train.models.flops import finetune_flops, pretrain_flops

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

import compute  # noqa: E402


def test_the_written_numbers_are_the_calculated_ones() -> None:
    assert [file.name for file, _ in compute.outdated()] == [], "run `python pipelines/compute.py --write`"


def test_a_wrong_number_is_found_and_mended() -> None:
    page = compute.TABLES.read_text()
    assert page.count("| 71.6 | 55.0 | 2.47 |") == 1
    wrong = page.replace("| 71.6 | 55.0 | 2.47 |", "| 71.6 | 55.0 | 2.40 |")
    assert compute.with_columns(wrong) == page
    without = "\n".join(line.rsplit("|", 3)[0] + "|" if line.startswith("|") else line for line in page.split("\n"))
    assert compute.with_columns(without) == page, "columns that are missing are added"


def test_rows_by_hand() -> None:
    """Steps of MGM and VideoMAE as the test of flops.py has them, put together by hand."""
    shape = compute.VIDEOMAE.shape
    mgm, videomae = pretrain_flops(shape, 8 * 147), pretrain_flops(shape, 8 * 176)
    tuned = finetune_flops(shape, 400)
    rows = [line for line in compute.TABLES.read_text().splitlines() if line.startswith("|")]
    (longest,) = [row for row in rows if "| ssv2-2400 |" in row]
    assert longest.endswith(f"| {2400 * mgm / (800 * videomae):.2f} |")
    fine_tuned = {row for row in rows if "| k400-800-ft |" in row}
    assert len(fine_tuned) == 2
    for row in fine_tuned:
        assert row.endswith(f"| {(800 * mgm + 75 * 2 * tuned) / (800 * videomae):.2f} |")
    (scratch,) = [row for row in rows if "| k400 | k400_scratch |" in row]
    assert scratch.endswith(f"| {200 * 2 * tuned / (800 * videomae):.2f} |")
    head = (PIPELINES / "k400.yaml").read_text().split("\n\n")[0]
    assert "55 GMAC a clip, 1.65 ×; fine-tuning 180 GMAC a clip" in " ".join(head.replace("\n#", "").split())
    assert compute.gmacs(compute.VIDEOMAE) == pytest.approx(33.4, abs=0.05)

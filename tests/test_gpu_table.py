"""The table of gpu.sh, from results written by hand, and the script itself on a CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

BENCH = Path(__file__).resolve().parents[1] / "pipelines" / "bench"
sys.path.insert(0, str(BENCH))
import gpu_table  # noqa: E402


def step(clips_per_s: float, **about: Any) -> dict[str, Any]:
    about = {"model": "vit_base", "ratio": 0.75, "precision": "bf16", "batch_size": 64, "compiled": "default"} | about
    ours = {"ms": 1.0, "clips_per_s": clips_per_s, "mfu": 0.4, "ours_is_faster": 1.0}
    return {"line": "step", "case": "some step", "about": about, "sides": {"ours": ours}}


def run(folder: Path, speeds: list[float]) -> None:
    folder.mkdir(parents=True)
    rows = [{"clips_per_s": speed, "mfu": speed / 1000, "data_wait": 0.01, "gpu_memory_gib": 20.0} for speed in speeds]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"val_top1": 0.1}]))


def test_the_default_follows_the_measurement(tmp_path: Path) -> None:
    """3 % are noise, more is a reason; what was not measured changes nothing."""
    lines = [step(1000), step(700, compiled=""), step(1020, compiled="reduce-overhead"), step(1200, precision="fp16")]
    lines += [step(5000, model="vit_small"), step(4000, ratio=0.9, precision="fp32")]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # The first quarter, which compiles, does not count.
    run(tmp_path / "run-pretrain-jpeg-cpu", [1, 500, 500, 500])
    run(tmp_path / "run-pretrain-jpeg-cuda", [1, 600, 600, 600])
    run(tmp_path / "run-pretrain-jpeg-hybrid", [1, 650, 650, 650])
    run(tmp_path / "run-finetune-cpu", [300, 300])
    (tmp_path / "parts.txt").write_text("- not measured: finetune-cuda, exit code 1\n")
    printed = CliRunner().invoke(gpu_table.main, [str(tmp_path)]).output
    wanted = {
        "--decode-on": "**hybrid**, which is 30% faster than cpu",
        "--augment-on": "cpu, as it is: nothing to compare",
        "--compile": "on, as it is",
        "--compile-mode": "default, as it is",
        "--precision": "**fp16**, which is 20% faster than bf16",
    }
    for option, default in wanted.items():
        (row,) = re.findall(rf"^\| {option} \| (.*) \|$", printed, re.MULTILINE)
        assert row.endswith(f"| {default}"), option
    assert "cpu 500, cuda 600, hybrid 650 clips/s" in printed
    assert "fp32 not measured" in printed
    assert "| MFU, pretrain-jpeg-hybrid | 65.0% | ≥ 45 % |" in printed
    assert printed.endswith("- not measured: finetune-cuda, exit code 1\n")


@pytest.mark.slow
def test_the_dry_run_measures_every_line(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    command = [str(BENCH / "gpu.sh"), "--dry-run", "--out", str(tmp_path / "out"), "--wheels", str(tmp_path / "none")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not measured:" not in done.stdout
    figures = "|".join(re.findall(r"^\| ([^|]*) \|", done.stdout, re.MULTILINE))
    for wanted in (
        "bf16 matrix product",
        "a JPEG of",
        "loader alone, pretraining, decoded on cpu",
        "loader alone, pretraining, decoded on cuda",
        "loader alone, pretraining, decoded on hybrid",
        "loader alone, fine-tuning, decoded on cpu, augmented on cpu",
        "loader alone, fine-tuning, decoded on cpu, augmented on cuda",
        "loader alone, fine-tuning, decoded on cuda, augmented on cuda",
        "MFU, pretrain-jpeg-cpu",
        "MFU, pretrain-jpeg-cuda",
        "MFU, pretrain-jpeg-hybrid",
        "MFU, pretrain-planes-cpu",
        "MFU, finetune-cpu",
        "MFU, finetune-cuda",
        "test of 5×3 views",
        "bf16 · batch 2 · eager",
        "fp16 · batch 2 · eager",
        "fp32 · batch 2 · eager",
        "--decode-on",
        "--augment-on",
    ):
        assert wanted in figures, wanted

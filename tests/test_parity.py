"""Sizes S, B and L as they are, here and in transformers, timm and onnxruntime: outputs equal to 1e-4."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).parent.parent / "pipelines" / "bench" / "parity.py"
TOLERANCE = 1e-4
NUM_ROWS = 7


@pytest.mark.slow
@pytest.mark.parametrize("size", ["vit_tiny", "vit_small", "vit_base", "vit_large"])
def test_a_size_is_the_same_elsewhere(size: str) -> None:
    clips = ["--num-frames", "4", "--image-px", "32"]
    result = subprocess.run(
        [sys.executable, SCRIPT, "--size", size, *clips], check=True, capture_output=True, text=True
    )
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith(f"| {size}")]
    assert len(rows) == NUM_ROWS
    for _, what, difference, std in rows:
        assert float(difference) < TOLERANCE, what
        assert float(std) > 0.1, what

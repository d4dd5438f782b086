"""The grids `small.yaml` and `full.yaml`, with the stores that were made, run table by table by `mgm_train.ablate`."""

import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from mgm_shared.files import replace_text
from mgm_shared.json_text import to_json
from mgm_shared.progress import SILENT, Progress
from mgm_train import ablate

HERE = Path(__file__).parent


def write_grid(name: str, out: Path, stores: Mapping[str, Path], changes: Mapping[str, Any]) -> Path:
    """The grid `name`.yaml with the paths of the stores, and with other settings where `changes` has them."""
    grid = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    grid["stores"] = {store: str(path.absolute()) for store, path in stores.items()}
    grid["settings"] |= changes.get("settings", {})
    grid |= {key: value for key, value in changes.items() if key != "settings"}
    file = out / f"{name}.yaml"
    replace_text(file, yaml.safe_dump(grid, sort_keys=False))
    return file


def run_grid(grid: Path, store: Path, out: Path, gpus: int = 1, progress: Progress = SILENT) -> list[dict[str, Any]]:
    """Run the tables of a grid in their order; after each one, write `rows.json` beside the grid. Returns its rows."""
    rows: list[dict[str, Any]] = []
    for table in yaml.safe_load(grid.read_text())["tables"]:
        result = ablate(grid, store, out, tables=[table], gpus=gpus, progress=progress)
        rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
        replace_text(grid.with_suffix(".rows.json"), to_json({"made": about(), "rows": rows}, indent=1) + "\n")
        if result.is_stopped:
            break
    return rows


def about(run: Callable[..., Any] = subprocess.run) -> dict[str, str]:
    """The commit, the processor or GPU, and the version of torch."""
    done = run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"commit": done.stdout.strip(), "device": device, "torch": torch.__version__}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()

"""The grids `small.yaml` and `full.yaml`, with the stores that were made, run table by table by `mgm_train.ablate`."""

import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mgm_shared.files import replace_text
from mgm_shared.json_text import to_json
from mgm_shared.progress import SILENT, Progress
from mgm_train import ablate

HERE = Path(__file__).parent


# A grid of this size takes minutes on a CPU and shows that every row runs. It measures nothing.
TOY: dict[str, Any] = {
    **{"model": "vit_tiny", "num_frames": 4, "image_px": 32, "stride": 2, "num_workers": 0},
    **{"pretrain.warmup_epochs": 0, "finetune.warmup_epochs": 0, "pretrain.batch_size": 2, "finetune.batch_size": 2},
    **{"pretrain.epochs": 1, "finetune.epochs": 1, "probe.epochs": 1, "probe.held_out": 0.5},
}


def write_grid(
    name: str,
    out: Path,
    seed: int,
    *,
    stores: Mapping[str, Path],
    boxes: Path | None = None,
    is_dry_run: bool = False,
) -> Path:
    """The grid `name`.yaml for one seed, with the paths of the stores to pretrain on and of the folder of boxes."""
    grid = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    grid["stores"] = {store: str(path.absolute()) for store, path in stores.items()}
    grid["seeds"] = [seed]
    if is_dry_run:
        grid["settings"] |= TOY
    for varied in _labelled_settings(grid["tables"]):
        if varied.get("guidance") == "boxes":
            varied["boxes"] = str(boxes)
        if is_dry_run:
            varied.update({key: 1 for key in varied if key.endswith(".epochs")})
            varied.update({key: 0 for key in varied if key.endswith(".warmup_epochs")})
            # A schedule needs several epochs.
            for key in [key for key, value in varied.items() if "@" in str(value)]:
                varied[key] = TOY[key.split(".")[-1]]
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}-{seed}.yaml"
    replace_text(file, yaml.safe_dump(grid, sort_keys=False))
    return file


def _labelled_settings(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The settings of each label that sets several options."""
    for axis in [axis for table in tables.values() for axis in table.values() if isinstance(axis, dict)]:
        yield from (settings for settings in axis.values() if isinstance(settings, dict))


def run_grids(
    grids: Mapping[int, Path],
    store: Path,
    out: Path,
    *,
    tables: Sequence[str] = (),
    gpus: int = 1,
    progress: Progress = SILENT,
) -> list[dict[str, Any]]:
    """Run the grids of several seeds table by table, each in a folder of its own; return the rows that are finished.

    All seeds of a table come before the next table. Programs with different seeds can share `out`.
    """
    for table in tables or list(yaml.safe_load(next(iter(grids.values())).read_text())["tables"]):
        for seed, grid in grids.items():
            result = ablate(grid, store, out / f"seed-{seed}", tables=[table], gpus=gpus, progress=progress)
            collect_rows(out)
            if result.is_stopped:
                raise KeyboardInterrupt
    return collect_rows(out)


def collect_rows(out: Path) -> list[dict[str, Any]]:
    """The finished runs of all seeds, in the order of the tables; also written to OUT/rows.json with where they ran."""
    lines = [line for file in sorted(out.glob("seed-*/rows.jsonl")) for line in file.read_text().splitlines()]
    rows = sorted(map(json.loads, lines), key=lambda row: (row["table"], row["seed"]))
    replace_text(out / "rows.json", to_json({"made": about(), "rows": rows}, indent=1) + "\n")
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

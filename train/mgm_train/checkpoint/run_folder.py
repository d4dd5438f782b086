"""The folder of a run: its options, metrics, weights, and the state to continue from.

    RUN/config.yaml                           all options, under the name of the task
    RUN/environment.json                      versions and machine
    RUN/metrics.jsonl                         one line per log interval
    RUN/checkpoints/last.pt                   everything needed to continue
    RUN/checkpoints/epoch-0050.safetensors    weights, with the model's configuration in the file's metadata

Every file but metrics.jsonl is written beside its place, flushed to the disk and renamed: a killed run leaves
whole files only. No file is loaded as a pickle of anything but tensors and plain values.
"""

import errno
import json
import os
import platform
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
import yaml

from mgm_shared.config import Config
from mgm_shared.errors import UserError
from mgm_shared.files import append_line, replace_file, replace_text
from mgm_shared.json_text import to_json


@dataclass(frozen=True)
class RunFolder:
    """The paths and the small files of a run."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    def weights(self, epoch: int) -> Path:
        """Weights after `epoch` whole epochs."""
        return self.checkpoints / f"epoch-{epoch:04d}.safetensors"

    @property
    def task(self) -> str:
        """The task that config.yaml names; empty where there is none."""
        try:
            (task,) = yaml.safe_load((self.root / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, TypeError, ValueError, yaml.YAMLError):
            return ""
        return str(task)

    def command(self, task: str) -> str:
        """The command that continues the run, as far as its folder says."""
        try:
            about = json.loads((self.root / "environment.json").read_text(encoding="utf-8"))
            store = str(about.get("store_path") or "STORE")
        except (OSError, ValueError, AttributeError):
            store = "STORE"
        run, config = (shlex.quote(str(path)) for path in (self.root, self.root / "config.yaml"))
        return f"mgm-train {task or 'TASK'} {shlex.quote(store)} --run {run} --config {config}"

    def start(self, task: str, config: Config, about: Mapping[str, object]) -> None:
        """Make the folder and write config.yaml and environment.json, which `about` joins."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in self.checkpoints.glob(".*.part"):
            left_by_a_kill.unlink()
        text = yaml.safe_dump({task: config.to_dict()}, sort_keys=False)
        replace_text(self.root / "config.yaml", text)
        environment = to_json(describe_environment() | dict(about), indent=2) + "\n"
        replace_text(self.root / "environment.json", environment)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut off by a kill is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append_metrics(self, row: Mapping[str, object]) -> None:
        append_line(self.metrics, to_json(row))

    def cut_metrics(self, num_steps: int) -> None:
        """Drop the rows after `num_steps` steps: going on from there writes them anew."""
        rows = [row for row in self.read_metrics() if row["step"] <= num_steps]
        replace_text(self.metrics, "".join(to_json(row) + "\n" for row in rows))


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_config(root: Path, task: str, kind: type[AnyConfig]) -> AnyConfig:
    """The settings of a run, from its config.yaml. UserError when it is no run of that task."""
    try:
        values = yaml.safe_load((root / "config.yaml").read_text())[task]
    except (OSError, KeyError, TypeError):
        raise UserError(f"{root} is not the folder of a {task} run") from None
    return kind(**values)


def recorded_options(root: Path, task: str) -> dict[str, Any]:
    """The options of an earlier start in a run folder; empty where there was none."""
    try:
        values = yaml.safe_load((root / "config.yaml").read_text())[task]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return {}
    return dict(values) if isinstance(values, dict) else {}


def describe_environment() -> dict[str, object]:
    """Versions and machine, for environment.json."""
    packages = ("mgm", "torch", "timm", "numpy", "zarr", "safetensors")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages} | {"opencv": cv2.__version__},
        "gpus": gpus,
        "num_cpus": os.cpu_count(),
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save_last(run: RunFolder, state: Mapping[str, Any]) -> None:
    """Replace last.pt; `state` holds tensors, plain values, lists and dicts of them."""

    def write(beside: Path) -> None:
        # Given a path, PyTorch writes by itself, and does not say what failed.
        with beside.open("wb") as file:
            torch.save(dict(state), file)

    replace_file(run.last, write)


def load_last(run: RunFolder) -> dict[str, Any] | None:
    """What `save_last` wrote, on the CPU; None when there is nothing to go on from.

    UserError when it is damaged or something else. PyTorch writes a CRC-32 of each tensor, and does not check it.
    """
    if not run.last.exists():
        return None
    try:
        with zipfile.ZipFile(run.last) as parts:
            damaged = parts.testzip()
        state = None if damaged else torch.load(run.last, map_location="cpu", weights_only=True)
    except OSError as error:
        # A place before the beginning of the file, from a damaged list of its parts.
        if error.errno != errno.EINVAL:
            raise
        raise _no_checkpoint(run.last) from error
    except Exception as error:
        # A file that is no checkpoint can fail anywhere in the unpickler.
        raise _no_checkpoint(run.last) from error
    if not isinstance(state, dict):
        raise _no_checkpoint(run.last)
    return state


def _no_checkpoint(path: Path) -> UserError:
    return UserError(
        f"{path} cannot be read: it is damaged, or no checkpoint; move it away to start from the beginning"
    )

"""A run's folder: what was asked for, what was measured, the weights, and where to go on.

    RUN/config.yaml                           the resolved settings, under the name of the task
    RUN/environment.json                      versions and machine
    RUN/metrics.jsonl                         one line a log interval
    RUN/checkpoints/last.pt                   everything needed to go on
    RUN/checkpoints/epoch-0050.safetensors    weights, with the model's configuration in the file's metadata

Every file but metrics.jsonl is written beside its place, flushed to the disk and renamed: a killed run leaves
whole files only. No file is loaded as a pickle of anything but tensors and plain values.
"""

import hashlib
import json
import os
import pickle
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgm_shared.config import Config, to_dict
from mgm_shared.errors import UserError
from mgm_shared.files import replace_file
from mgm_train.config import ModelConfig, TrainConfig
from mgm_train.model import TRUNK_PREFIX, VideoClassifier

# These may change when a run goes on: they move work around, or change how often something is written.
FREE_SETTINGS = {
    "accumulate",
    "num_workers",
    "max_bad_clips",
    "device",
    "compile",
    "recompute",
    "fsdp",
    "worker_start",
    "save_every_epochs",
    "log_every_steps",
}
# So may these, which fine-tuning alone has.
FREE_IN_FINETUNING = {"eval_every_epochs", "eval_split"}
# These decide the shape of the encoder; the decoder's do not outlive pretraining.
TRUNK_SETTINGS = ("name", "width", "depth", "num_heads", "attention")
# The norm of the pooled token, which a fine-tuned model passes on to the next one; the head belongs to its classes.
POOLED_NORM_PREFIX = "fc_norm."


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, and its small files."""

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

    def start(self, task: str, config: Config, about: Mapping[str, object]) -> None:
        """Make the folder and write config.yaml and environment.json, which `about` joins."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in self.checkpoints.glob(".*.part"):
            left_by_a_kill.unlink()
        text = yaml.safe_dump({task: to_dict(config)}, sort_keys=False)
        replace_file(self.root / "config.yaml", lambda path: path.write_text(text))
        environment = json.dumps(describe_environment() | dict(about), indent=2) + "\n"
        replace_file(self.root / "environment.json", lambda path: path.write_text(environment))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut off by a kill is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append_metrics(self, row: Mapping[str, object]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def cut_metrics(self, num_steps: int) -> None:
        """Drop the rows after `num_steps` steps: going on from there writes them anew."""
        rows = [row for row in self.read_metrics() if row["step"] <= num_steps]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        replace_file(self.metrics, lambda path: path.write_text(text))


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_config(root: Path, task: str, kind: type[AnyConfig]) -> AnyConfig:
    """The settings of a run, from its config.yaml. UserError when it is no run of that task."""
    try:
        values = yaml.safe_load((root / "config.yaml").read_text())[task]
    except (OSError, KeyError, TypeError):
        raise UserError(f"{root} is not the folder of a {task} run") from None
    return kind.from_dict(values)


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
    replace_file(run.last, lambda path: torch.save(dict(state), path))


def load_last(run: RunFolder) -> dict[str, Any] | None:
    """What `save_last` wrote, on the CPU; None when there is nothing to go on from. UserError if it cannot be read."""
    if not run.last.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(run.last, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{run.last} cannot be read; move it away to start from the beginning") from error
    return state


def check_resumable(run: RunFolder, state: Mapping[str, Any], task: str, config: TrainConfig, store: str) -> None:
    """UserError unless a run that stopped with `state` may go on with these settings; it names what differs."""
    saved = {"task": state["task"], "store": state["position"]["store"]} | state["config"]
    asked = {"task": task, "store": store} | to_dict(config)
    differing = [
        f"{name.replace('_', '-')} was {saved.get(name)!r} and is now {asked.get(name)!r}"
        for name in sorted((saved.keys() | asked.keys()) - FREE_SETTINGS - FREE_IN_FINETUNING)
        if saved.get(name) != asked.get(name)
    ]
    if differing:
        raise UserError(f"{run.root} was begun with other settings: {'; '.join(differing)}; take another run folder")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A weights file: tensors by name, the model they belong to, and free text metadata (task, epoch, labels…)."""

    path: Path
    state: dict[str, Tensor]
    model: ModelConfig
    metadata: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def classes(self) -> list[str]:
        """The names of a classifier's classes, in order. UserError when it is none."""
        if "labels" not in self.metadata:
            raise UserError(f"{self.path} holds no classifier; give the run of `mgm-train finetune`")
        names: list[str] = json.loads(self.metadata["labels"])
        return names

    @property
    def folder(self) -> Path:
        """Where what belongs to these weights goes: their run's folder, or the one they lie in."""
        parent = self.path.parent
        return parent.parent if parent == RunFolder(parent.parent).checkpoints else parent


def save_weights(path: Path, state: Mapping[str, Tensor], config: ModelConfig, metadata: Mapping[str, str]) -> None:
    """Write a model's state dict as safetensors with its configuration in the metadata."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    texts = {"format": "pt", "mgm_model": json.dumps(asdict(config)), **metadata}
    replace_file(path, lambda beside: save_file(state, beside, metadata=texts))


def find_weights(path: Path) -> Path:
    """`path` itself, or of a run folder its latest epoch-XXXX.safetensors. UserError when there is none."""
    if path.is_file():
        return path
    found = sorted(RunFolder(path).checkpoints.glob("epoch-*.safetensors"))
    if not found:
        raise UserError(f"{path} is neither a weights file nor a run folder with checkpoints/epoch-*.safetensors")
    return found[-1]


def load_weights(path: Path) -> Weights:
    """Read a weights file, or a run folder's latest. UserError if it is none, or none of ours."""
    path = find_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file; give an epoch-XXXX.safetensors or a run folder") from error
    if "mgm_model" not in metadata:
        raise UserError(f"{path} does not say which model it holds; it was not written by mgm-train")
    model = ModelConfig(**json.loads(metadata["mgm_model"]))
    return Weights(path=path, state=state, model=model, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrunkAccount:
    """What became of each tensor when a trunk was loaded. `str()` says it in one line."""

    used: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    positions: str = ""

    def __str__(self) -> str:
        new, dropped = _modules(self.new), _modules(self.dropped)
        return f"{len(self.used)} pretrained tensors used; new: {new}; not needed: {dropped}{self.positions}"


def _modules(names: Iterable[str]) -> str:
    """The modules that the tensors belong to; of the trunk, the parts."""
    modules = {".".join(name.split(".")[:2]) if name.startswith(TRUNK_PREFIX) else name.split(".")[0] for name in names}
    return ", ".join(sorted(modules)) or "none"


def fitted(config: ModelConfig, weights: Weights) -> ModelConfig:
    """`config` for a model that takes over the trunk of `weights`, positions included; its clips may have another size.

    UserError when the file holds another trunk.
    """
    differing = [
        f"{name.replace('_', '-')} {getattr(weights.model, name)} instead of {getattr(config, name)}"
        for name in TRUNK_SETTINGS
        if getattr(weights.model, name) != getattr(config, name)
    ]
    if differing:
        raise UserError(f"{weights.path} holds another model: {', '.join(differing)}")
    return config.after(weights.model)


def load_trunk(model: VideoClassifier, weights: Weights) -> TrunkAccount:
    """Load the encoder of a weights file into `model`, which `fitted` shaped for it.

    Strict: every tensor of the model's trunk must be in the file, in its shape. The file's last encoder norm and
    its decoder are not needed by a classifier, and the head of another one neither. UserError when a tensor is missing.
    """
    if model.config != fitted(model.config, weights):
        raise ValueError(f"the model's positions are not those of {weights.path}: build it with `fitted`")
    own = model.state_dict()
    trunk = {name for name in own if name.startswith(TRUNK_PREFIX)}
    missing = sorted(trunk - weights.state.keys())
    if missing:
        raise UserError(f"{weights.path} lacks {len(missing)} tensors of the encoder, the first is {missing[0]}")
    taken = trunk | {name for name in own.keys() & weights.state.keys() if name.startswith(POOLED_NORM_PREFIX)}
    model.load_state_dict(own | {name: weights.state[name] for name in taken}, strict=True)
    return TrunkAccount(
        used=tuple(sorted(taken)),
        new=tuple(sorted(own.keys() - taken)),
        dropped=tuple(sorted(weights.state.keys() - taken)),
        positions=_positions(model.config),
    )


def _positions(config: ModelConfig) -> str:
    """What became of the positions, where anything did."""
    if config.grid == config.trained_grid:
        return ""
    trained, own = ((config.trained_frames, config.trained_px), (config.num_frames, config.image_px))
    clips = " to ".join(f"{frames}×{side_px}² px" for frames, side_px in (trained, own))
    return f"; positions interpolated from clips of {clips}"

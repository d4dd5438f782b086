"""Weights files: safetensors with the configuration of the model in their metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.checkpoint.completeness import check_complete, check_finite
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.tensor_file import load_tensors, save_tensors
from mgm_train.model_config import ModelConfig

# The metadata of a weights file of ours has the model's configuration under this name.
MODEL_KEY = "mgm_model"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A weights file: tensors by name, the configuration of their model, and text metadata (task, epoch, labels…)."""

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
        """The class names of a classifier, in order. UserError if the file holds no classifier."""
        if "labels" not in self.metadata:
            raise UserError(f"{self.path} holds no classifier; give the run of `mgm-train finetune`")
        names: list[str] = json.loads(self.metadata["labels"])
        return names

    @property
    def folder(self) -> Path:
        """The folder for results of these weights: their run folder, or the folder of the file."""
        parent = self.path.parent
        return parent.parent if parent == RunFolder(parent.parent).checkpoints else parent


def save_weights(path: Path, state: Mapping[str, Tensor], config: ModelConfig, metadata: Mapping[str, str]) -> None:
    """Write a model's state dict as safetensors with its configuration in the metadata.

    UserError when a number in it is not finite; an earlier file is then left as it is.
    """
    check_finite(str(path), state)
    save_tensors(path, state, {MODEL_KEY: json.dumps(asdict(config)), **metadata})


def find_weights(path: Path) -> Path:
    """`path` itself, or the latest epoch-XXXX.safetensors of a run folder. UserError if there is none."""
    if path.is_file():
        return path
    run = RunFolder(path)
    if found := sorted(run.checkpoints.glob("epoch-*.safetensors"), key=_epoch):
        return found[-1]
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; nothing is downloaded")
    # The folder of a recipe has a config.yaml too.
    task = run.task if run.checkpoints.is_dir() else ""
    if run.last.is_file() or task not in ("", "probe"):
        raise UserError(f"{path} is unfinished and has no weights yet; go on with `{run.command(task)}`")
    if run.task == "probe":
        raise UserError(f"{path} is the folder of a probe, which has no weights; give the run that it tested")
    raise UserError(f"{path} is neither a weights file nor a run folder with checkpoints/epoch-*.safetensors")


def _epoch(path: Path) -> int:
    """The number in `epoch-XXXX.safetensors`, −1 for another file; as text, epoch-9950 comes after epoch-10000."""
    number = path.stem.removeprefix("epoch-")
    return int(number) if number.isdecimal() else -1


def load_weights(path: Path) -> Weights:
    """Read a weights file, or the latest one of a run folder. UserError if it is not from mgm-train or is damaged."""
    path = find_weights(path)
    file = load_tensors(path)
    if MODEL_KEY not in file.metadata:
        raise UserError(f"{path} does not say which model it holds; it was not written by mgm-train")
    try:
        model = ModelConfig(**json.loads(file.metadata[MODEL_KEY]))
    except (TypeError, ValueError):
        raise UserError(f"{path} holds a model of another version of mgm-train") from None
    check_finite(str(path), file.tensors)
    check_complete(str(path), file.tensors, model)
    return Weights(path=path, state=file.tensors, model=model, metadata=file.metadata)

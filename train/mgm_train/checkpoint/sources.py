"""Weights of any source: our runs and files, folders of transformers, checkpoints of the VideoMAE programs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.checkpoint.foreign import HEAD_WEIGHT, Clip, check_complete, shape_of, without_positions
from mgm_train.checkpoint.official import official_names, read_official
from mgm_train.checkpoint.tensor_file import load_tensors
from mgm_train.checkpoint.transformers import clip_of, from_transformers_state
from mgm_train.checkpoint.weights import Weights, load_weights

CONFIG = "config.json"
PICKLES = {".pth", ".pt", ".bin", ".tar"}


def load_source(source: str | os.PathLike[str]) -> Weights:
    """Read weights of our own or of another program; their model is read from the tensors.

    Args:
        source: A run folder; a weights file of mgm-train; a folder that transformers saved (VideoMAEForPreTraining,
            VideoMAEForVideoClassification, VideoMAEModel); a checkpoint of VideoMAE or VideoMAEv2 (.pth).

    Raises:
        UserError: There is nothing to read, the file is damaged or could run code, or its tensors are not those of
            the model that their shapes suggest; then all that differ are listed.
    """
    path = Path(source)
    if (path / CONFIG).is_file():
        return _of_transformers(path)
    if path.is_file() and path.suffix in PICKLES:
        return _foreign(path, *read_official(path), {})
    if path.is_file() and path.suffix == ".safetensors" and "mgm_model" not in (file := load_tensors(path)).metadata:
        if (path.parent / CONFIG).is_file():
            return _of_transformers(path.parent)
        return _foreign(path, official_names(file.tensors), Clip(), {})
    return load_weights(path)


def _of_transformers(folder: Path) -> Weights:
    settings = _settings(folder / CONFIG)
    if settings.get("model_type") != "videomae":
        raise UserError(f"{folder} holds a model of type {settings.get('model_type')!r}, not videomae")
    path, state = _tensors(folder)
    labels = {int(number): name for number, name in settings.get("id2label", {}).items()}
    return _foreign(path, from_transformers_state(state), clip_of(settings), labels)


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _tensors(folder: Path) -> tuple[Path, Mapping[str, Tensor]]:
    """The first file of weights, and the tensors of all."""
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        state = {name: tensor for file in files for name, tensor in load_tensors(file).tensors.items()}
        return files[0], state
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file():
        raise UserError(f"{pickled} is a pickle; save the model again with transformers, as safetensors")
    raise UserError(f"{folder} has a {CONFIG} but no model.safetensors")


def _foreign(path: Path, state: Mapping[str, Tensor], clip: Clip, labels: Mapping[int, str]) -> Weights:
    model = shape_of(str(path), state, clip)
    kept = without_positions(str(path), state, model)
    check_complete(str(path), kept, model)
    metadata: dict[str, str] = {}
    if HEAD_WEIGHT in kept:
        names = [labels.get(number, f"class {number}") for number in range(len(kept[HEAD_WEIGHT]))]
        metadata["labels"] = json.dumps(names)
    state = {name: tensor.float() for name, tensor in kept.items()}
    return Weights(path=path, state=state, model=model, metadata=metadata)

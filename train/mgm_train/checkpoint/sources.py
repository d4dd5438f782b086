"""Weights of any source: our runs and files, folders of transformers, checkpoints of the VideoMAE programs."""

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.checkpoint.completeness import HEAD_WEIGHT, check_complete, check_finite, holds_detector
from mgm_train.checkpoint.foreign import Clip, shape_of, without_positions
from mgm_train.checkpoint.official import official_names, read_official, read_pickle
from mgm_train.checkpoint.tensor_file import load_tensors
from mgm_train.checkpoint.transformers import clip_of, from_transformers_state
from mgm_train.checkpoint.weights import MODEL_KEY, Weights, load_weights
from mgm_train.model_config import MODEL_SIZES, ModelConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PICKLES = {".pth", ".pt", ".bin", ".tar", ".ckpt", ".pyth"}
# A zip archive, or an older pickle: what torch.save writes. Safetensors have a JSON object after a length of 8 bytes.
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
HEADER_AT = 8


def load_source(source: str | os.PathLike[str]) -> Weights:
    """Read weights of our own or of another program; their model is read from the tensors.

    Args:
        source: A run folder; a weights file of mgm-train; a folder of `mgm-train export`; a folder that transformers
            saved (VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel); a checkpoint of VideoMAE or
            VideoMAEv2 (.pth).

    Raises:
        UserError: There is nothing to read, the file is damaged or could run code, or its tensors are not those of
            the model that their shapes suggest; then all that differ are listed.
    """
    path = Path(source)
    if (path / CONFIG).is_file():
        return _of_config(path)
    if (path / WEIGHTS).is_file():
        return load_source(path / WEIGHTS)
    if not path.is_file():
        return load_weights(path)
    if _is_pickle(path):
        return _foreign(path, *read_official(path), {})
    file = load_tensors(path)
    if MODEL_KEY in file.metadata:
        return load_weights(path)
    if (path.parent / CONFIG).is_file():
        return _of_config(path.parent)
    return _foreign(path, official_names(file.tensors), Clip(), {})


def _is_pickle(path: Path) -> bool:
    """By the first bytes, since any name is possible; by the name where they are those of neither format."""
    with path.open("rb") as file:
        start = file.read(HEADER_AT + 1)
    if not start:
        raise UserError(f"{path} is an empty file")
    if start[HEADER_AT:] == b"{":
        return False
    return start.startswith(PICKLE_STARTS) or path.suffix in PICKLES


def _of_config(folder: Path) -> Weights:
    """A folder of transformers or timm."""
    file = folder / CONFIG
    settings = _settings(file)
    if str(settings.get("architecture", "")).startswith("mgm_"):
        return _of_timm(folder, settings)
    if settings.get("model_type") != "videomae":
        raise UserError(f"{folder} holds a model of type {settings.get('model_type')!r}, not videomae")
    path, state = _tensors(folder)
    return _foreign(path, from_transformers_state(state), clip_of(str(file), settings), _labels(file, settings))


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _labels(file: Path, settings: Mapping[str, Any]) -> dict[int, str]:
    try:
        return {int(number): str(name) for number, name in (settings.get("id2label") or {}).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: id2label must give a name to each class number") from error


def _tensors(folder: Path) -> tuple[Path, Mapping[str, Tensor]]:
    """The first file of weights, and the tensors of all. UserError where a file that the index names is missing."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        whole = folder / f"{stem}{suffix}"
        if whole.is_file():
            files = [whole]
        elif index.is_file():
            files = _shards(index)
        else:
            continue
        read = [load_tensors(file).tensors if suffix == ".safetensors" else _pickled(file) for file in files]
        return files[0], {name: tensor for tensors in read for name, tensor in tensors.items()}
    raise UserError(f"{folder} has a {CONFIG} but no {WEIGHTS}")


def _shards(index: Path) -> list[Path]:
    """The files that an index of transformers names."""
    names = _settings(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()) or not names:
        raise UserError(f"{index} does not say which files hold the tensors")
    files = [index.parent / Path(name).name for name in sorted(set(names.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names")
    return files


def _pickled(file: Path) -> dict[str, Tensor]:
    return {str(name): tensor for name, tensor in read_pickle(file).items() if isinstance(tensor, Tensor)}


def _of_timm(folder: Path, settings: Mapping[str, Any]) -> Weights:
    """A folder of `mgm-train export --to timm`."""
    name = str(settings["architecture"]).removeprefix("mgm_").removesuffix("_patch16_224")
    shape, path = dict(settings.get("model_args") or {}), folder / WEIGHTS
    if name not in MODEL_SIZES:
        raise UserError(f"{folder / CONFIG} names an architecture that there is not: {settings['architecture']}")
    if not path.is_file():
        raise UserError(f"{folder} has a {CONFIG} but no {WEIGHTS}")
    known = {field.name for field in fields(ModelConfig)} - {"name"}
    model = replace(MODEL_SIZES[name], **{key: value for key, value in shape.items() if key in known})
    model = replace(model, image_px=shape.get("img_size", model.image_px))
    state = load_tensors(path).tensors
    labels = dict(enumerate(settings.get("label_names") or []))
    return _checked(path, state, model, labels)


def _foreign(path: Path, state: Mapping[str, Tensor], clip: Clip, labels: Mapping[int, str]) -> Weights:
    # In other programs, a head behind the last norm of the encoder is one for the first token.
    if holds_detector(state):
        raise UserError(f"{path} classifies by its first token; only classifiers of the mean token are supported")
    model = shape_of(str(path), state, clip)
    return _checked(path, without_positions(str(path), state, model), model, labels)


def _checked(path: Path, state: Mapping[str, Tensor], model: ModelConfig, labels: Mapping[int, str]) -> Weights:
    """UserError unless these are all tensors of the model, and finite."""
    check_complete(str(path), state, model)
    check_finite(str(path), state)
    metadata: dict[str, str] = {}
    if HEAD_WEIGHT in state:
        names = [labels.get(number, f"class {number}") for number in range(len(state[HEAD_WEIGHT]))]
        metadata["labels"] = json.dumps(names)
    weights = {name: tensor.float() for name, tensor in state.items()}
    return Weights(path=path, state=weights, model=model, metadata=metadata)

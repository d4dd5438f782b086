"""Write a trained model in the format of another program."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mgm_shared.cli import move_aside
from mgm_shared.errors import UserError
from mgm_shared.progress import SILENT, Progress
from mgm_train.checkpoint.sources import load_source
from mgm_train.config import EXPORT_FORMATS, ExportFormat
from mgm_train.interchange.export_source import ExportSource
from mgm_train.interchange.onnx_file import write_onnx
from mgm_train.interchange.timm_folder import write_timm
from mgm_train.interchange.transformers_folder import write_transformers
from mgm_train.interchange.weights_file import write_safetensors

_WRITERS: dict[str, Callable[[ExportSource, Path], float | None]] = {
    "transformers": write_transformers,
    "safetensors": write_safetensors,
    "timm": write_timm,
    "onnx": write_onnx,
}


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The folder that was written, its files by name with their bytes, and what the model is."""

    folder: Path
    kind: str
    files: dict[str, int]
    max_difference: float | None
    """Of an ONNX export: the largest difference between onnxruntime and torch."""


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: ExportFormat,
    *,
    dataset: str = "",
    license: str = "",
    force: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Write a trained model into a new folder, with a model card.

    Args:
        source: What `load` takes: a run folder, a weights file, a transformers folder, an official checkpoint.
        out: The folder to write. It appears when it is complete.
        to: transformers, safetensors, timm or onnx.
        dataset: Name of the training data, for the model card.
        license: Licence of the weights, for the model card.
        force: Move an existing folder aside.
        progress: Hears what was moved aside.

    Raises:
        UserError: There are no weights, the format cannot hold this model, a library is missing, or `out` exists.
    """
    folder = Path(out)
    if to not in _WRITERS:
        raise UserError(f"there is no format {to!r}; there are: {', '.join(EXPORT_FORMATS)}")
    if folder.exists() and not force:
        raise UserError(f"{folder} exists; take another folder, or --force")
    exported = ExportSource(weights=load_source(source), dataset=dataset, license=license)
    if exported.is_detector and to != "safetensors":
        raise UserError(f"{source} holds a detector of actions, which only --to safetensors can hold")
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        difference = _WRITERS[to](exported, beside)
        if force and (aside := move_aside(folder)):
            progress.say(f"moved the old {folder} to {aside}")
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    return ExportResult(folder=folder, kind=exported.kind, files=files, max_difference=difference)

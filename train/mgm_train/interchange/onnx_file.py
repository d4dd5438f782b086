"""Encoder and classifier as ONNX, for uint8 clips and any batch size, each checked against torch.

    encoder.onnx       frames (B, 3, T, H, W) uint8 → tokens (B, N, D), features (B, D)
    classifier.onnx    frames (B, 3, T, H, W) uint8 → logits (B, K)

The normalisation is part of the graph. Axes: B clips · C colours · T frames · H,W pixels · N tokens · D width · K
classes.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mgm_shared.errors import UserError
from mgm_train.checkpoint.completeness import HEAD_WEIGHT
from mgm_train.checkpoint.weights import Weights
from mgm_train.evaluation.features import FrozenEncoder
from mgm_train.interchange.export_source import ExportSource
from mgm_train.interchange.model_card import model_card
from mgm_train.models.videomae import normalise

TOLERANCE = 1e-4
# Tried besides the batch of the export.
BATCHES = (1, 3)
# A protobuf file holds at most 2 GiB; larger weights go into a file beside it.
MAX_FILE_BYTES = 2**31 - 2**24
LOADING = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("THIS_FOLDER/{file}")
outputs = session.run(None, {{"frames": np.zeros({shape}, np.uint8)}})"""


class OnnxEncoder(nn.Module):
    """uint8 clips → tokens after the last norm, and their mean as `FrozenEncoder` has it."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.frozen = FrozenEncoder(weights)

    def forward(self, frames_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        tokens_BND = self.frozen.encoder(normalise(frames_BCTHW))
        return tokens_BND, self.frozen.fc_norm(tokens_BND.mean(dim=1))


class OnnxClassifier(nn.Module):
    """uint8 clips → logits."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.encoder = OnnxEncoder(weights)
        num_classes, width = weights.state[HEAD_WEIGHT].shape
        self.head = nn.Linear(width, num_classes)
        self.head.load_state_dict({name: weights.state[f"head.{name}"] for name in ("weight", "bias")})

    def forward(self, frames_BCTHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.encoder(frames_BCTHW)[1])
        return logits_BK


def write_onnx(source: ExportSource, folder: Path) -> float:
    """Write the files and return the largest difference between onnxruntime and torch.

    UserError if onnx or onnxruntime is missing, or if they differ by more than 1e-4.
    """
    runtime = _libraries()
    weights = source.weights
    models: dict[str, tuple[nn.Module, list[str]]] = {"encoder": (OnnxEncoder(weights), ["tokens", "features"])}
    if source.is_classifier:
        models["classifier"] = (OnnxClassifier(weights), ["logits"])
    difference = 0.0
    for name, (model, outputs) in models.items():
        file = folder / f"{name}.onnx"
        _export(model.eval().requires_grad_(False), weights, outputs, file)
        difference = max(difference, _difference(runtime, model, weights, file))
    config = weights.model
    shape = (1, 3, config.num_frames, config.image_px, config.image_px)
    loading = LOADING.format(file=f"{list(models)[-1]}.onnx", shape=shape)
    (folder / "README.md").write_text(model_card(source, loading, library="onnx"), encoding="utf-8")
    if source.is_classifier:
        labels = json.dumps(weights.classes, ensure_ascii=False, indent=2)
        (folder / "labels.json").write_text(labels, encoding="utf-8")
    return difference


def _libraries() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"this export needs {error.name}: pip install '.[export]'") from None
    return onnxruntime


def _frames(weights: Weights, num_clips: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_clips)
    side_px = weights.model.image_px
    shape = (num_clips, 3, weights.model.num_frames, side_px, side_px)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _export(model: nn.Module, weights: Weights, outputs: list[str], file: Path) -> None:
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    try:
        # It reports its own progress, and uses functions that a newer torch has renamed.
        exporter.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (_frames(weights, 2),),
                file,
                dynamo=True,
                verbose=False,
                input_names=["frames"],
                output_names=outputs,
                dynamic_shapes={"frames_BCTHW": {0: torch.export.Dim("batch", min=1)}},
                external_data=num_bytes > MAX_FILE_BYTES,
            )
    finally:
        exporter.setLevel(level)


def _difference(runtime: Any, model: nn.Module, weights: Weights, file: Path) -> float:
    """The largest difference to torch over some batches. UserError when it is above 1e-4."""
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    largest = 0.0
    for num_clips in BATCHES:
        frames_BCTHW = _frames(weights, num_clips)
        with torch.inference_mode():
            expected = model(frames_BCTHW)
        found = session.run(None, {"frames": frames_BCTHW.numpy()})
        for array, tensor in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            largest = max(largest, float(np.abs(array - tensor.numpy()).max()))
    if not largest <= TOLERANCE:
        raise UserError(
            f"{file.name} differs from torch by {largest:.1e}, more than {TOLERANCE:.0e}; try other versions of torch "
            f"({torch.__version__}) and onnxruntime ({runtime.__version__})"
        )
    return largest

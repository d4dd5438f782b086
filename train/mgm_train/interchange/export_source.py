"""What is exported: the weights, and what their run folder records of data, options and results."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mgm_shared.errors import UserError
from mgm_train.checkpoint.completeness import BRIDGE_WEIGHT, holds_classifier, holds_detector
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import Weights

# Written for a split of a store by `mgm-train evaluate`.
CLASS_TABLES = "classes-*.csv"


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """Weights to export, with the name of their data set and the licence that the user gives them."""

    weights: Weights
    dataset: str = ""
    license: str = ""

    @property
    def is_classifier(self) -> bool:
        return holds_classifier(self.weights.state)

    @property
    def is_detector(self) -> bool:
        """Whether the head is for boxes."""
        return holds_detector(self.weights.state)

    @property
    def is_autoencoder(self) -> bool:
        return BRIDGE_WEIGHT in self.weights.state

    @property
    def kind(self) -> str:
        """What the model is, in words."""
        if self.is_detector:
            return "action detector"
        if self.is_classifier:
            return f"video classifier of {len(self.weights.classes)} classes"
        return "masked video autoencoder" if self.is_autoencoder else "video encoder"

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options of the run by task, from its config.yaml; empty for weights outside a run folder."""
        return _mapping(_read(self.weights.folder / "config.yaml"))

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, machine and inputs of the run; empty for weights outside a run folder."""
        return _mapping(_read(self.weights.folder / "environment.json"))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The last loss of the run, and the top-1 accuracy of each split that `mgm-train evaluate` has scored."""
        rows = RunFolder(self.weights.folder).read_metrics() if self.weights.folder.is_dir() else []
        losses = [row["loss"] for row in rows if "loss" in row]
        found = {"training loss": float(losses[-1])} if losses else {}
        for table in sorted(self.weights.folder.glob(CLASS_TABLES)):
            found[f"top-1 accuracy on {table.stem.removeprefix('classes-')}"] = _accuracy(table)
        return found


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _mapping(text: str) -> dict[str, Any]:
    """JSON is YAML too."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def _accuracy(table: Path) -> float:
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        right, scored = (sum(int(row[name]) for row in rows) for name in ("right", "scored"))
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{table} is no table of `mgm-train evaluate`; delete it or run the test again") from None
    return right / max(scored, 1)


def describe_clip(source: ExportSource) -> str:
    """The clips that the model takes, in words."""
    model = source.weights.model
    sampling = json.loads(source.weights.metadata.get("mgm_sampling", "{}"))
    text = f"{model.num_frames} frames of {model.image_px}×{model.image_px} pixels"
    return f"{text}, sampled {sampling['sampling']} at a stride of {sampling['stride']}" if sampling else text

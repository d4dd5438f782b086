"""What a run folder holds, read for a report: options, metrics, results of tests, the tables of an ablation.

Nothing here needs the store or the weights, except for the class names in the metadata of the weights.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from mgm_shared.config import Config
from mgm_shared.errors import UserError
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import find_weights
from mgm_train.config import DetectConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from mgm_train.target_weights import target_weights

CONFIGS: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "detect": DetectConfig,
    "probe": ProbeConfig,
}
RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class TestRecord:
    """The CSV files of a test on a split; see `evaluation/metrics.py`."""

    folder: Path
    split: str

    def _rows(self, what: str) -> list[dict[str, str]]:
        try:
            with (self.folder / f"{what}-{self.split}.csv").open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    @cached_property
    def classes(self) -> dict[str, tuple[int, int]]:
        """Class → (number of hits, number of scored videos)."""
        return {row["class"]: (int(row["right"]), int(row["scored"])) for row in self._rows("classes")}

    @cached_property
    def confusion(self) -> tuple[list[str], list[list[int]]]:
        """The class names, and a row of counts by predicted class for each true class."""
        rows = self._rows("confusion")
        names = [row["class"] for row in rows]
        return names, [[int(row[name]) for name in names] for row in rows]

    @cached_property
    def predictions(self) -> list[dict[str, str]]:
        """A row for each listed video: `video_id`, `label`, `predicted`, `unreadable`, and `p(CLASS)` of each class."""
        return self._rows("predictions")

    @property
    def top1(self) -> float:
        right, scored = (sum(column) for column in zip(*self.classes.values(), strict=True))
        return right / scored if scored else math.nan

    @property
    def mean_class_accuracy(self) -> float:
        shares = [right / scored for right, scored in self.classes.values() if scored]
        return sum(shares) / len(shares) if shares else math.nan

    @property
    def num_scored(self) -> int:
        return sum(scored for _, scored in self.classes.values())


@dataclass(frozen=True)
class RunRecord:
    """A run folder of pretraining, fine-tuning, action detection or a probe."""

    root: Path
    name: str
    task: str
    options: dict[str, Any]
    environment: dict[str, Any]

    @classmethod
    def of(cls, root: Path, name: str) -> "RunRecord":
        """Read a run folder. UserError if it is none."""
        try:
            sections = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
            ((task, options),) = sections.items()
            known, options = CONFIGS[task], dict(options)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, yaml.YAMLError):
            raise UserError(
                f"{root} is not the folder of a run: it has no config.yaml of pretrain, finetune, detect or probe"
            ) from None
        assert known
        try:
            environment = json.loads((root / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            environment = {}
        return cls(root, name, task, options, environment)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return RunFolder(self.root).read_metrics()

    @cached_property
    def loss_rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that a log interval wrote."""
        return [row for row in self.metrics if "loss" in row]

    def column(self, name: str) -> list[float]:
        """A number of each of these rows; NaN where it is missing."""
        return [number(row.get(name)) for row in self.loss_rows]

    def tests_while_training(self, metric: str = "top1") -> dict[str, tuple[list[float], list[float]]]:
        """By split: the epochs after which it was tested, and a metric in percent.

        For `mean_ap` the test with the labelled boxes of a split has the name `SPLIT_labelled_boxes`.
        """
        found: dict[str, tuple[list[float], list[float]]] = {}
        for row in self.metrics:
            for key in row:
                if key.endswith(f"_{metric}"):
                    epochs, shares = found.setdefault(key.removesuffix(f"_{metric}"), ([], []))
                    epochs.append(number(row["epoch"]))
                    shares.append(100 * number(row[key]))
        return found

    @cached_property
    def unreadable(self) -> dict[str, str]:
        """Videos that the training left out, and why."""
        return {str(row["unreadable"]): str(row.get("reason", "")) for row in self.metrics if "unreadable" in row}

    @cached_property
    def tests(self) -> list[TestRecord]:
        """The tests of a classifier whose files lie in the folder."""
        if self.task == "detect":
            return []
        splits = sorted(file.stem.removeprefix("classes-") for file in self.root.glob("classes-*.csv"))
        return [TestRecord(self.root, split) for split in splits]

    @cached_property
    def average_precisions(self) -> dict[str, list[dict[str, str]]]:
        """By split, rows of an action detector's test: `class`, `average_precision`, `with_labelled_boxes`."""
        if self.task != "detect":
            return {}
        files = {file.stem.removeprefix("classes-"): file for file in sorted(self.root.glob("classes-*.csv"))}
        return {split: list(csv.DictReader(file.read_text("utf-8").splitlines())) for split, file in files.items()}

    @cached_property
    def heads(self) -> list[dict[str, str]]:
        """The rows of heads.csv of a probe."""
        try:
            with (self.root / "heads.csv").open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    @cached_property
    def num_classes(self) -> int:
        """Classes of a classifier; 0 where nothing tells."""
        try:
            with safe_open(str(find_weights(self.root)), framework="pt") as file:
                return len(json.loads((file.metadata() or {}).get("labels", "[]")))
        except (UserError, SafetensorError, OSError, ValueError):
            return len(self.tests[0].classes) if self.tests else 0

    @property
    def blind_guess(self) -> float:
        """The loss of a model that knows nothing: 1 for normalised pixels, ln K for K classes.

        NaN where it is unknown, as for other targets.
        """
        if self.task == "pretrain":
            weights = target_weights(str(self.options.get("target", "pixels")))
            return weights["pixels"] if list(weights) == ["pixels"] else math.nan
        return math.log(self.num_classes) if self.task == "finetune" and self.num_classes > 1 else math.nan

    @property
    def store(self) -> str:
        """Where the store of the run was; empty for runs of an earlier version."""
        return str(self.environment.get("store_path", ""))

    @property
    def is_complete(self) -> bool:
        """Whether its last epoch is in the metrics."""
        return bool(self.loss_rows) and self.loss_rows[-1]["epoch"] >= self.options.get("epochs", 0)


def number(value: object) -> float:
    """A value of metrics.jsonl: JSON has null for what is not finite."""
    return float(value) if isinstance(value, int | float) else math.nan


@dataclass(frozen=True)
class AblationRecord:
    """The folder of an ablation: its tables, and the folders of its runs."""

    root: Path
    tables: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Records:
    """Everything that a report is about."""

    runs: list[RunRecord]
    ablations: list[AblationRecord]


def read_records(folders: Sequence[Path]) -> Records:
    """The runs and ablations of some folders; the runs of an ablation count too.

    UserError if a folder is neither.
    """
    runs: list[RunRecord] = []
    ablations: list[AblationRecord] = []
    names = short_names(folders)
    for folder, name in zip(folders, names, strict=True):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the run folders of mgm-train")
        if (folder / "config.yaml").exists():
            runs.append(RunRecord.of(folder, name))
            continue
        inside = sorted(file.parent for file in folder.glob("*/*/config.yaml"))
        if not inside and not (folder / RESULTS_FILE).exists():
            raise UserError(f"{folder} is neither the folder of a run nor that of an ablation")
        ablations.append(AblationRecord(folder, _tables(folder)))
        runs += [RunRecord.of(run, f"{run.parent.name}/{run.name}") for run in inside]
    return Records(runs, ablations)


def _tables(folder: Path) -> list[Mapping[str, Any]]:
    try:
        tables: list[Mapping[str, Any]] = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))["tables"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / RESULTS_FILE} is not the result of an ablation") from None
    return tables


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as many as make them differ."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(folder) for folder in folders]

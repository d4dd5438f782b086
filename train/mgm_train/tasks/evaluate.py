"""Test a fine-tuned model on a split of a store with several views of each video (paper §4.1)."""

import os
from dataclasses import dataclass
from pathlib import Path

from mgm_shared.progress import SILENT, Progress
from mgm_shared.storage import StorePath
from mgm_shared.store import open_store
from mgm_train.checkpoint.weights import Weights, load_weights
from mgm_train.config import EvaluateConfig
from mgm_train.data.labels import describe_map, read_class_map
from mgm_train.evaluation.metrics import Scores, write_reports
from mgm_train.evaluation.multiview import ViewDataset, classifier, score_views
from mgm_train.runtime.distributed import init_distributed
from mgm_train.tasks.training_run import say_precision


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """The scores of a test, and its CSV files by content."""

    scores: Scores
    num_views: int
    files: dict[str, Path]


@dataclass(frozen=True, kw_only=True)
class EvaluatePreview:
    """What a test would read."""

    videos: int
    views: int


def evaluate(
    store: str | StorePath,
    weights: str | os.PathLike[str],
    config: EvaluateConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> EvaluateResult | None:
    """Score every video of a split; the softmax of all views of a video is averaged.

    Args:
        store: Path or URL of a store.
        weights: A fine-tuned model: its run folder or a weights file.
        config: Split and views.
        out: Folder of the CSV files; by default the run folder of the weights.
        progress: Hears the number of videos that are done.

    Returns:
        Accuracies, the unreadable videos and the paths of the CSV files; None on a process of torchrun that is not the
        main one.

    Raises:
        UserError: The weights hold no classifier, the split has no video, or a video has a label they do not know.
    """
    config = config or EvaluateConfig()
    loaded, dataset = _open(store, weights, config)
    if config.class_map:
        progress.say(describe_map(dataset.store, config.split, read_class_map(Path(config.class_map))))
    model = classifier(loaded)
    with init_distributed(config.device) as distributed:
        say_precision(config.precision, distributed, progress)
        scores, predictions = score_views(model.to(distributed.device), dataset, distributed, progress)
        if not distributed.is_main:
            return None
    folder = Path(out) if out else loaded.folder
    folder.mkdir(parents=True, exist_ok=True)
    files = write_reports(folder, config.split, predictions, scores.unreadable, loaded.classes)
    return EvaluateResult(scores=scores, num_views=dataset.num_views, files=files)


def preview_evaluate(
    store: str | StorePath, weights: str | os.PathLike[str], config: EvaluateConfig | None = None
) -> EvaluatePreview:
    """Count what `evaluate` would read. Errors are those of `evaluate`."""
    _, dataset = _open(store, weights, config or EvaluateConfig())
    return EvaluatePreview(videos=len(dataset), views=dataset.num_views)


def _open(
    store: str | StorePath, weights: str | os.PathLike[str], config: EvaluateConfig
) -> tuple[Weights, ViewDataset]:
    opened, loaded = open_store(store), load_weights(Path(weights))
    return loaded, ViewDataset(opened, loaded.classes, loaded.model, config)

"""Test a fine-tuned model on a split of a store with several views of each video (paper §4.1)."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mgm_shared.lock import one_writer
from mgm_shared.progress import SILENT, Progress
from mgm_shared.storage import StorePath
from mgm_shared.store import open_store
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import EvaluateConfig
from mgm_train.data.labels import describe_map, read_class_map
from mgm_train.evaluation.metrics import Scores, write_reports
from mgm_train.evaluation.multiview import ViewDataset, classifier, sampled_as_trained, score_views
from mgm_train.runtime.distributed import init_distributed
from mgm_train.tasks.training_run import say_precision, say_samples


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
    stride: int
    sampling: str


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
        weights: A fine-tuned model: its run folder, or anything else with a classifier that `load` takes.
        config: Split and views. Where `stride` and `sampling` are not set, they are those of the fine-tuning.
        out: Folder of the CSV files; by default the run folder of the weights.
        progress: Hears the number of videos that are done.

    Returns:
        Accuracies, the unreadable videos and the paths of the CSV files; None on a process of torchrun that is not the
        main one.

    Raises:
        UserError: The weights hold no classifier, the split has no video, or a video has a label they do not know.
    """
    config = config or EvaluateConfig()
    loaded, dataset = _open(store, weights, config, progress)
    if config.class_map:
        progress.say(describe_map(dataset.store, config.split, read_class_map(Path(config.class_map))))
    model = classifier(loaded)
    folder = Path(out) if out else loaded.folder
    with init_distributed(config.device) as distributed, ExitStack() as stack:
        # Not the lock of the run: a checkpoint may be tested while the training goes on, and each split by itself.
        holding = one_writer(folder, progress.say, f".{config.split}.lock")
        distributed.on_main(lambda: stack.enter_context(holding))
        say_precision(config.precision, distributed, progress)
        scores, predictions = score_views(model.to(distributed.device), dataset, distributed, progress)
        if not distributed.is_main:
            return None
        files = write_reports(
            folder, config.split, predictions, scores.unreadable, loaded.classes, id_column=dataset.id_column
        )
    return EvaluateResult(scores=scores, num_views=dataset.num_views, files=files)


def preview_evaluate(
    store: str | StorePath,
    weights: str | os.PathLike[str],
    config: EvaluateConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> EvaluatePreview:
    """Count what `evaluate` would read. Errors are those of `evaluate`."""
    _, dataset = _open(store, weights, config or EvaluateConfig(), progress)
    views = dataset.config
    return EvaluatePreview(videos=len(dataset), views=dataset.num_views, stride=views.stride, sampling=views.sampling)


def _open(
    store: str | StorePath, weights: str | os.PathLike[str], config: EvaluateConfig, progress: Progress
) -> tuple[Weights, ViewDataset]:
    opened, loaded = open_store(store).select(config.samples), load_source(weights)
    say_samples(opened, progress)
    config, lines = sampled_as_trained(config, loaded)
    for line in lines:
        progress.say(line)
    return loaded, ViewDataset(opened, loaded.classes, loaded.model, config)

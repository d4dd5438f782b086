"""Fit linear classifiers to the features of a frozen encoder, and test them (linear probe, paper §4)."""

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.lock import one_writer
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import Samples
from mgm_shared.storage import StorePath
from mgm_shared.store import open_store
from mgm_train.checkpoint.resume import check_task
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import ProbeConfig
from mgm_train.data.labels import class_names, label_subset, read_class_map
from mgm_train.evaluation.features import FeatureCache, Features, FrozenEncoder
from mgm_train.evaluation.groups import recordings_of
from mgm_train.evaluation.knn import knn_predictions
from mgm_train.evaluation.linear_probe import (
    Choice,
    fit_and_score,
    grid,
    held_out_videos,
    some_features,
    write_choices,
)
from mgm_train.evaluation.metrics import Scores, score, write_reports
from mgm_train.evaluation.multiview import ViewDataset
from mgm_train.runtime.distributed import Distributed, init_distributed
from mgm_train.tasks.training_run import restart, say_precision, say_samples


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The scores of the head that was chosen on held-out training videos, and the files of the probe by content."""

    scores: Scores
    choice: Choice
    best_top1: float
    """The best accuracy of any head: an upper bound that was chosen on the scored videos."""
    knn_top1: float
    """The accuracy of the nearest neighbours in the same features, without training; see `evaluation.knn`."""
    num_training_videos: int
    num_listed_training_videos: int
    files: dict[str, Path]

    @property
    def has_unreadable(self) -> bool:
        """Whether some video could not be read."""
        return bool(self.scores.unreadable) or self.num_training_videos < self.num_listed_training_videos


@dataclass(frozen=True, kw_only=True)
class ProbePreview:
    """What a probe would read and fit."""

    training_videos: int
    held_out_videos: int
    """Training videos that choose the head."""
    scored_videos: int
    heads: int


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """The opened inputs of a probe: training videos first, scored ones second."""

    weights: Weights
    samples: Samples
    classes: list[str]
    datasets: tuple[ViewDataset, ViewDataset]


def probe(
    store: str | StorePath,
    run: str | os.PathLike[str],
    config: ProbeConfig,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> ProbeResult | None:
    """Fit linear classifiers to the features that the frozen encoder of `config.init` has of the training videos.

    Features are computed once and kept in the run folder; the same call again continues where it was stopped.

    Args:
        store: Path or URL of a store with labels.
        run: Folder for features and results.
        config: Weights, views and the grid of learning rates and weight decays.
        force: Move an existing run folder aside and start over.
        progress: Hears the number of videos that are done.

    Returns:
        The result; None on a process of torchrun that is not the main one.

    Raises:
        KeyboardInterrupt: A stop was requested (Ctrl-C, SIGTERM); the features that were computed are kept.
        UserError: `config.init` is empty or holds no encoder, a split has no readable video, or no training video can
            be held out.
    """
    opened = _open(store, config)
    num_held = _num_held_out(opened, config)
    with init_distributed(config.device) as distributed, ExitStack() as stack:
        restart(Path(run), force, distributed, progress)
        holding = one_writer(Path(run), progress.say)
        distributed.on_main(lambda: stack.enter_context(holding))
        say_precision(config.precision, distributed, progress)
        if distributed.is_main:
            say_samples(opened.samples, progress)
            progress.say(
                f"{num_held} training videos are held out to choose a head (group-pattern {config.group_pattern})"
            )
        train, scored = _features(opened, Path(run), config, distributed, progress)
        if not distributed.is_main:
            return None
        train = _with_labels(train, opened.datasets[0], config)
        choices, best, predictions = fit_and_score(train, scored, len(opened.classes), config, distributed.device)
        heads = Path(run) / "heads.csv"
        write_choices(heads, choices, best)
        scores = score(predictions, scored.unreadable)
        by_neighbours = score(knn_predictions(train, scored, len(opened.classes)), scored.unreadable)
        files = write_reports(
            Path(run),
            config.split,
            predictions,
            scores.unreadable,
            opened.classes,
            id_column=opened.datasets[1].id_column,
        )
    return ProbeResult(
        scores=scores,
        choice=choices[best],
        best_top1=max(choice.top1 for choice in choices),
        knn_top1=by_neighbours.top1,
        num_training_videos=len(train.sample_ids),
        num_listed_training_videos=train.num_listed,
        files={"heads": heads, **files},
    )


def preview_probe(store: str | StorePath, config: ProbeConfig) -> ProbePreview:
    """Count what `probe` would read and fit. Errors are those of `probe`."""
    opened = _open(store, config)
    train, scored = opened.datasets
    num_held = _num_held_out(opened, config)
    return ProbePreview(
        training_videos=len(_labelled_samples(train, config)[0]),
        held_out_videos=num_held,
        scored_videos=len(scored),
        heads=len(grid(config)),
    )


def _open(store: str | StorePath, config: ProbeConfig) -> _Probe:
    if not config.init:
        raise UserError("probe needs --init, the weights whose encoder is probed")
    opened, loaded = open_store(store).select(config.samples), load_source(config.init)
    class_map = read_class_map(Path(config.class_map)) if config.class_map else None
    classes = class_names(opened, class_map=class_map)
    train, scored = (ViewDataset(opened, classes, loaded.model, views) for views in (config.for_training(), config))
    return _Probe(weights=loaded, samples=opened, classes=classes, datasets=(train, scored))


def _num_held_out(opened: _Probe, config: ProbeConfig) -> int:
    """The number of training videos that choose the head. UserError, before any feature is computed, for none."""
    train, _ = opened.datasets
    sample_ids, video_ids, label_N = _labelled_samples(train, config)
    recordings = recordings_of(sample_ids, video_ids, config.group_pattern)
    is_held_N = held_out_videos(label_N, recordings, config.held_out, config.seed, config.group_pattern)
    return int(is_held_N.sum())


def _labelled_samples(dataset: ViewDataset, config: ProbeConfig) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """The sample ids, the video ids and the class numbers of the training samples whose labels are used."""
    kept = label_subset(dataset.labels, config.label_fraction, config.seed)
    table = dataset.store.table.take(dataset.rows[kept])
    return table["sample_id"].to_pylist(), table["video_id"].to_pylist(), dataset.labels[kept]


def _with_labels(train: Features, dataset: ViewDataset, config: ProbeConfig) -> Features:
    """The features of the training samples whose labels are used. All samples have features, for every fraction."""
    kept = set(_labelled_samples(dataset, config)[0])
    is_kept_N = np.array([sample_id in kept for sample_id in train.sample_ids])
    unreadable = {sample_id: reason for sample_id, reason in train.unreadable.items() if sample_id in kept}
    return replace(some_features(train, is_kept_N), unreadable=unreadable)


def _features(
    opened: _Probe, run: Path, config: ProbeConfig, distributed: Distributed, progress: Progress
) -> tuple[Features, Features]:
    """The features of the training and of the scored videos. KeyboardInterrupt when a stop was requested."""
    distributed.on_main(lambda: check_task(RunFolder(run), "probe"))
    if distributed.is_main:
        store = opened.datasets[0].store
        RunFolder(run).start("probe", config, {"store": store.digest, "store_path": store.address})
    model = FrozenEncoder(opened.weights).to(distributed.device)
    caches = [FeatureCache.of(run, opened.weights, dataset, distributed) for dataset in opened.datasets]
    for cache, dataset in zip(caches, opened.datasets, strict=True):
        if not cache.compute(model, dataset, distributed, progress):
            raise KeyboardInterrupt
    train, scored = (cache.load(len(dataset)) for cache, dataset in zip(caches, opened.datasets, strict=True))
    return train, scored

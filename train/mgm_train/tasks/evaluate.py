"""Test a fine-tuned model: a classifier with several views of each video (paper §4.1), a detector on its key frames."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mgm_shared.lock import one_writer
from mgm_shared.progress import SILENT, Progress
from mgm_shared.storage import StorePath
from mgm_shared.store import Store, open_store
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import EvaluateConfig
from mgm_train.data.labels import describe_map, read_class_map
from mgm_train.detection.scoring import DetectionScores, score_key_frames, summarise, write_detection_reports
from mgm_train.detection.test_set import detector, is_detector, open_detector_test
from mgm_train.evaluation.metrics import Scores, write_reports
from mgm_train.evaluation.multiview import ViewDataset, classifier, sampled_as_trained, score_views
from mgm_train.runtime.distributed import Distributed, init_distributed
from mgm_train.tasks.training_run import say_precision, say_samples


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """The scores of a test, and its CSV files by content."""

    scores: Scores | DetectionScores
    num_views: int
    files: dict[str, Path]


@dataclass(frozen=True, kw_only=True)
class EvaluatePreview:
    """What a test would read."""

    videos: int
    """Samples: videos, segments, or key frames."""
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

    The weights of `detect` are tested on the key frames of a split instead, with whole frames, proposals and labelled
    boxes; the result has `DetectionScores`.

    Args:
        store: Path or URL of a store.
        weights: A fine-tuned model: its run folder, or anything else with a classifier that `load` takes.
        config: Split and views. Where `stride` and `sampling` are not set, they are those of the fine-tuning; so
            are the options of action detection.
        out: Folder of the CSV files; by default the run folder of the weights.
        progress: Hears the number of videos that are done.

    Returns:
        Accuracies, the unreadable videos and the paths of the CSV files; None on a process of torchrun that is not the
        main one.

    Raises:
        UserError: The weights hold no classifier, the split has no video, or a video has a label they do not know.
    """
    config = config or EvaluateConfig()
    loaded = load_source(weights)
    if is_detector(loaded):
        return _evaluate_detector(open_store(store), loaded, config, out, progress)
    dataset = _open(store, loaded, config, progress)
    if config.class_map:
        progress.say(describe_map(dataset.store, config.split, read_class_map(Path(config.class_map))))
    model = classifier(loaded)
    folder = Path(out) if out else loaded.folder
    with _testing(folder, config, progress) as distributed:
        scores, predictions = score_views(model.to(distributed.device), dataset, distributed, progress)
        if not distributed.is_main:
            return None
        files = write_reports(
            folder, config.split, predictions, scores.unreadable, loaded.classes, id_column=dataset.id_column
        )
    return EvaluateResult(scores=scores, num_views=dataset.num_views, files=files)


@contextmanager
def _testing(folder: Path, config: EvaluateConfig, progress: Progress) -> Iterator[Distributed]:
    """The processes of a test. The main one holds the folder of its files."""
    with init_distributed(config.device) as distributed, ExitStack() as stack:
        # Not the lock of the run: a checkpoint may be tested while the training goes on, and each split by itself.
        holding = one_writer(folder, progress.say, f".{config.split}.lock")
        distributed.on_main(lambda: stack.enter_context(holding))
        say_precision(config.precision, distributed, progress)
        yield distributed


def _evaluate_detector(
    store: Store, weights: Weights, config: EvaluateConfig, out: str | os.PathLike[str] | None, progress: Progress
) -> EvaluateResult | None:
    config, dataset, classes = open_detector_test(store, weights, config, progress.say)
    model = detector(weights)
    folder = Path(out) if out else weights.folder
    with _testing(folder, config, progress) as distributed:
        model = model.to(distributed.device).eval()
        detections = score_key_frames(model, dataset, config, len(classes), distributed, progress)
        if not distributed.is_main:
            return None
        scores = summarise(dataset.frames, detections, classes)
        files = write_detection_reports(folder, config.split, dataset.frames, detections, scores)
    return EvaluateResult(scores=scores, num_views=1, files=files)


def preview_evaluate(
    store: str | StorePath,
    weights: str | os.PathLike[str],
    config: EvaluateConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> EvaluatePreview:
    """Count what `evaluate` would read. Errors are those of `evaluate`."""
    loaded, config = load_source(weights), config or EvaluateConfig()
    if is_detector(loaded):
        config, clips, _ = open_detector_test(open_store(store), loaded, config, progress.say)
        return EvaluatePreview(videos=len(clips), views=1, stride=clips.reader.stride, sampling="key frames")
    dataset = _open(store, loaded, config, progress)
    views = dataset.config
    return EvaluatePreview(videos=len(dataset), views=dataset.num_views, stride=views.stride, sampling=views.sampling)


def _open(store: str | StorePath, weights: Weights, config: EvaluateConfig, progress: Progress) -> ViewDataset:
    opened = open_store(store).select(config.samples)
    say_samples(opened, progress)
    config, lines = sampled_as_trained(config, weights)
    for line in lines:
        progress.say(line)
    return ViewDataset(opened, weights.classes, weights.model, config)

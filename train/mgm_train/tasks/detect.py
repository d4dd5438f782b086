"""Fine-tune a pretrained encoder to detect actions in boxes, and test it (AVA v2.2; paper, Table 6)."""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from mgm_shared.files import content_digest
from mgm_shared.progress import SILENT, Progress
from mgm_shared.storage import StorePath
from mgm_shared.store import Store, open_store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.transfer import build_pretrained
from mgm_train.checkpoint.weights import find_weights, load_weights
from mgm_train.config import HARDWARE_OPTIONS, DetectConfig, EvaluateConfig
from mgm_train.data.labels import exchanged_pair, flip_warning
from mgm_train.detection.annotations import Annotations
from mgm_train.detection.boxes_in_view import BoxAugment
from mgm_train.detection.datasets import DetectionDataset
from mgm_train.detection.key_frames import KeyFrames
from mgm_train.detection.scoring import score_key_frames, summarise, write_detection_reports
from mgm_train.detection.test_set import DetectionSettings, open_test
from mgm_train.models.action_detector import ActionDetector
from mgm_train.models.flops import finetune_flops
from mgm_train.runtime.distributed import Distributed
from mgm_train.tasks.training_run import MakeEpochTest, TrainPreview, preview_job, run_job, with_chosen_options
from mgm_train.training.loop import Job, TrainResult
from mgm_train.training.losses import DetectionObjective


def detect(
    store: str | StorePath,
    run: str | os.PathLike[str],
    config: DetectConfig | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Fine-tune the encoder of `config.init` on the labelled boxes of `config.annotations`, and test it.

    Training is on the labelled boxes of split train; tests are on `config.eval_split`, with the boxes of
    `config.proposals` and with the labelled ones. Their mAP is in metrics.jsonl, and classes-SPLIT.csv and
    detections-SPLIT.csv of the run folder have the last one in detail.

    The same call again continues from the last checkpoint. Arguments, result and errors are those of `pretrain`; a
    UserError is also raised for annotations or proposals that cannot be read, and when the store has none of the
    videos.
    """
    job, test = detect_job(store, run, config or DetectConfig(), progress)
    return run_job(with_chosen_options(job, progress, force=force), progress, force=force, test=test)


def preview_detect(
    store: str | StorePath,
    run: str | os.PathLike[str],
    config: DetectConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> TrainPreview:
    """Count what `detect` would do, without training. Errors are those of `detect`."""
    job, _ = detect_job(store, run, config or DetectConfig(), progress)
    return preview_job(with_chosen_options(job, progress))


def detect_job(
    store: str | StorePath, run: str | os.PathLike[str], config: DetectConfig, progress: Progress
) -> tuple[Job, MakeEpochTest | None]:
    """The model, the key frames and the objective of a training, and its test between epochs."""
    opened, settings = open_store(store), DetectionSettings.of(config)
    frames, row_of = settings.labels_of(opened, "train", progress.say)
    classes = Annotations(folder=Path(config.annotations)).classes
    if config.flip and (warning := flip_warning(exchanged_pair(filter(None, classes.names)))):
        progress.say(warning)
    model = _model(config, len(classes), progress)
    dataset = DetectionDataset(
        reader=settings.reader(opened, config.num_frames),
        frames=_trainable(frames, row_of, progress.say),
        row_of=row_of,
        augment=BoxAugment.of(config),
        colour_jitter=config.colour_jitter,
        repeats=config.repeats,
        seed=config.seed,
    )
    progress.say(dataset.describe_crops())
    job = Job(
        task="detect",
        config=config,
        model=model,
        objective=DetectionObjective(),
        dataset=dataset,
        run=RunFolder(Path(run)),
        store=opened.digest,
        store_path=opened.address,
        inputs=_inputs(config),
        layer_decay=config.layer_decay,
        flops_per_clip=finetune_flops(model.config, len(classes)),
        metadata={"labels": json.dumps(classes.names), **settings.metadata},
    )
    return job, _test(opened, Path(run), config, model, progress)


def _trainable(frames: KeyFrames, row_of: Mapping[str, int], say: Callable[[str], None]) -> KeyFrames:
    """The key frames that have a box and whose video is in the store."""
    is_kept_F = np.isin(frames.name_F, list(row_of)) & (frames.num_boxes_F > 0)
    kept = frames.where(is_kept_F)
    say(f"train: {len(kept)} of {len(frames)} labelled key frames, with {len(kept.box_B4)} boxes")
    return kept


def _inputs(config: DetectConfig) -> dict[str, str]:
    """The digests of what the options name."""
    files = {"annotations": Path(config.annotations)}
    files |= {"init": find_weights(Path(config.init))} if config.init else {}
    return {name: content_digest(file) for name, file in files.items()}


def _model(config: DetectConfig, num_classes: int, progress: Progress) -> ActionDetector:
    weights = load_weights(Path(config.init)) if config.init else None
    options = {"drop_path": config.drop_path, "head_init_scale": config.head_init_scale}
    return build_pretrained(
        lambda shape: ActionDetector(shape, num_classes, **options), config.shape, weights, config.seed, progress.say
    )


def _test(
    opened: Store, run: Path, config: DetectConfig, model: ActionDetector, progress: Progress
) -> MakeEpochTest | None:
    """The test after some of the epochs and after the last one, whose files go into the run folder."""
    if not config.eval_every_epochs:
        return None
    split = config.eval_split
    test = EvaluateConfig(split=split, **{name: getattr(config, name) for name in HARDWARE_OPTIONS})
    dataset, classes = open_test(opened, DetectionSettings.of(config), model.config, split, progress.say)

    def score_epoch(epoch: int, scored: nn.Module, distributed: Distributed) -> Mapping[str, float]:
        if epoch % config.eval_every_epochs and epoch != config.epochs:
            return {}
        detections = score_key_frames(scored.eval(), dataset, test, len(classes), distributed)
        if not distributed.is_main:
            return {}
        scores = summarise(dataset.frames, detections, classes)
        write_detection_reports(run, split, dataset.frames, detections, scores)
        progress.say(f"epoch {epoch} | {split} {scores}")
        return {f"{split}_{name}": value for name, value in scores.numbers.items()}

    return lambda distributed: partial(score_epoch, distributed=distributed)

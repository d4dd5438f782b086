"""Fine-tune a pretrained encoder on the labels of a store (paper §4.1, Table 6)."""

import json
import os
from functools import partial
from pathlib import Path

from mgm_shared.files import content_digest
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import SampleSource
from mgm_shared.storage import StorePath
from mgm_shared.store import open_store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.transfer import build_pretrained, inherited
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import EvaluateConfig, FinetuneConfig
from mgm_train.data.augmentation.augment import FinetuneAugment
from mgm_train.data.clips import LabelledDataset
from mgm_train.data.labels import class_names, describe_map, mirror_warning, read_class_map
from mgm_train.evaluation.multiview import ViewDataset, sampling_metadata, score_every
from mgm_train.models.flops import finetune_flops
from mgm_train.models.videomae import VideoClassifier
from mgm_train.tasks.device_work import check_device_augmentation
from mgm_train.tasks.training_run import (
    MakeEpochTest,
    TrainPreview,
    preview_job,
    run_job,
    say_samples,
    with_chosen_options,
)
from mgm_train.training.loop import Job, TrainResult
from mgm_train.training.losses import FinetuneObjective


def finetune(
    store: str | StorePath,
    run: str | os.PathLike[str],
    config: FinetuneConfig | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Fine-tune the encoder of `config.init` on the labels of a store's training videos.

    The same call again continues from the last checkpoint. Arguments, result and errors are those of `pretrain`; a
    UserError is also raised when a training video has no label or `config.init` holds another model.
    """
    job, test = finetune_job(store, run, config or FinetuneConfig(), progress)
    return run_job(with_chosen_options(job, progress, force=force), progress, force=force, test=test)


def preview_finetune(
    store: str | StorePath,
    run: str | os.PathLike[str],
    config: FinetuneConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> TrainPreview:
    """Count what `finetune` would do, without training. Errors are those of `finetune`."""
    job, _ = finetune_job(store, run, config or FinetuneConfig(), progress)
    return preview_job(with_chosen_options(job, progress))


def finetune_job(
    store: str | StorePath, run: str | os.PathLike[str], config: FinetuneConfig, progress: Progress
) -> tuple[Job, MakeEpochTest | None]:
    """The model, the data and the objective of a fine-tuning, and its test between epochs if it asks for one."""
    check_device_augmentation(config)
    opened = open_store(store).select(config.samples)
    say_samples(opened, progress)
    weights = load_source(config.init) if config.init else None
    config = config if weights is None else inherited(config, weights)
    class_map = read_class_map(Path(config.class_map)) if config.class_map else None
    classes = class_names(opened, class_map=class_map)
    for line in _remarks(opened, config, class_map, classes):
        progress.say(line)
    model = _model(config, weights, classes, progress)
    dataset = LabelledDataset(
        opened,
        num_frames=config.num_frames,
        stride=config.stride,
        augment=FinetuneAugment.of(config),
        repeats=config.repeats,
        seed=config.seed,
        short_videos=config.short_videos,
        classes=classes,
        class_map=class_map,
        sampling=config.sampling,
        label_fraction=config.label_fraction,
    )
    job = Job(
        task="finetune",
        config=config,
        model=model,
        objective=FinetuneObjective.of(config, len(classes)),
        dataset=dataset,
        run=RunFolder(Path(run)),
        store=opened.digest,
        store_path=opened.address,
        inputs=_inputs(config, weights),
        layer_decay=config.layer_decay,
        flops_per_clip=finetune_flops(model.config, len(classes)),
        metadata={"labels": json.dumps(classes), **sampling_metadata(config)},
    )
    if not config.eval_every_epochs:
        return job, None
    watched = ViewDataset(opened, classes, model.config, EvaluateConfig.while_training(config))
    return job, partial(score_every, config.eval_every_epochs, watched, progress.say)


def _inputs(config: FinetuneConfig, weights: Weights | None) -> dict[str, str]:
    """The digests of the files that the options name."""
    files = {"class_map": Path(config.class_map)} if config.class_map else {}
    files |= {"init": weights.path} if weights else {}
    return {name: content_digest(file) for name, file in files.items()}


def _remarks(
    store: SampleSource, config: FinetuneConfig, class_map: dict[str, str] | None, classes: list[str]
) -> list[str]:
    """What the user should know of the labels before the training starts."""
    single = f"warning: all training videos have one class, {classes[0]!r}, so there is nothing to tell apart"
    warning = mirror_warning(store) if config.flip else ""
    mapped = describe_map(store, "train", class_map) if class_map is not None else ""
    return [line for line in (warning, mapped, single if len(classes) == 1 else "") if line]


def _model(config: FinetuneConfig, weights: Weights | None, classes: list[str], progress: Progress) -> VideoClassifier:
    heads = {"drop_path": config.drop_path, "fc_dropout": config.fc_dropout, "head_init_scale": config.head_init_scale}
    return build_pretrained(
        lambda shape: VideoClassifier(shape, len(classes), **heads), config.shape, weights, config.seed, progress.say
    )

"""Pretrain a video masked autoencoder on the training videos of a store (paper §3, Table 5)."""

import os
from dataclasses import replace
from pathlib import Path

from mgm_shared.errors import UserError
from mgm_shared.files import content_digest
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import SampleSource
from mgm_shared.storage import StorePath
from mgm_shared.store import open_store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.data.augmentation.augment import PretrainAugment
from mgm_train.data.clips import PretrainDataset
from mgm_train.data.images import ImageDataset, WithImages
from mgm_train.data.labels import mirror_warning
from mgm_train.data.scheduled import ScheduledDataset
from mgm_train.figures.pretrained import logged_pictures
from mgm_train.masking.guidance import Guidance
from mgm_train.masking.strategies import MaskGenerator
from mgm_train.model_config import ModelConfig
from mgm_train.models.flops import epoch_flops, pretrain_flops
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.tasks.training_run import TrainPreview, preview_job, run_job, say_samples, with_chosen_options
from mgm_train.token_counts import TokenCounts
from mgm_train.training.loop import Job, TrainResult
from mgm_train.training.losses import PretrainObjective
from mgm_train.training.targets.choose import make_targets, pretrain_shape, readers
from mgm_train.training.targets.target import WeightedTarget


def pretrain(
    store: str | StorePath,
    run: str | os.PathLike[str],
    config: PretrainConfig | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Pretrain on the training videos of a store. The same call again continues from the last checkpoint.

    Args:
        store: Path or URL of a store that `mgm_prep.extract` wrote.
        run: Folder of the run: settings, metrics, checkpoints.
        config: Options; the defaults are the paper's.
        force: Move an existing run folder aside and start over.
        progress: Hears a line every `log_every_steps` steps.

    Returns:
        Whether the run is complete, its number of steps and epochs, and its first and last logged loss.

    Raises:
        UserError: The store cannot be opened, has too few videos, or a run folder was begun with other options.
    """
    job = pretrain_job(store, run, config or PretrainConfig(), progress)
    return run_job(with_chosen_options(job, progress, force=force), progress, force=force)


def preview_pretrain(
    store: str | StorePath,
    run: str | os.PathLike[str],
    config: PretrainConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> TrainPreview:
    """Count what `pretrain` would do, without training. Errors are those of `pretrain`."""
    job = pretrain_job(store, run, config or PretrainConfig(), progress)
    return preview_job(with_chosen_options(job, progress))


def pretrain_job(
    store: str | StorePath, run: str | os.PathLike[str], config: PretrainConfig, progress: Progress
) -> Job:
    """The model, the data and the objective of a pretraining."""
    opened = open_store(store).select(config.samples)
    say_samples(opened, progress)
    if config.flip and (warning := mirror_warning(opened)):
        progress.say(warning)
    targets = make_targets(config)
    shape = pretrain_shape(config, targets)
    inputs = {name: content_digest(Path(value)) for name in ("boxes", "codebook") if (value := getattr(config, name))}
    dataset, flops = _dataset(opened, config, targets), epoch_flops(config, shape)
    if isinstance(dataset, WithImages):
        inputs["images"] = dataset.images.store.digest
        of_image = _image_flops(config, shape)
        flops = [(of_clip + of_image) // 2 for of_clip in flops]
        progress.say(f"every second step is one of {dataset.num_images} images from {config.images}")
    return Job(
        task="pretrain",
        config=config,
        model=build(lambda: VideoMAE(shape, linear_init=config.linear_init), config.seed),
        objective=PretrainObjective.of(config, targets),
        dataset=dataset,
        run=RunFolder(Path(run)),
        store=opened.digest,
        store_path=opened.address,
        inputs=inputs,
        flops_per_clip=flops,
        draw=logged_pictures(opened, config),
    )


def _dataset(
    store: SampleSource, config: PretrainConfig, targets: tuple[WeightedTarget, ...]
) -> PretrainDataset | ScheduledDataset | WithImages:
    """The clips of the run, in the sizes of its stages, or with the images of the second store between them."""
    stages = config.stages
    if len(stages) > 1:
        return ScheduledDataset(stages, [pretrain_dataset(store, config.within(stage)) for stage in stages])
    clips = pretrain_dataset(store, config, targets)
    return WithImages(clips, image_dataset(config)) if config.images else clips


def _image_flops(config: PretrainConfig, shape: ModelConfig) -> int:
    """Operations of a training step for an image: those of a clip of one slice."""
    shape = replace(shape, num_frames=config.tubelet)
    counts = TokenCounts.of(shape.grid, config.image_mask_ratio, decode_ratio=config.decode_ratio)
    return pretrain_flops(shape, counts.num_masked, counts.num_left_out)


def image_dataset(config: PretrainConfig) -> ImageDataset:
    """The masked images that pretraining with these options reads of its second store. UserError if it has none."""
    store = open_store(config.images).select("videos")
    # Images have no motion, which is what `drop` and guidance go by.
    of_clips = MaskGenerator.of(config)
    mask = replace(of_clips, strategy=config.image_mask, ratio=config.image_mask_ratio, guidance=Guidance(), drop=0.0)
    images = ImageDataset(
        store,
        num_frames=config.tubelet,
        stride=1,
        augment=PretrainAugment(size_px=config.image_px, flip=config.flip),
        repeats=config.repeats,
        seed=config.seed,
        mask=mask,
    )
    if not len(images):
        raise UserError(f"{config.images} has no images to train on")
    return images


def pretrain_dataset(
    store: SampleSource, config: PretrainConfig, targets: tuple[WeightedTarget, ...] | None = None
) -> PretrainDataset:
    """The masked clips that pretraining with these options reads of a store, and what its targets read.

    Their size is that of the end of the run.
    """
    return PretrainDataset(
        store,
        num_frames=config.num_frames,
        stride=config.stride,
        augment=PretrainAugment(size_px=config.image_px, flip=config.flip),
        repeats=config.repeats,
        seed=config.seed,
        short_videos=config.short_videos,
        mask=MaskGenerator.of(config),
        read_field=Guidance.of(config).read,
        read_targets=readers(make_targets(config) if targets is None else targets),
    )

"""Features of all videos of a store as one table, and what their nearest neighbours tell."""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mgm_shared.cli import move_aside
from mgm_shared.errors import UserError
from mgm_shared.lock import one_writer
from mgm_shared.progress import SILENT, Progress
from mgm_shared.samples import Samples
from mgm_shared.storage import StorePath
from mgm_shared.store import open_store
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import EmbedConfig
from mgm_train.evaluation.every_sample import EverySample
from mgm_train.evaluation.features import FeatureCache, Features, FrozenEncoder
from mgm_train.evaluation.knn import knn_probabilities
from mgm_train.evaluation.multiview import sampled_as_trained
from mgm_train.figures.nearest_videos import draw_nearest
from mgm_train.inference.embeddings import (
    NO_VIEW,
    Embeddings,
    check_place,
    nearest,
    read_embeddings,
    sample_vectors,
    write_embeddings,
)
from mgm_train.runtime.distributed import Distributed, init_distributed
from mgm_train.tasks.training_run import say_precision, say_samples

NUM_NEAREST = 9


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """The table that was written and what was asked of it."""

    file: Path
    rows: int
    width: int
    unreadable: list[str]
    """Samples that have no row, because they cannot be read."""
    knn_top1: float | None
    """Share of the samples outside the training split whose 20 nearest training samples vote for their label."""
    nearest: list[tuple[str, float]]
    picture: Path | None


def embed(
    store: str | StorePath,
    out: str | os.PathLike[str],
    config: EmbedConfig,
    *,
    knn: bool = False,
    nearest_to: str = "",
    force: bool = False,
    progress: Progress = SILENT,
) -> EmbedResult | None:
    """Compute the features of the videos of a store with a frozen encoder, and write them as one table.

    The columns are sample_id (of a segment; of a whole video its video_id), video_id, label, split, view and feature
    (float32, computed to float16's precision). What is computed is kept beside the file in OUT.parts until the file is
    complete; the same call again continues from there, and leaves a complete file as it is. With torchrun the samples
    are shared among the processes.

    Args:
        store: Path or URL of a store, with or without labels.
        out: File to write, .parquet or .zarr.
        config: Weights, videos and views.
        knn: Classify the other videos by their 20 nearest training videos (cosine, temperature 0.07).
        nearest_to: The id of a video, or a part of one id; the videos nearest to it are returned, and drawn in
            OUT.nearest.png.
        force: Move an existing file aside, and forget what was computed for it.
        progress: Hears the number of videos that are done.

    Returns:
        The result; None on a process of torchrun that is not the main one.

    Raises:
        KeyboardInterrupt: A stop was requested (Ctrl-C, SIGTERM); what was computed is kept.
        UserError: There are no weights, no videos, or no labels for `knn`; or `out` holds other features.
    """
    if not config.init:
        raise UserError("embed needs --init, the model whose features are wanted")
    file = Path(out)
    check_place(file)
    opened, weights = open_store(store).select(config.samples), load_source(config.init)
    say_samples(opened, progress)
    config, lines = sampled_as_trained(config, weights)
    for line in lines:
        progress.say(line)
    dataset = EverySample(opened, weights.model, config)
    if knn:
        _check_labels(dataset)
    nearest_to = _whole_id(nearest_to, dataset) if nearest_to else ""
    parts = file.with_name(f"{file.name}.parts")
    with init_distributed(config.device) as distributed, ExitStack() as stack:
        distributed.on_main(lambda: _prepare(file, parts, force, progress))
        distributed.on_main(lambda: stack.enter_context(one_writer(parts, progress.say)))
        embeddings = _embeddings(file, parts, dataset, config, weights, distributed, progress)
    if embeddings is None:
        return None
    shutil.rmtree(parts, ignore_errors=True)
    found = nearest(embeddings, nearest_to, NUM_NEAREST) if nearest_to else []
    return EmbedResult(
        file=file,
        rows=len(embeddings),
        width=embeddings.feature_RD.shape[1],
        unreadable=sorted(set(dataset.sample_ids) - set(embeddings.sample_ids)),
        knn_top1=knn_accuracy(embeddings, dataset) if knn else None,
        nearest=found,
        picture=_picture(opened, nearest_to, found, file) if found else None,
    )


def _whole_id(wanted: str, dataset: EverySample) -> str:
    """The id, or the only one of which `wanted` is a part, as in `store[wanted]`. UserError if there is none."""
    ids = dataset.sample_ids
    if wanted in ids:
        return wanted
    found = [sample_id for sample_id in ids if wanted in sample_id]
    if len(found) == 1:
        return found[0]
    noun = dataset.samples.noun
    if found:
        raise UserError(f"{wanted!r} is a part of the id of {len(found)} {noun}, such as {found[0]!r} and {found[1]!r}")
    raise UserError(f"there is no {wanted!r} among the {noun}; such as {ids[0]!r} there is")


def _check_labels(dataset: EverySample) -> None:
    """UserError unless training videos can vote on others."""
    if None in dataset.label_of_row:
        sample_id = dataset.sample_ids[dataset.label_of_row.index(None)]
        raise UserError(f"--knn needs labels, and {sample_id!r} has none; `mgm-prep labels` attaches them")
    if len(set(dataset.is_training.tolist())) < 2:
        raise UserError(
            f"--knn needs {dataset.samples.noun} of split 'train' and of another; {dataset.store.path} has not both"
        )


def _prepare(file: Path, parts: Path, force: bool, progress: Progress) -> None:
    if force:
        shutil.rmtree(parts, ignore_errors=True)
        if aside := move_aside(file):
            progress.say(f"moved the old {file} to {aside}")
    parts.mkdir(parents=True, exist_ok=True)


def _embeddings(
    file: Path,
    parts: Path,
    dataset: EverySample,
    config: EmbedConfig,
    weights: Weights,
    distributed: Distributed,
    progress: Progress,
) -> Embeddings | None:
    """The table from its file, or computed and written; None on the processes that are not the main one."""
    cache = FeatureCache.of(parts, weights, dataset, distributed)
    key = json.dumps({**json.loads(cache.key), "per_view": str(config.per_view)}, sort_keys=True)
    if file.exists():
        return distributed.on_main(lambda: _written(file, key))
    say_precision(config.precision, distributed, progress)
    model = FrozenEncoder(weights).to(distributed.device)
    if not cache.compute(model, dataset, distributed, progress):
        raise KeyboardInterrupt
    return distributed.on_main(lambda: _write(file, cache.load(len(dataset)), dataset, config, key))


def _written(file: Path, key: str) -> Embeddings:
    embeddings, had = read_embeddings(file)
    if had != key:
        raise UserError(f"{file} holds features of another model, store or view; take another name, or --force")
    return embeddings


def _write(file: Path, features: Features, dataset: EverySample, config: EmbedConfig, key: str) -> Embeddings:
    place_of = {sample_id: place for place, sample_id in enumerate(dataset.sample_ids)}
    places = [place_of[sample_id] for sample_id in features.sample_ids]
    video_ids = dataset.video_ids
    feature_NVD = features.feature_NVD.float().numpy()
    embeddings = Embeddings(
        feature_RD=feature_NVD if config.per_view else feature_NVD.mean(axis=1),
        sample_ids=features.sample_ids,
        video_ids=[video_ids[place] for place in places],
        labels=[dataset.label_of_row[place] for place in places],
        splits=[dataset.split_of_row[place] for place in places],
        view_R=np.full(len(places), NO_VIEW, np.int16),
    )
    if config.per_view:
        embeddings = embeddings.with_views(feature_NVD.shape[1])
    write_embeddings(file, embeddings, key)
    return embeddings


def knn_accuracy(embeddings: Embeddings, dataset: EverySample) -> float:
    """Share of the samples outside the training split whose nearest training samples vote for their label."""
    vector_ND, starts = sample_vectors(embeddings)
    classes, label_N = np.unique([embeddings.labels[row] or "" for row in starts], return_inverse=True)
    training = {name for name, is_one in zip(dataset.sample_ids, dataset.is_training.tolist(), strict=True) if is_one}
    is_train_N = torch.tensor([embeddings.sample_ids[row] in training for row in starts])
    vectors, labels = torch.from_numpy(vector_ND), torch.from_numpy(label_N)
    votes_SK = knn_probabilities(vectors[is_train_N], labels[is_train_N], vectors[~is_train_N], len(classes))
    return float((votes_SK.argmax(dim=1) == labels[~is_train_N]).double().mean())


def _picture(samples: Samples, sample_id: str, found: list[tuple[str, float]], file: Path) -> Path:
    picture = file.with_name(f"{file.name}.nearest.png")
    draw_nearest(samples, sample_id, found, picture)
    return picture

"""Features of many samples (videos or segments) as a table: Parquet or Zarr, a row for each sample or view.

Axes: N samples · V views · R rows of the table (N, or N·V) · D width.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.files import replace_file

PARQUET, ZARR = ".parquet", ".zarr"
# Names the weights, the store and the views that a file was made of.
KEY = "mgm_embedding"
NO_VIEW = -1
NAMES = ("sample_id", "video_id", "label", "split")


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Features (R, D) float32 and what each row is; `view_R` is −1 for the mean of all views."""

    feature_RD: NDArray[np.float32]
    sample_ids: Sequence[str]
    video_ids: Sequence[str]
    labels: Sequence[str | None]
    splits: Sequence[str | None]
    view_R: NDArray[np.int16]

    def with_views(self, num_views: int) -> "Embeddings":
        """The same with each row for `num_views` views: `feature_RD` has all views of a sample, one after the other."""
        names = {
            name: [value for value in getattr(self, name) for _ in range(num_views)]
            for name in ("sample_ids", "video_ids", "labels", "splits")
        }
        view_R = np.tile(np.arange(num_views, dtype=np.int16), len(self.sample_ids))
        return Embeddings(feature_RD=self.feature_RD.reshape(len(view_R), -1), view_R=view_R, **names)

    def __len__(self) -> int:
        return len(self.sample_ids)


def check_place(path: Path) -> None:
    """UserError unless the name says Parquet or Zarr."""
    if path.suffix not in (PARQUET, ZARR):
        raise UserError(f"{path} must end in {PARQUET} or {ZARR}")


def write_embeddings(path: Path, embeddings: Embeddings, key: str) -> None:
    """Write the table; it is whole or not there."""
    check_place(path)
    if path.suffix == PARQUET:
        replace_file(path, lambda beside: pq.write_table(_table(embeddings, key), beside))
        return
    beside = path.with_name(f".{path.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    _write_zarr(beside, embeddings, key)
    os.replace(beside, path)


def _table(embeddings: Embeddings, key: str) -> pa.Table:
    width = embeddings.feature_RD.shape[1]
    features = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.feature_RD.reshape(-1)), width)
    columns: dict[str, Any] = {
        "sample_id": pa.array(embeddings.sample_ids, pa.string()),
        "video_id": pa.array(embeddings.video_ids, pa.string()),
        "label": pa.array(embeddings.labels, pa.string()),
        "split": pa.array(embeddings.splits, pa.string()),
        "view": pa.array(embeddings.view_R, pa.int16(), mask=embeddings.view_R == NO_VIEW),
        "feature": features,
    }
    return pa.table(columns).replace_schema_metadata({KEY: key})


def _write_zarr(folder: Path, embeddings: Embeddings, key: str) -> None:
    import zarr

    names = {"sample_id": embeddings.sample_ids, "video_id": embeddings.video_ids}
    texts = {**names, "label": embeddings.labels, "split": embeddings.splits}
    # Zarr 3 has no stable type for text of any length yet, so the names are attributes.
    attributes = {KEY: json.loads(key), **{name: list(values) for name, values in texts.items()}}
    group = zarr.create_group(folder, attributes=attributes)
    group.create_array(
        "feature", data=embeddings.feature_RD, chunks=(min(4096, len(embeddings)), embeddings.feature_RD.shape[1])
    )
    group.create_array("view", data=embeddings.view_R)


def read_embeddings(path: Path) -> tuple[Embeddings, str]:
    """The table and its key. UserError if it is no such file."""
    check_place(path)
    try:
        return _from_parquet(path) if path.suffix == PARQUET else _from_zarr(path)
    except (pa.ArrowInvalid, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} holds no embeddings of mgm-train; take another name, or --force") from error


def _from_parquet(path: Path) -> tuple[Embeddings, str]:
    table = pq.read_table(path)
    key = (table.schema.metadata or {})[KEY.encode()].decode()
    flat = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    view_R = table["view"].fill_null(NO_VIEW).to_numpy().astype(np.int16)
    names = {name: table[name].to_pylist() for name in NAMES}
    return _embeddings(flat.reshape(len(table), -1), view_R, names), key


def _from_zarr(path: Path) -> tuple[Embeddings, str]:
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    names = {name: group.attrs[name] for name in NAMES}
    return _embeddings(group["feature"][:], group["view"][:], names), json.dumps(group.attrs[KEY], sort_keys=True)


def _embeddings(feature_RD: NDArray[np.float32], view_R: NDArray[np.int16], names: dict[str, Any]) -> Embeddings:
    return Embeddings(
        feature_RD=feature_RD,
        sample_ids=names["sample_id"],
        video_ids=names["video_id"],
        labels=names["label"],
        splits=names["split"],
        view_R=view_R,
    )


def sample_vectors(embeddings: Embeddings) -> tuple[NDArray[np.float32], list[int]]:
    """A vector of length 1 for each sample (N, D), the mean of its rows scaled to length 1; and its first row."""
    is_first_R = np.ones(len(embeddings), bool)
    is_first_R[1:] = [
        one != other for one, other in zip(embeddings.sample_ids[1:], embeddings.sample_ids, strict=False)
    ]
    starts = np.flatnonzero(is_first_R)
    sum_ND = np.add.reduceat(_unit(embeddings.feature_RD), starts, axis=0)
    return _unit(sum_ND), starts.tolist()


def _unit(vector_RD: NDArray[np.float32]) -> NDArray[np.float32]:
    length_R1 = np.linalg.norm(vector_RD, axis=1, keepdims=True)
    unit_RD: NDArray[np.float32] = (vector_RD / np.maximum(length_R1, 1e-12)).astype(np.float32)
    return unit_RD


def nearest(embeddings: Embeddings, sample_id: str, count: int) -> list[tuple[str, float]]:
    """The samples with the largest cosine similarity to a sample, without itself, as (sample_id, similarity).

    UserError if there is no such sample.
    """
    vector_ND, starts = sample_vectors(embeddings)
    names = [embeddings.sample_ids[row] for row in starts]
    if sample_id not in names:
        raise UserError(f"there is no feature of {sample_id!r}; such as {names[0]!r} there is")
    own = names.index(sample_id)
    similarity_N = vector_ND @ vector_ND[own]
    similarity_N[own] = -np.inf
    best = np.argsort(-similarity_N, kind="stable")[: min(count, len(names) - 1)]
    return [(names[row], float(similarity_N[row])) for row in best.tolist()]

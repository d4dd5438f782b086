"""The table of the videos of a store, in Arrow: one row per video, sorted by video_id.

`index.parquet` is derived from the parts. When it does not name exactly the parts that exist, the table is read
from the parts. It is in Arrow because 240,000 rows of Python objects take seconds and half a gigabyte per process.

pyarrow imports pandas, which takes half a second, when it converts Python or numpy values. This module avoids that:
rows come in as JSON, and columns go out through DLPack.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgm_shared.schema import INDEX_FILE, LABELS_FILE, PARTS_DIR, VideoRecord
from mgm_shared.storage import (
    StorePath,
    folder_names,
    group_names,
    read_bytes,
    read_files,
    read_rows,
    write_bytes,
)
from mgm_shared.store_files import METADATA_FILE

_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    str | None: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
}

INDEX_SCHEMA = pa.schema(
    [(record_field.name, _ARROW_TYPES[record_field.type]) for record_field in fields(VideoRecord)]
    + [("part", pa.string()), ("height", pa.int64()), ("width", pa.int64())]
)

# Number of parts whose metadata is read at a time.
PARTS_AT_ONCE = 256

# The columns that decide which pixels and labels a training run reads.
DATA_COLUMNS = ("video_id", "part", "start", "num_frames", "label", "split")


def committed_parts(store_path: StorePath) -> list[str]:
    """Names of the finished parts, sorted."""
    return group_names(store_path / PARTS_DIR)


def part_attributes(store_path: StorePath, part: str) -> dict[str, Any]:
    """A part's own attributes: height, width, videos, failures."""
    attributes: dict[str, Any] = json.loads(read_bytes(store_path / PARTS_DIR / part / METADATA_FILE))["attributes"]
    return attributes


def all_attributes(store_path: StorePath) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and attributes of each finished part, sorted by name."""
    names = committed_parts(store_path)
    for start in range(0, len(names), PARTS_AT_ONCE):
        some = names[start : start + PARTS_AT_ONCE]
        files = read_files([store_path / PARTS_DIR / name / METADATA_FILE for name in some])
        yield from ((name, json.loads(content)["attributes"]) for name, content in zip(some, files, strict=True))


def read_labels(store_path: StorePath) -> dict[str, dict[str, str | None]]:
    """Labels and splits that `mgm-prep labels` attached, by video_id. They replace those in the part."""
    return {row.pop("video_id"): row for row in read_rows(store_path / LABELS_FILE)}


def read_index(store_path: StorePath) -> pa.Table:
    """The table of videos, read from the parts themselves and the attached labels."""
    attached = read_labels(store_path)
    # A part and the part that replaces it may both exist for a moment, or after a kill.
    replaced: set[str | None] = set()
    # Rows are converted to JSON at once: as dictionaries 240,000 rows take half a gigabyte.
    rows: list[tuple[str, str, str]] = []
    for part, attributes in all_attributes(store_path):
        replaced.add(attributes.get("replaces"))
        place = {"part": part, "height": attributes["height"], "width": attributes["width"]}
        for video in attributes["videos"]:
            row = video | place | attached.get(video["video_id"], {})
            rows.append((video["video_id"], part, json.dumps(row)))
    rows.sort()
    return _table([line for _, part, line in rows if part not in replaced])


def _table(lines: list[str]) -> pa.Table:
    if not lines:
        return INDEX_SCHEMA.empty_table()
    options = pa.json.ParseOptions(explicit_schema=INDEX_SCHEMA, unexpected_field_behavior="error")
    source = pa.BufferReader("\n".join(lines).encode())
    return pa.json.read_json(source, parse_options=options).combine_chunks()


def write_index(store_path: StorePath) -> pa.Table:
    """Rebuild index.parquet from the parts."""
    table = read_index(store_path)
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    write_bytes(store_path / INDEX_FILE, content.getvalue().to_pybytes())
    return table


def open_index(store_path: StorePath) -> pa.Table:
    """The table of videos, from index.parquet, or from the parts if the index is missing or incomplete."""
    try:
        # Not `pq.read_table`: it imports pandas.
        with pq.ParquetFile(pa.BufferReader(read_bytes(store_path / INDEX_FILE))) as file:
            table = file.read(columns=INDEX_SCHEMA.names).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except FileNotFoundError:
        return read_index(store_path)
    # An extraction that was killed leaves parts that are not in the index. Behind a URL this listing also contains
    # unfinished uploads, and takes one request per thousand parts instead of twenty.
    is_current = set(table["part"].unique().to_pylist()) == set(folder_names(store_path / PARTS_DIR))
    return table.combine_chunks() if is_current else read_index(store_path)


def extracted_ids(store_path: StorePath) -> set[str]:
    """The ids of the videos in the store."""
    return set(open_index(store_path)["video_id"].to_pylist())


def find_row(table: pa.Table, video_id: str) -> int | None:
    """The row of a video, or None if the table does not have it."""
    ids = table["video_id"]
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ids[middle].as_py() < video_id else (low, middle)
    return low if low < len(ids) and ids[low].as_py() == video_id else None


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of numbers as an array; a view."""
    return np.from_dlpack(table[name].combine_chunks())


def codes(table: pa.Table, name: str) -> tuple[NDArray[np.int32], list[str | None]]:
    """A column of text, dictionary encoded: the code of each row, and the text of each code (None for missing)."""
    encoded = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(np.from_dlpack(encoded.indices), np.int32), encoded.dictionary.to_pylist()


def digest(table: pa.Table, columns: Sequence[str] = DATA_COLUMNS) -> str:
    """A hash of the data that a training run reads: which frames of which videos lie where, with which label."""
    running = hashlib.sha256()
    for name in columns:
        if table.schema.field(name).type == pa.string():
            code_of_row, texts = codes(table, name)
            running.update(json.dumps(texts).encode())
            running.update(code_of_row.astype("<i4").tobytes())
        else:
            running.update(numbers(table, name).astype("<i8").tobytes())
    return running.hexdigest()[:16]

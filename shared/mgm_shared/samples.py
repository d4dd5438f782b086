"""Samples: what a training, a test or an embedding reads. A sample is a whole video or a segment, a place in a video.

The segments of a store are in segments.parquet, beside the parts: one row a segment, in the order of the files that
`mgm-prep labels` read. Several segments may lie in one video, and they may overlap. Without segments every video is a
sample, so code that reads samples needs no second way.

Samples are kept in columns (Arrow and numpy), since a million Python objects take seconds and a gigabyte. Axis: N
samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mgm_shared import index
from mgm_shared.errors import UserError
from mgm_shared.schema import SEGMENTS_FILE
from mgm_shared.storage import StorePath, read_bytes, write_bytes
from mgm_shared.store import Store, Video

if TYPE_CHECKING:
    import pandas as pd

SampleKind = Literal["auto", "videos", "segments"]

SEGMENTS_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("video_id", pa.string()),
        # Both belong to the segment; counted from 0, in the order of the presentation times.
        ("first_frame", pa.int64()),
        ("last_frame", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
    ]
)


# The columns that decide which frames and labels a training run reads, beside those of the videos.
DATA_COLUMNS = ("video_id", "first_frame", "last_frame", "label", "split")


class SampleSource(Protocol):
    """What datasets read: `Samples`, or a `Store`, whose samples are its videos.

    `table` has a row for each sample with its `label` and `split`.
    """

    @property
    def path(self) -> StorePath: ...

    @property
    def address(self) -> str: ...

    @property
    def table(self) -> pa.Table: ...

    @property
    def digest(self) -> str: ...

    def video_at(self, row: int) -> Video: ...


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one kind of a store, in order. It holds no open file and is cheap to pickle.

    for sample in open_store("my.store").select():
        print(sample.sample_id, sample.video_id, sample.label, sample.frames[0].shape)
    """

    store: Store
    is_segments: bool

    @property
    def path(self) -> StorePath:
        return self.store.path

    @property
    def address(self) -> str:
        """Where the store is, for records of runs."""
        return self.store.address

    @property
    def noun(self) -> str:
        """What to call the samples in messages."""
        return "segments" if self.is_segments else "videos"

    @cached_property
    def table(self) -> pa.Table:
        """One row a sample: sample_id, video_id, first_frame, last_frame, label, split."""
        return _with_splits(read_segments(self.path), self.store) if self.is_segments else _whole_videos(self.store)

    @cached_property
    def video_row_N(self) -> NDArray[np.int64]:
        """The row of each sample's video in `store.table`. UserError where the store has no such video or frame."""
        if not self.is_segments:
            return np.arange(len(self.table))
        row_N, problem = _video_rows(self.table, self.store.table)
        if problem:
            raise UserError(f"{self.path}: {problem}; attach the segments again with `mgm-prep labels`")
        return row_N

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """`table` as a pandas DataFrame, indexed by sample_id. A missing label or split is None."""
        import pandas as pd

        columns = {
            name: np.array(column.to_pylist(), object) if pa.types.is_string(column.type) else column.to_numpy()
            for name, column in zip(self.table.column_names, self.table.columns, strict=True)
        }
        return pd.DataFrame(columns).set_index("sample_id")

    @cached_property
    def digest(self) -> str:
        """A hash of the data that a training run reads; equal samples of equal stores have equal digests."""
        if self.is_segments:
            return f"{self.store.digest}-{index.digest(self.table, DATA_COLUMNS)}"
        videos = self.store.table
        return index.digest(videos.set_column(videos.column_names.index("split"), "split", self.table["split"]))

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Video]:
        return map(self.video_at, range(len(self)))

    def video_at(self, row: int) -> Video:
        """The sample in a row of `table`: a `Video` that has the frames, the label and the split of the sample."""
        video = self.store.video_at(int(self.video_row_N[row]))
        if not self.is_segments:
            return Video(video.part, video.video_id, video.record | {"split": self.table["split"][row].as_py()})
        values = {name: self.table[name][row].as_py() for name in SEGMENTS_SCHEMA.names if name != "video_id"}
        return video.segment(values.pop("first_frame"), values.pop("last_frame"), **values)

    def find(self, sample_id: str) -> Video | None:
        """The sample with this id, or None."""
        row = pc.index(self.table["sample_id"], pa.scalar(sample_id)).as_py() if len(self) else -1
        return self.video_at(row) if row >= 0 else None

    def describe(self) -> str:
        """The number of samples, for messages."""
        if not self.is_segments:
            return f"{len(self)} videos"
        return f"{len(self)} segments of {len(np.unique(self.video_row_N))} videos"

    def __getstate__(self) -> dict[str, Any]:
        # The table is left out: a spawned worker reads it faster than it could be sent.
        return {"store": self.store, "is_segments": self.is_segments}


def select(store: Store, kind: SampleKind = "auto") -> Samples:
    """The samples of a kind; see `Store.select`."""
    segments = Samples(store, is_segments=True)
    if kind == "videos" or (kind == "auto" and not len(segments)):
        return Samples(store, is_segments=False)
    if not len(segments):
        raise UserError(f"{store.path} has no segments; attach some with `mgm-prep labels {store.path} FILE`")
    # Segments that do not fit are an error here, and not in a worker.
    _ = segments.video_row_N
    return segments


def num_segments(path: StorePath) -> int:
    """The number of segments of a store; 0 where it has no table of them."""
    return len(read_segments(path))


def segment_problem(store: Store) -> str:
    """Why the segments of a store do not fit to its videos; empty where they do."""
    return _video_rows(read_segments(store.path), store.table)[1]


def write_segments(path: StorePath, table: pa.Table) -> None:
    """Replace the table of segments of a store."""
    content = pa.BufferOutputStream()
    pq.write_table(table.select(SEGMENTS_SCHEMA.names).cast(SEGMENTS_SCHEMA), content)
    write_bytes(path / SEGMENTS_FILE, content.getvalue().to_pybytes())


def read_segments(path: StorePath) -> pa.Table:
    """The table of segments as it was attached; empty where there is none. UserError for a damaged one."""
    try:
        content = read_bytes(path / SEGMENTS_FILE)
    except FileNotFoundError:
        return SEGMENTS_SCHEMA.empty_table()
    try:
        # Not `pq.read_table`: it imports pandas.
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            table = file.read(columns=SEGMENTS_SCHEMA.names).select(SEGMENTS_SCHEMA.names)
            return table.cast(SEGMENTS_SCHEMA).combine_chunks()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{path / SEGMENTS_FILE} is damaged or of another version ({error}); attach the segments again with "
            "`mgm-prep labels`"
        ) from None


def _with_splits(segments: pa.Table, store: Store) -> pa.Table:
    """The segments, of which one without a split has that of its video."""
    if not segments["split"].null_count:
        return segments
    videos = store.table
    of_video = videos["split"].combine_chunks()
    row_N = pc.index_in(segments["video_id"], videos["video_id"].combine_chunks()).combine_chunks()
    split = pc.coalesce(segments["split"], of_video.take(row_N))
    return segments.set_column(segments.column_names.index("split"), SEGMENTS_SCHEMA.field("split"), split)


def _whole_videos(store: Store) -> pa.Table:
    """Each video as a sample. One without a split has that of its segments, if they are all of one split.

    Otherwise a pretraining on whole videos would read the videos that the segments keep for the test.
    """
    videos, segments = store.table, read_segments(store.path)
    split = videos["split"]
    if len(segments):
        split = pc.coalesce(split, _split_of_segments(segments, videos))
    last_frame = pc.subtract(videos["num_frames"], pa.scalar(1, pa.int64()))
    first_frame = pc.multiply(videos["num_frames"], pa.scalar(0, pa.int64()))
    columns = [videos["video_id"], videos["video_id"], first_frame, last_frame, videos["label"], split]
    return pa.Table.from_arrays(columns, schema=SEGMENTS_SCHEMA)


def _split_of_segments(segments: pa.Table, videos: pa.Table) -> pa.Array:
    """For each video the split of its segments; `none` where they are of several, and null without segments."""
    split = pc.fill_null(segments["split"], "")
    named = pa.table({"video_id": segments["video_id"], "split": split})
    found = named.group_by("video_id").aggregate([("split", "min"), ("split", "max")])
    one = pc.if_else(pc.equal(found["split_min"], found["split_max"]), found["split_min"], pa.scalar("none"))
    one = pc.if_else(pc.equal(one, ""), pa.scalar(None, pa.string()), one).combine_chunks()
    return one.take(pc.index_in(videos["video_id"], found["video_id"].combine_chunks()))


def _video_rows(segments: pa.Table, videos: pa.Table) -> tuple[NDArray[np.int64], str]:
    """The row of each segment's video, and what does not fit, in words."""
    row_N = pc.index_in(segments["video_id"], videos["video_id"].combine_chunks())
    if row_N.null_count:
        video_id = segments["video_id"].filter(pc.is_null(row_N))[0].as_py()
        return np.empty(0, np.int64), f"{row_N.null_count} segments are of videos that it lacks, such as {video_id!r}"
    rows = np.asarray(np.from_dlpack(row_N.cast(pa.int64()).combine_chunks()), np.int64)
    first_N, last_N = (index.numbers(segments, name) for name in ("first_frame", "last_frame"))
    num_frames_N = index.numbers(videos, "num_frames")[rows]
    is_outside_N = (first_N < 0) | (first_N > last_N) | (last_N >= num_frames_N)
    if is_outside_N.any():
        sample_id = segments["sample_id"][int(is_outside_N.argmax())].as_py()
        return rows, f"{is_outside_N.sum()} segments lie outside of their video, such as {sample_id!r}"
    return rows, ""

"""Open a store and look at its videos: `open_store(path)["clip.mp4"].frames[0:64:4]`. No torch, no decoder, no Dask.

Axes: T frames · H,W pixels · C = RGB · Y,X cells of 8×8 px · 2 = (dx, dy) pixels per frame, NaN where missing.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mgm_shared import index
from mgm_shared.codec import Planes
from mgm_shared.errors import UserError
from mgm_shared.lookup import find_video_row
from mgm_shared.objects import Url
from mgm_shared.raw_motion import motion_from
from mgm_shared.schema import PARTS_DIR, SCHEMA_VERSION, unpack_motion
from mgm_shared.shard_reader import ShardedArray
from mgm_shared.storage import StorePath, is_file, read_bytes, store_path
from mgm_shared.store_files import METADATA_FILE
from mgm_shared.time_view import Convert, TimeView, as_stored

# pandas takes a quarter of a second to import. Only `Store.videos` imports it.
if TYPE_CHECKING:
    import pandas as pd
    import xarray
    from matplotlib.figure import Figure

    from mgm_shared.samples import SampleKind, Samples

# What `Video.to_xarray` decodes itself.
MOTION_ARRAYS = ("motion", "flow")


def open_store(path: str | os.PathLike[str] | Url) -> "Store":
    """Open the store at `path`, or at a URL such as s3://bucket/ssv2.store, for reading.

    UserError if there is no store, if its schema has another version, or if the URL cannot be reached.
    """
    store = Store(store_path(path))
    check_schema(store.path)
    return store


def check_schema(path: StorePath) -> dict[str, Any]:
    """The attributes of the root group. UserError unless this is a store of this schema version."""
    try:
        attributes: dict[str, Any] = json.loads(read_bytes(path / METADATA_FILE))["attributes"]
        version = attributes["mgm_schema_version"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path} is not an mgm store; make one with `mgm-prep extract VIDEOS {path}`") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has store schema {version}, this mgm reads schema {SCHEMA_VERSION}; "
            f"extract it again, or install the mgm version that wrote it"
        )
    return attributes


@dataclass(frozen=True)
class Store:
    """A store: a table of videos, each with its arrays. It holds no open file and is cheap to pickle.

    It is a sequence of videos, sorted by id: `len(store)`, `store[3]`, `store[-2:]`, `for video in store`.
    """

    path: StorePath

    @cached_property
    def table(self) -> pa.Table:
        """One row a video, sorted by video_id, in Arrow: the fields of `VideoRecord` and part, height, width."""
        return index.open_index(self.path)

    @cached_property
    def videos(self) -> "pd.DataFrame":
        """`table` as a pandas DataFrame, indexed by video_id. A missing label or split is None."""
        import pandas as pd

        # Text becomes str and None in every version of pandas: NaN for a missing label would be truthy.
        columns = {
            name: np.array(column.to_pylist(), object) if pa.types.is_string(column.type) else column.to_numpy()
            for name, column in zip(self.table.column_names, self.table.columns, strict=True)
        }
        return pd.DataFrame(columns).set_index("video_id")

    @cached_property
    def samples(self) -> "pd.DataFrame":
        """What a training reads, one row a sample, indexed by sample_id: the segments, or without them the videos.

        The columns are video_id, first_frame and last_frame (both belong to the sample), label and split.
        """
        return self.select().frame

    def select(self, kind: "SampleKind" = "auto") -> "Samples":
        """The samples of a kind: whole `videos`, or places in them, `segments`; auto: segments where there are some.

        UserError for segments of a store without them, and for segments that do not fit to the videos of the store.
        """
        from mgm_shared.samples import select

        return select(self, kind)

    @cached_property
    def digest(self) -> str:
        """A hash of the data that a training run reads; equal stores have equal digests."""
        return index.digest(self.table)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the root group: schema version, extraction settings, library versions."""
        return check_schema(self.path)

    @property
    def address(self) -> str:
        """Where the store lies: an absolute path, or a URL."""
        return str(self.path) if isinstance(self.path, Url) else str(self.path.absolute())

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator["Video"]:
        return map(self.video_at, range(len(self)))

    def __contains__(self, video: object) -> bool:
        """Whether the store has this video, or a video or segment with exactly this id."""
        if isinstance(video, Video):
            return video.video_id in self and self[video.video_id] == video
        return isinstance(video, str) and self._find(video) is not None

    @overload
    def __getitem__(self, wanted: str | os.PathLike[str] | SupportsIndex) -> "Video": ...
    @overload
    def __getitem__(self, wanted: slice) -> "list[Video]": ...

    def __getitem__(self, wanted: str | os.PathLike[str] | SupportsIndex | slice) -> "Video | list[Video]":
        """A video or segment by its id, a video by its path, a part of its id, or its place; a list for a slice.

        Text is an id, a path that was given to `mgm-prep extract`, or a part of exactly one video's id. A number is a
        row of `videos`. NoSuchVideo, which is a UserError and a KeyError, when no id or several ids fit; IndexError
        for a row that is not there.
        """
        if isinstance(wanted, slice):
            return [self.video_at(row) for row in range(len(self))[wanted]]
        if not isinstance(wanted, str | os.PathLike):
            return self.video_at(range(len(self))[wanted])
        name = os.fspath(wanted)
        found = self._find(name)
        return self.video_at(find_video_row(self.table, name, str(self.path))) if found is None else found

    def sample(self, k: int, seed: int = 0) -> "list[Video]":
        """`k` different videos at random, in the order of the store. The same seed gives the same videos.

        UserError when the store has fewer.
        """
        if not 0 <= k <= len(self):
            raise UserError(f"{self.path} has {len(self)} videos, so a sample of {k} is not possible")
        rows = np.random.default_rng(seed).choice(len(self), k, replace=False)
        return [self.video_at(int(row)) for row in sorted(rows)]

    def video_at(self, row: int) -> "Video":
        """The video in a row of `table`."""
        names, columns = self.table.column_names, self.table.columns
        record = {name: column[row].as_py() for name, column in zip(names, columns, strict=True)}
        return Video(self.path / PARTS_DIR / record["part"], record.pop("video_id"), record)

    def _find(self, sample_id: str) -> "Video | None":
        row = index.find_row(self.table, sample_id)
        return self.video_at(row) if row is not None else self._segments.find(sample_id)

    @cached_property
    def _segments(self) -> "Samples":
        """The segments, of which there may be none."""
        from mgm_shared.samples import Samples

        return Samples(self, is_segments=True)

    def __getstate__(self) -> dict[str, Any]:
        # The cached table is left out: a spawned worker reads it faster than it could be sent.
        return {"path": self.path}

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {len(self)} videos, {index.numbers(self.table, 'num_frames').sum()} frames)"

    def _repr_html_(self) -> str:
        """What a notebook shows: counts, and frames of some videos."""
        from mgm_shared.notebook import store_html

        return store_html(self)


@dataclass(frozen=True, repr=False)
class Video:
    """One video of a store, or a segment of it. Its arrays are read when they are indexed.

    A segment is used as a video that has only the segment's frames: frame 0 is its first one. Its times are those of
    the whole video.
    """

    part: StorePath
    video_id: str
    record: dict[str, Any]
    """The video's row of `Store.videos`. A segment's `start`, `num_frames`, `label` and `split` are its own."""

    @property
    def sample_id(self) -> str:
        """The id of the segment; of a whole video its `video_id`."""
        return str(self.record.get("sample_id", self.video_id))

    @property
    def first_frame(self) -> int:
        """The frame of the whole video at which the segment begins; 0 for a whole video."""
        return int(self.record.get("first_frame", 0))

    def segment(
        self,
        first_frame: int,
        last_frame: int,
        *,
        sample_id: str | None = None,
        label: str | None = None,
        split: str | None = None,
    ) -> "Video":
        """The frames `first_frame` to `last_frame`, both included, as a video of their own. Nothing is copied.

        IndexError for frames that the video does not have.
        """
        if not 0 <= first_frame <= last_frame < self.num_frames:
            raise IndexError(f"{self.sample_id} has {self.num_frames} frames, not {first_frame} to {last_frame}")
        place = {"start": self._span.start + first_frame, "num_frames": last_frame - first_frame + 1}
        name = sample_id or f"{self.video_id}#{self.first_frame + first_frame}-{self.first_frame + last_frame}"
        about = {"label": label, "split": split, "sample_id": name, "first_frame": self.first_frame + first_frame}
        return Video(self.part, self.video_id, self.record | place | about)

    @property
    def num_frames(self) -> int:
        return int(self.record["num_frames"])

    @property
    def fps(self) -> float:
        return float(self.record["fps"])

    @property
    def label(self) -> str | None:
        label: str | None = self.record["label"]
        return label

    @property
    def split(self) -> str | None:
        split: str | None = self.record["split"]
        return split

    @property
    def height(self) -> int:
        return int(self.record["height"])

    @property
    def width(self) -> int:
        return int(self.record["width"])

    @property
    def frames(self) -> "TimeView":
        """uint8 RGB, (T, H, W, 3)."""
        return self._view("frames", "uint8", as_stored)

    def pictures(self, indices_T: NDArray[np.int64]) -> Iterator[Planes | NDArray[np.uint8]]:
        """The frames at ascending `indices_T`, one after the other, as they are stored: see `ShardedArray.pictures`."""
        return self.frames.array.pictures(indices_T + self._span.start)

    @property
    def frame_codec(self) -> str:
        """How the frames are stored: jpeg, planes, or zstd."""
        return self.frames.array.codec

    def stored_pictures(self, indices_T: NDArray[np.int64]) -> list[memoryview]:
        """The frames at `indices_T` as they are stored, such as JPEG files. OSError for damaged data."""
        return self.frames.array.stored_pictures(indices_T + self._span.start)

    @property
    def motion(self) -> "TimeView":
        """float32 (T, Y, X, 2): displacement of each cell since the frame before, in px per frame; NaN = no vector."""
        return self._view("motion", "float32", unpack_motion)

    @property
    def flow(self) -> "TimeView":
        """Optical flow in the layout of `motion`; NaN for the first frame. UserError before `mgm-prep flow` has run."""
        try:
            return self._view("flow", "float32", unpack_motion)
        except FileNotFoundError:
            raise UserError(f"{self.part} has no flow; `mgm-prep flow` puts it into the store") from None

    @property
    def has_flow(self) -> bool:
        """Whether `mgm-prep flow` has run on the part of the video."""
        return is_file(self.part / "flow" / METADATA_FILE)

    @property
    def packed_motion(self) -> "TimeView":
        """`motion` as it is stored: int16, in units of 1/16 px, `schema.MISSING` = no vector."""
        return self._view("motion", "int16", as_stored)

    @property
    def time_s(self) -> NDArray[np.float64]:
        """(T,) presentation times in seconds. The first is the one in the container, often 0."""
        return np.asarray(self._track("time"))

    @property
    def picture_type(self) -> NDArray[np.uint8]:
        """(T,) indices into `schema.PICTURE_TYPES`: 1 = I, 2 = P, 3 = B."""
        return np.asarray(self._track("picture_type"))

    def to_xarray(self) -> "xarray.Dataset":
        """The video as an xarray Dataset, lazily read, with time in seconds as its coordinate.

        `motion` is float32 in px per frame, NaN where missing. The attributes are the video's own: those of `record`
        that are known, and `video_id`.
        """
        import xarray

        # Not decoded by xarray, which takes float64 for a scale that JSON holds.
        part = xarray.open_zarr(str(self.part), consolidated=False, mask_and_scale=False)
        # The chunks and codecs of the part are no good for writing one video of it elsewhere.
        dataset: xarray.Dataset = part.isel(time=self._span).drop_encoding()
        for name in dataset.data_vars.keys() & set(MOTION_ARRAYS):
            dataset[name] = motion_from(dataset[name])
        dataset.attrs = {"video_id": self.video_id} | {k: v for k, v in self.record.items() if v is not None}
        return dataset

    def plot(self, num_frames: int = 8) -> "Figure":
        """Draw frames from the whole video with their motion, as arrows and as colours (extra `notebook`)."""
        from mgm_shared.notebook import video_figure

        return video_figure(self, num_frames)

    def _repr_html_(self) -> str:
        """What a notebook shows: a strip of frames with their motion, and the record."""
        from mgm_shared.notebook import video_html

        return video_html(self)

    def __len__(self) -> int:
        return self.num_frames

    def __repr__(self) -> str:
        return (
            f"Video({self.sample_id!r}: {self.num_frames} frames of {self.height}×{self.width} px at "
            f"{self.fps:.4g} fps, label {self.label!r}, split {self.split!r})"
        )

    @property
    def _span(self) -> slice:
        start = int(self.record["start"])
        return slice(start, start + self.num_frames)

    def _view(self, name: str, dtype: str, convert: "Convert") -> "TimeView":
        return TimeView(ShardedArray.open(self.part / name), self._span.start, self.num_frames, dtype, convert)

    def _track(self, name: str) -> Any:
        import zarr

        array = zarr.open_array(str(self.part / name), mode="r")
        return array[self._span]

"""The store's format, schema 1: which arrays a part has, their axes, types, chunks and codecs.

A store is a plain Zarr v3 hierarchy. `parts/256x344-000017` is a group that holds the videos of one stored size
(height × width), concatenated in time; where each video starts is in the group's attribute `videos`.

Axes: time, y, x, channel of frames · cell_y, cell_x of 8×8-pixel cells · component = (dx, dy).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from mgm_shared.codec import JpegCodec, PlanesCodec
from mgm_shared.geometry import CELL_PX

SCHEMA_VERSION = 1

PARTS_DIR = "parts"
INDEX_FILE = "index.parquet"
LABELS_FILE = "labels.jsonl"
SEGMENTS_FILE = "segments.parquet"
REJECTED_SEGMENTS_FILE = "rejected_segments.jsonl"
FAILURES_FILE = "failures.jsonl"
PLAN_FILE = "plan.jsonl"
UNFINISHED_DIR = ".unfinished"

# Motion is stored as int16 in 1/16 px: ±2047 px, finer than the quarter pixel of H.264.
MOTION_UNITS_PER_PX = 16
MISSING = -32768

PICTURE_TYPES = ("none", "I", "P", "B", "S", "SI", "SP", "BI")

# zstd level 1: motion costs 6 µs a frame to read and a lossless frame 0.25 ms; higher levels save under 6 %.
ZSTD_LEVEL = 1


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Specification of one array of a part: chunks of `chunk_frames` frames, files of up to `max_shard_frames`."""

    name: str
    dtype: str
    inner_shape: tuple[int, ...]
    dimension_names: tuple[str, ...]
    chunk_frames: int
    max_shard_frames: int
    codec: Literal["jpeg", "planes", "zstd"]
    jpeg_quality: int = 90
    attributes: dict[str, Any] = field(default_factory=dict)

    def shard_frames(self, num_frames: int) -> int:
        """Frames in a shard of an array of this length: whole chunks, and no more than the array needs."""
        whole = -(-num_frames // self.chunk_frames) * self.chunk_frames
        return min(self.max_shard_frames, whole)

    def create(self, part: Path, num_frames: int) -> None:
        """Write the metadata of the array under `part`. `ShardWriter` writes its shards."""
        serializers = {"jpeg": JpegCodec(level=self.jpeg_quality), "planes": PlanesCodec()}
        zarr.create_array(
            str(part / self.name),
            shape=(num_frames, *self.inner_shape),
            dtype=self.dtype,
            chunks=(self.chunk_frames, *self.inner_shape),
            shards=(self.shard_frames(num_frames), *self.inner_shape),
            serializer=serializers.get(self.codec, BytesCodec()),
            compressors=([ZstdCodec(level=ZSTD_LEVEL)] if self.codec == "zstd" else []) + [Crc32cCodec()],
            filters=[],
            fill_value=0,
            dimension_names=self.dimension_names,
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes=self.attributes,
        )


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One video in the attribute `videos` of a part; also a row of index.parquet."""

    video_id: str
    """The path below the dataset directory, with its suffix: unique, and the same on every machine."""
    start: int
    """Its first frame in the part's arrays."""
    num_frames: int
    """Frames that were decoded, never what a header promised."""
    fps: float
    """Mean frames a second, from the presentation times."""
    label: str | None
    split: str | None
    size: int
    """Bytes of the source file."""
    mtime: float
    """Modification time of the source file, seconds since 1970."""
    codec: str
    source_height: int
    source_width: int
    """Coded size of the first picture, before rotation and sample aspect ratio."""
    rotation: int
    """Degrees the picture was turned counter-clockwise to be shown, after any mirroring left to right."""
    motion_source: str
    """codec, transcode, estimate or none. In codec+transcode, codec+estimate and codec+none the second is the source of
    the pictures of type B, for which FFmpeg exports no vectors, and of P pictures behind them that came without."""
    num_corrupt: int
    """Frames that are damaged, errors of the decoder, and frames missing because the file ends early."""


def frames_spec(height: int, width: int, codec: str, jpeg_quality: int) -> ArraySpec:
    """The array of RGB frames. One frame is one chunk, because a clip with stride 4 reads 16 of 61 frames."""
    return ArraySpec(
        name="frames",
        dtype="uint8",
        inner_shape=(height, width, 3),
        dimension_names=("time", "y", "x", "channel"),
        chunk_frames=1,
        max_shard_frames=1024,
        codec=codec if codec in ("jpeg", "planes") else "zstd",  # type: ignore[arg-type]
        jpeg_quality=jpeg_quality,
        attributes={"long_name": "RGB frame", "colour_space": "sRGB, full range"},
    )


def motion_spec(height: int, width: int) -> ArraySpec:
    """The array of motion: displacement of each 8×8-pixel cell since the frame before, in 1/16 pixel."""
    return ArraySpec(
        name="motion",
        dtype="int16",
        inner_shape=(height // CELL_PX, width // CELL_PX, 2),
        dimension_names=("time", "cell_y", "cell_x", "component"),
        chunk_frames=16,
        max_shard_frames=16384,
        codec="zstd",
        attributes={
            "long_name": "displacement of the cell's content since the frame before",
            "units": "pixel",
            "components": ["dx, right positive", "dy, down positive"],
            "cell_size_px": CELL_PX,
            "scale_factor": 1 / MOTION_UNITS_PER_PX,
            "_FillValue": MISSING,
        },
    )


def flow_spec(height: int, width: int, made_by: dict[str, Any]) -> ArraySpec:
    """The array of optical flow that `mgm-prep flow` adds to a part; `made_by` records method and versions."""
    motion = motion_spec(height, width)
    return replace(motion, name="flow", attributes=motion.attributes | {"made_by": made_by})


def unpack_motion(packed_TYX2: NDArray[np.int16]) -> NDArray[np.float32]:
    """Convert stored integers to motion in px per frame, float32, NaN for missing."""
    motion_TYX2 = packed_TYX2.astype(np.float32)
    motion_TYX2 *= 1 / MOTION_UNITS_PER_PX
    motion_TYX2[packed_TYX2 == MISSING] = np.nan
    return motion_TYX2


def group_metadata(attributes: dict[str, Any] | None = None) -> bytes:
    """The `zarr.json` of a group."""
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files), attributes=attributes or {})
    return files["zarr.json"].to_bytes()


def create_tracks(part: Path, time_s: NDArray[np.float64], picture_type: NDArray[np.uint8]) -> None:
    """Write the arrays of a part that have one number per frame: time and picture_type."""
    tracks: tuple[tuple[str, NDArray[Any], dict[str, Any]], ...] = (
        ("time", time_s, {"units": "s", "long_name": "presentation time since the video's own zero"}),
        (
            "picture_type",
            picture_type,
            {"flag_values": list(range(len(PICTURE_TYPES))), "flag_meanings": " ".join(PICTURE_TYPES)},
        ),
    )
    for name, values, attributes in tracks:
        array = zarr.create_array(
            str(part / name),
            shape=values.shape,
            dtype=values.dtype,
            chunks=(max(1, len(values)),),
            compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
            fill_value=0,
            dimension_names=("time",),
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes=attributes,
            config={"write_empty_chunks": True},
        )
        array[:] = values

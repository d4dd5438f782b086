"""Write the shards of one array, frame by frame; `shard_reader.py` describes the format."""

import os
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from mgm_shared.codec import (
    Planes,
    encode_jpeg,
    encode_planes,
    pack_planes,
    planes_of_rgb,
)
from mgm_shared.schema import ZSTD_LEVEL, ArraySpec
from mgm_shared.shard_reader import CRC_BYTES, NO_CHUNK, crc


class ShardWriter:
    """Append frames to one array of a part. Only encoded bytes are kept in memory.

    `mark` and `rewind` remove a video that turned out to be unreadable. `close` writes the shard indexes and the
    metadata; before that, the files are no Zarr array.
    """

    def __init__(self, part: Path, spec: ArraySpec) -> None:
        self.spec = spec
        self.num_frames = 0
        self._part = part
        # Bytes of each chunk written; a two-hour video has 200,000.
        self._lengths = array("Q")
        self._pending: list[NDArray[Any] | Planes] = []
        self._file: BinaryIO | None = None
        (part / spec.name).mkdir(parents=True)

    def append(self, frame: "NDArray[Any] | Planes") -> None:
        """Append one frame of the inner shape of the spec, or its planes where frames are stored as JPEG or planes."""
        self._pending.append(frame)
        self.num_frames += 1
        if len(self._pending) == self.spec.chunk_frames:
            self._write_chunk()

    def append_encoded(self, payload: bytes) -> None:
        """Append one frame already encoded by another array of this spec, where each frame is one chunk."""
        assert self.spec.chunk_frames == 1
        self.num_frames += 1
        self._write_payload(payload)

    def mark(self) -> tuple[int, int, tuple[NDArray[Any] | Planes, ...]]:
        """A point to `rewind` to."""
        return self.num_frames, len(self._lengths), tuple(self._pending)

    def rewind(self, mark: tuple[int, int, tuple[NDArray[Any] | Planes, ...]]) -> None:
        """Remove what was appended since `mark`."""
        self._close_file()
        self.num_frames, num_chunks, pending = mark
        self._pending = list(pending)
        for shard in range(self._shard_of(num_chunks), self._shard_of(len(self._lengths) - 1) + 1):
            kept = self._shard_lengths(shard, num_chunks)
            os.truncate(self._shard_path(shard), sum(kept)) if kept else self._shard_path(shard).unlink()
        del self._lengths[num_chunks:]

    def close(self) -> None:
        """Finish the shards and write the metadata."""
        while self._pending and len(self._pending) < self.spec.chunk_frames:
            # All chunks of Zarr are complete; frames beyond the end of the array are never read.
            self._pending.append(np.zeros_like(self._pending[-1]))
        if self._pending:
            self._write_chunk()
        self._close_file()
        chunks_per_shard = self.spec.shard_frames(self.num_frames) // self.spec.chunk_frames
        for shard in range(self._shard_of(len(self._lengths) - 1) + 1):
            entries = np.full((chunks_per_shard, 2), NO_CHUNK, "<u8")
            length = np.array(self._shard_lengths(shard, len(self._lengths)))
            entries[: len(length)] = np.stack([np.cumsum(length) - length, length], axis=-1)
            with self._shard_path(shard).open("ab") as file:
                file.write(entries.tobytes() + crc(entries.tobytes()))
                file.flush()
                os.fsync(file.fileno())
        self.spec.create(self._part, self.num_frames)

    def _write_chunk(self) -> None:
        payload = self._encoded(self._pending)
        self._pending = []
        self._write_payload(payload)

    def _write_payload(self, payload: bytes) -> None:
        shard = self._shard_of(len(self._lengths))
        is_first = not self._lengths or self._shard_of(len(self._lengths) - 1) != shard
        if is_first or self._file is None:
            self._close_file()
            self._file = self._shard_path(shard).open("ab")
        self._file.write(payload + crc(payload))
        self._lengths.append(len(payload) + CRC_BYTES)

    def _close_file(self) -> None:
        """Close the current shard; the next chunk opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _encoded(self, frames: list[NDArray[Any] | Planes]) -> bytes:
        if self.spec.codec == "jpeg":
            (frame,), quality = frames, self.spec.jpeg_quality
            return encode_planes(frame, quality) if isinstance(frame, Planes) else encode_jpeg(frame, quality)
        if self.spec.codec == "planes":
            (frame,) = frames
            return pack_planes(frame if isinstance(frame, Planes) else planes_of_rgb(frame))
        return bytes(zstd.compress(np.ascontiguousarray(np.stack(frames), self.spec.dtype), ZSTD_LEVEL))

    def _shard_of(self, chunk: int) -> int:
        return chunk * self.spec.chunk_frames // self.spec.max_shard_frames

    def _shard_lengths(self, shard: int, num_chunks: int) -> "array[int]":
        chunks_per_shard = self.spec.max_shard_frames // self.spec.chunk_frames
        return self._lengths[shard * chunks_per_shard : min((shard + 1) * chunks_per_shard, num_chunks)]

    def _shard_path(self, shard: int) -> Path:
        return self._part / self.spec.name / (f"c.{shard}" + ".0" * len(self.spec.inner_shape))

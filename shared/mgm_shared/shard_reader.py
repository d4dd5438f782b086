"""Read the shards of one array directly, frame by frame, without zarr-python.

Zarr's sharding codec is a published format (ZEP 2): a file of encoded chunks, an index of (offset, nbytes) uint64
pairs, one per chunk in C order, and the crc32c of the index. Shards divide an array along time only: shard k is the
file `c.<k>.0.0.0`, and its chunk i starts at frame i·chunk_frames of it. Every chunk ends with its own crc32c.

No file stays open and no lock is held, so a dataset can be forked or spawned at any time. `storage.py` reads the bytes:
of a local file without a thread, of a URL with few requests. zarr-python takes 9 to 180 ms for the same clip, depending
on its version; tests hold both readers equal.

Axes: T frames · then the array's own inner axes.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from mgm_shared.codec import (
    JPEG_CODEC_NAME,
    PLANES_CODEC_NAME,
    Planes,
    codec_names,
    decode_jpeg,
    num_plane_bytes,
    rgb_of_planes,
    unpack_planes,
)
from mgm_shared.storage import StorePath, file_version, read_bytes, read_ranges, read_tail
from mgm_shared.store_files import METADATA_FILE, ByteRange

CODECS = {
    (JPEG_CODEC_NAME, "crc32c"): "jpeg",
    (PLANES_CODEC_NAME, "crc32c"): "planes",
    ("bytes", "zstd", "crc32c"): "zstd",
}

CRC_BYTES = 4
NO_CHUNK = 2**64 - 1
# Number of chunks that are checked together: 10 MB of JPEG frames, 90 MB of lossless ones.
CHUNKS_PER_CHECK = 512


class DamagedChunk(OSError):
    """Stored bytes are missing or fail their checksum. They are never replaced by zeros."""


def crc(data: bytes | memoryview) -> bytes:
    return int(google_crc32c.value(bytes(data))).to_bytes(CRC_BYTES, "little")


def _checked(data: bytes, where: str) -> memoryview:
    """The payload without its checksum. DamagedChunk if the checksum is wrong."""
    payload = memoryview(data)[:-CRC_BYTES]
    if len(data) < CRC_BYTES or crc(payload) != data[-CRC_BYTES:]:
        raise DamagedChunk(f"{where}: checksum mismatch; `mgm-prep verify` names what to extract again")
    return payload


@lru_cache(maxsize=1024)
def _shard_index(path: str, num_chunks: int, version: int) -> NDArray[np.uint64]:
    """(num_chunks, 2) offsets and lengths; cached, since a shard of one `version` of its array never changes."""
    length = num_chunks * 16 + CRC_BYTES
    try:
        data = read_tail(path, length)
    except FileNotFoundError:
        raise DamagedChunk(f"{path}: the shard is missing") from None
    if len(data) != length:
        raise DamagedChunk(f"{path}: the file ends early")
    return np.frombuffer(_checked(data, f"{path} (index)"), "<u8").reshape(num_chunks, 2)


@lru_cache(maxsize=4096)
def _metadata(file: StorePath, version: int) -> dict[str, Any]:
    """An array's `zarr.json`; cached, since reading it again would double the time of a remote clip."""
    metadata: dict[str, Any] = json.loads(read_bytes(file))
    return metadata


@dataclass(frozen=True)
class ShardedArray:
    """An array of one part, as its `zarr.json` describes it. It is small, picklable, and safe after fork and spawn."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunk_frames: int
    shard_frames: int
    codec: str
    version: int = 0
    """Tells an array from one that was at the same path before."""

    @classmethod
    def open(cls, path: StorePath) -> "ShardedArray":
        """Read the metadata of an array. ValueError if its codecs are not those of schema 1."""
        file = path / METADATA_FILE
        version = file_version(file)
        metadata = _metadata(file, version)
        (sharding,) = metadata["codecs"]
        configuration = sharding["configuration"]
        names = codec_names(configuration["codecs"])
        if tuple(names) not in CODECS:
            raise ValueError(f"{path}: codecs {names} are not of this schema")
        return cls(
            path=str(path),
            shape=tuple(metadata["shape"]),
            dtype=metadata["data_type"],
            chunk_frames=configuration["chunk_shape"][0],
            shard_frames=metadata["chunk_grid"]["configuration"]["chunk_shape"][0],
            codec=CODECS[tuple(names)],
            version=version,
        )

    def read(self, indices_T: NDArray[np.int64]) -> NDArray[Any]:
        """The frames at `indices_T` (any order, repeats allowed), each chunk read and decoded once.

        IndexError for an index outside the array, DamagedChunk for bytes that are missing or fail their checksum.
        """
        self._check_indices(indices_T)
        chunks, inverse_T = np.unique(indices_T // self.chunk_frames, return_inverse=True)
        decoded = np.empty((len(chunks), self.chunk_frames, *self.shape[1:]), self.dtype)
        for payload, frames in zip(self.encoded(chunks.tolist()), decoded, strict=True):
            self._decode(payload, frames)
        place_T = inverse_T * self.chunk_frames + indices_T % self.chunk_frames
        is_run = len(place_T) > 0 and bool((np.diff(place_T) == 1).all())
        # Consecutive frames, the common case, need no copy.
        wanted = slice(int(place_T[0]), int(place_T[-1]) + 1) if is_run else place_T
        return decoded.reshape(-1, *self.shape[1:])[wanted]

    def pictures(self, indices_T: NDArray[np.int64]) -> Iterator[Planes | NDArray[np.uint8]]:
        """The frames at ascending `indices_T`, one after the other: RGB (H, W, 3), or planes where those are stored.

        For arrays of frames. Each is read and decoded once, also when it repeats, and lies in memory that the next one
        takes over. IndexError and DamagedChunk as from `read`.
        """
        self._check_indices(indices_T)
        times_of = Counter(indices_T.tolist())
        buffer = np.empty(self._picture_shape, np.uint8)
        for payload, times in zip(self.encoded(list(times_of)), times_of.values(), strict=True):
            picture = self._picture(payload, buffer)
            for _ in range(times):
                yield picture

    def stored_pictures(self, indices_T: NDArray[np.int64]) -> list[memoryview]:
        """The encoded bytes of the frames at `indices_T`, without their checksums. Errors are those of `read`."""
        self._check_indices(indices_T)
        return list(self.encoded(indices_T.tolist()))

    def _check_indices(self, indices_T: NDArray[np.int64]) -> None:
        if len(indices_T) and (indices_T.min() < 0 or indices_T.max() >= self.shape[0]):
            raise IndexError(f"frames {indices_T.min()}…{indices_T.max()} of an array of {self.shape[0]}")

    @property
    def num_chunks(self) -> int:
        return -(-self.shape[0] // self.chunk_frames)

    def damage(self) -> Iterator[tuple[int, DamagedChunk]]:
        """Read all chunks and check their checksums without decoding; yield the damaged ones with the reason."""
        for start in range(0, self.num_chunks, CHUNKS_PER_CHECK):
            chunks = range(start, min(start + CHUNKS_PER_CHECK, self.num_chunks))
            if self._problem(chunks):
                for chunk in chunks:
                    if problem := self._problem([chunk]):
                        yield chunk, problem

    def _problem(self, chunks: Sequence[int]) -> DamagedChunk | None:
        try:
            for _ in self.encoded(chunks):
                pass
        except DamagedChunk as error:
            return error
        return None

    def encoded(self, chunks: Sequence[int]) -> Iterator[memoryview]:
        """The encoded bytes of each chunk. DamagedChunk for bytes that are missing or fail their checksum."""
        places = [self._place(chunk) for chunk in chunks]
        read = read_ranges(places)
        for chunk, place in zip(chunks, places, strict=True):
            where = f"{place.path} (chunk {chunk % self._chunks_per_shard})"
            try:
                data = next(read)
            except FileNotFoundError:
                raise DamagedChunk(f"{place.path}: the shard is missing") from None
            if len(data) != place.length:
                raise DamagedChunk(f"{where}: the file ends early")
            yield _checked(data, where)

    def _place(self, chunk: int) -> ByteRange:
        """The byte range of a chunk, from the index of its shard."""
        shard, position = divmod(chunk, self._chunks_per_shard)
        path = f"{self.path}/c.{shard}" + ".0" * (len(self.shape) - 1)
        offset, length = _shard_index(path, self._chunks_per_shard, self.version)[position].tolist()
        if length == NO_CHUNK:
            raise DamagedChunk(f"{path} (chunk {position}): the chunk is missing")
        return ByteRange(path, offset, length)

    @property
    def _chunks_per_shard(self) -> int:
        return self.shard_frames // self.chunk_frames

    def _decode(self, payload: memoryview, frames: NDArray[Any]) -> None:
        """Decode the frames of a chunk, (chunk_frames, …)."""
        if self.codec == "zstd":
            zstd.decompress(payload, frames)
        elif self.codec == "jpeg":
            decode_jpeg(payload, frames[0])
        else:
            buffer = np.empty(self._picture_shape, np.uint8)
            frames[0] = rgb_of_planes(unpack_planes(payload, buffer, self.shape[2]))

    @property
    def _picture_shape(self) -> tuple[int, ...]:
        return (num_plane_bytes(*self.shape[1:3]),) if self.codec == "planes" else self.shape[1:]

    def _picture(self, payload: memoryview, buffer: NDArray[np.uint8]) -> Planes | NDArray[np.uint8]:
        """Decode the frame of a chunk that holds one frame, into `buffer`."""
        if self.codec == "planes":
            return unpack_planes(payload, buffer, self.shape[2])
        if self.codec == "jpeg":
            return decode_jpeg(payload, buffer)
        zstd.decompress(payload, buffer)
        return buffer

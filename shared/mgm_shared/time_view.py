"""The frames of one video in an array of its part, read when they are indexed.

Axes: T frames · then the array's own inner axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgm_shared.shard_reader import ShardedArray

Key = int | slice | Sequence[int] | NDArray[np.int64]
Convert = Callable[[NDArray[Any]], NDArray[Any]]


def as_stored(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself."""
    return array


@dataclass(frozen=True, repr=False)
class TimeView:
    """The frames of one video in an array of its part: `view[k]`, `view[a:b:s]`, `view[[i, j]]`.

    `np.asarray(view)` and `torch.as_tensor(view)` read all frames, at once.
    """

    array: ShardedArray
    start: int
    num_frames: int
    type_name: str
    convert: Convert

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.type_name)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_frames, *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, key: Key) -> NDArray[Any]:
        if isinstance(key, tuple):
            raise IndexError("a video is indexed by time alone; slice the array that comes back")
        indices_T = np.arange(self.num_frames)[key]
        frames = self.convert(self.array.read(np.atleast_1d(indices_T) + self.start))
        return frames if np.ndim(indices_T) else frames[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("frames are decoded when they are read, so there is nothing to share without a copy")
        return np.asarray(self[:], dtype)

    # torch.as_tensor takes an object with a length for a list, and would read it number by number, but asks for DLPack
    # first.
    def __dlpack__(self, **options: Any) -> Any:
        return self[:].__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return np.empty(0, self.dtype).__dlpack_device__()

    def __repr__(self) -> str:
        return f"TimeView(shape={self.shape}, dtype={self.dtype})"

"""JPEG for one frame: its functions, and the Zarr codec that wraps them.

The codec carries the name and configuration keys of the imagecodecs package, so a store opens with that package as well
as with this one; Zarr finds ours through the entry point group `zarr.codecs`, without an import.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

JPEG_CODEC_NAME = "imagecodecs_jpeg"


class Planes(NamedTuple):
    """A frame as JFIF holds it (ITU-T T.871): luma (H, W), chroma (H/2, W/2), uint8, BT.601 at full range."""

    y_HW: NDArray[np.uint8]
    cb_HW: NDArray[np.uint8]
    cr_HW: NDArray[np.uint8]


def encode_planes(planes: Planes, quality: int) -> bytes:
    """4:2:0 planes → a baseline JPEG, without a way through RGB. `quality` is libjpeg's, 1–100."""
    encoded: bytes = simplejpeg.encode_jpeg_yuv_planes(*map(np.ascontiguousarray, planes), quality)
    return encoded


def encode_jpeg(frame_HWC: NDArray[np.uint8], quality: int) -> bytes:
    """RGB uint8 → a baseline JPEG with 4:2:0 chroma. `quality` is libjpeg's, 1–100."""
    bgr_HWC = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR)
    is_done, encoded = cv2.imencode(".jpg", bgr_HWC, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not is_done:
        raise ValueError(f"OpenCV could not encode a frame of shape {frame_HWC.shape} as JPEG")
    return encoded.tobytes()


def decode_jpeg(encoded: bytes | memoryview | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A JPEG → RGB uint8 (H, W, 3). ValueError when the bytes are no JPEG."""
    frame_HWC = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if frame_HWC is None:
        raise ValueError("the chunk is not a readable JPEG")
    return np.asarray(frame_HWC, np.uint8)


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """One RGB frame a chunk, shape (1, H, W, 3) uint8, as JPEG. `level` is libjpeg's quality."""

    is_fixed_size = False

    level: int = 90
    colorspace_data: str = "RGB"
    colorspace_jpeg: str = "YCBCR"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        configuration = data.get("configuration", {})
        # imagecodecs has more options; they only matter for writing, and reading any JPEG is all we promise.
        return cls(level=configuration.get("level", cls.level))

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": JPEG_CODEC_NAME,
            "configuration": {
                "level": self.level,
                "colorspace_data": self.colorspace_data,
                "colorspace_jpeg": self.colorspace_jpeg,
            },
        }

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        if len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"the JPEG codec holds frames of shape (time, y, x, 3), not {shape}")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("a JPEG's size is known only after encoding")

    # Zarr 3.1 calls the coroutines; from 3.2 on its fused pipeline prefers the _sync pair where there is one.
    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        frame_HWC = decode_jpeg(chunk_data.as_numpy_array().view(np.uint8))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(frame_HWC.reshape(chunk_spec.shape))

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        frame_1HWC = np.asarray(chunk_data.as_numpy_array(), np.uint8)
        return chunk_spec.prototype.buffer.from_bytes(encode_jpeg(frame_1HWC[0], self.level))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return self._encode_sync(chunk_data, chunk_spec)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        return self


def codec_names(codecs: Iterable[dict[str, Any]]) -> list[str]:
    """The names in a Zarr codec list, in order."""
    return [codec["name"] for codec in codecs]

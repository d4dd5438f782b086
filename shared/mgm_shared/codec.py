"""Encode and decode one frame as JPEG or as planes, and the Zarr codecs that wrap these functions.

The JPEG codec carries the name and configuration keys of the imagecodecs package, so a store opens with that package as
well as with this one. Zarr finds both through the entry point group `zarr.codecs`, without an import.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import simplejpeg
from numcodecs import lz4
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

JPEG_CODEC_NAME = "imagecodecs_jpeg"
PLANES_CODEC_NAME = "mgm.planes"


class Planes(NamedTuple):
    """A frame in YUV 4:2:0 as in JFIF (ITU-T T.871): luma (H, W), chroma (H/2, W/2), uint8, BT.601, full range."""

    y_HW: NDArray[np.uint8]
    cb_HW: NDArray[np.uint8]
    cr_HW: NDArray[np.uint8]


def encode_planes(planes: Planes, quality: int) -> bytes:
    """Encode planes as a baseline JPEG without converting them to RGB. `quality` is that of libjpeg, 1 to 100."""
    encoded: bytes = simplejpeg.encode_jpeg_yuv_planes(*map(np.ascontiguousarray, planes), quality)
    return encoded


def encode_jpeg(frame_HWC: NDArray[np.uint8], quality: int) -> bytes:
    """Encode RGB uint8 (H, W, 3) as a baseline JPEG, 4:2:0. `quality` is that of libjpeg, 1 to 100."""
    bgr_HWC = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR)
    is_done, encoded = cv2.imencode(".jpg", bgr_HWC, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not is_done:
        raise ValueError(f"OpenCV could not encode a frame of shape {frame_HWC.shape} as JPEG")
    return encoded.tobytes()


def decode_jpeg(
    encoded: bytes | memoryview | NDArray[np.uint8], out_HWC: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB uint8 (H, W, 3), into `out_HWC` if given. ValueError if the bytes are no JPEG."""
    frame_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB", buffer=out_HWC)
    return frame_HWC


def pack_planes(planes: Planes) -> bytes:
    """Compress the concatenated planes by LZ4 (one block after its length, as numcodecs writes it)."""
    whole = np.concatenate([plane.reshape(-1) for plane in planes])
    return bytes(lz4.compress(whole))


def unpack_planes(packed: bytes | memoryview | NDArray[np.uint8], out: NDArray[np.uint8], width: int) -> Planes:
    """Decompress what `pack_planes` made into `out`; the planes are views of it. ValueError if the size differs."""
    try:
        lz4.decompress(packed, out)
    except RuntimeError as error:
        raise ValueError(f"the chunk does not hold planes of {out.size} bytes: {error}") from None
    luma, chroma = out.size // 6 * 4, out.size // 6
    y_HW = out[:luma].reshape(-1, width)
    cb_HW, cr_HW = out[luma:].reshape(2, chroma // (width // 2), width // 2)
    return Planes(y_HW, cb_HW, cr_HW)


def rgb_of_planes(planes: Planes) -> NDArray[np.uint8]:
    """Convert planes to RGB uint8 (H, W, 3), interpolating the chroma."""
    height, width = planes.y_HW.shape
    cb_HW, cr_HW = (cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in planes[1:])
    return np.asarray(cv2.cvtColor(cv2.merge((planes.y_HW, cr_HW, cb_HW)), cv2.COLOR_YCrCb2RGB), np.uint8)


def planes_of_rgb(frame_HWC: NDArray[np.uint8]) -> Planes:
    """Convert RGB uint8 (H, W, 3), H and W even, to planes, averaging the chroma."""
    height, width = frame_HWC.shape[:2]
    y_HW, cr_HW, cb_HW = cv2.split(cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2YCrCb))
    halves = (cv2.resize(plane, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for plane in (cb_HW, cr_HW))
    return Planes(*(np.asarray(plane, np.uint8) for plane in (y_HW, *halves)))


class _FrameCodec(ArrayBytesCodec):
    """Base of the Zarr codecs for chunks of one RGB frame, (1, H, W, 3) uint8; subclasses encode and decode it."""

    is_fixed_size = False

    def encode_frame(self, frame_HWC: NDArray[np.uint8]) -> bytes:
        raise NotImplementedError

    def decode_frame(self, encoded: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        if len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"the frame codecs hold frames of shape (time, y, x, 3), not {shape}")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("a frame's size is known only after encoding")

    # Zarr 3.1 calls the coroutines; from 3.2 on its fused pipeline prefers the _sync pair where there is one.
    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        frame_HWC = self.decode_frame(chunk_data.as_numpy_array().view(np.uint8), *chunk_spec.shape[1:3])
        return chunk_spec.prototype.nd_buffer.from_numpy_array(frame_HWC.reshape(chunk_spec.shape))

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        frame_1HWC = np.asarray(chunk_data.as_numpy_array(), np.uint8)
        return chunk_spec.prototype.buffer.from_bytes(self.encode_frame(frame_1HWC[0]))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return self._encode_sync(chunk_data, chunk_spec)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        return self


@dataclass(frozen=True)
class JpegCodec(_FrameCodec):
    """Zarr codec for JPEG frames. `level` is the quality of libjpeg."""

    level: int = 90
    colorspace_data: str = "RGB"
    colorspace_jpeg: str = "YCBCR"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        configuration = data.get("configuration", {})
        # imagecodecs has more options. They matter for writing only; reading works for any JPEG.
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

    def encode_frame(self, frame_HWC: NDArray[np.uint8]) -> bytes:
        return encode_jpeg(frame_HWC, self.level)

    def decode_frame(self, encoded: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        return decode_jpeg(encoded)


@dataclass(frozen=True)
class PlanesCodec(_FrameCodec):
    """Zarr codec for frames as YUV 4:2:0 planes (BT.601, full range), concatenated and compressed by LZ4."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        if data != cls().to_dict():
            raise ValueError(f"this mgm knows the codec {PLANES_CODEC_NAME} only as {cls().to_dict()}, not {data}")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        configuration = {"layout": "ycbcr420", "matrix": "bt601", "range": "full", "compressor": "lz4"}
        return {"name": PLANES_CODEC_NAME, "configuration": configuration}

    def encode_frame(self, frame_HWC: NDArray[np.uint8]) -> bytes:
        return pack_planes(planes_of_rgb(frame_HWC))

    def decode_frame(self, encoded: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        return rgb_of_planes(unpack_planes(encoded, np.empty(num_plane_bytes(height, width), np.uint8), width))


def num_plane_bytes(height: int, width: int) -> int:
    """Bytes of the three planes of a frame with even sides."""
    return height * width * 3 // 2


def codec_names(codecs: Iterable[dict[str, Any]]) -> list[str]:
    """The names in a Zarr codec list, in order."""
    return [codec["name"] for codec in codecs]

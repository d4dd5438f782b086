"""Read an image file as a video of one frame: JPEG, PNG, WebP or GIF by Pillow, upright, opaque, 8-bit RGB.

Axes: H,W pixels · C = RGB.
"""

import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable, reason_of
from mgm_prep.decoding.pyav import Header, Picture
from mgm_shared.geometry import Orientation

# Pillow tries no other reader, whatever a file is called or says inside.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# A JPEG with further pictures, such as the other eye's or a preview; its first picture is the image.
JPEG_WITH_OTHERS = "MPO"
CODEC_PREFIX = "image/"
I_PICTURE = 1
WHITE = (255, 255, 255, 255)


def is_image_codec(codec: str | None) -> bool:
    """Whether the codec of a record says that it was an image file, such as `image/jpeg`."""
    return (codec or "").startswith(CODEC_PREFIX)


class ImageFile:
    """An image file with the interface of `VideoFile`: `header`, then `pictures()`, one picture.

    The image is turned as its EXIF orientation says, and transparent pixels are laid on white. Colour profiles are not
    applied. Unreadable for a file of another format, an animation, a damaged or cut file, or one above `max_pixels`.
    """

    num_errors = 0
    max_pause_s = float("inf")

    def __init__(self, path: Path, settings: ExtractSettings | None = None) -> None:
        image, codec = _read(path, (settings or ExtractSettings()).max_pixels)
        self._frame = av.VideoFrame.from_ndarray(_rgb(image), format="rgb24")
        height, width = self._frame.height, self._frame.width
        self.header = Header(
            codec=codec,
            height=height,
            width=width,
            display_height=height,
            display_width=width,
            rotation=0,
            frame_rate=1.0,
            num_frames_estimate=1,
        )

    def __enter__(self) -> "ImageFile":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def pictures(self) -> Iterator[Picture]:
        """The one picture, at 0 s, without vectors."""
        yield Picture(
            frame=self._frame,
            vectors_K=None,
            time_s=0.0,
            dts_s=0.0,
            picture_type=I_PICTURE,
            decode_index=0,
            is_reference=True,
            num_references=0,
            is_corrupt=False,
            codec=self.header.codec,
            orientation=Orientation(),
        )


def _read(path: Path, max_pixels: int) -> tuple[Image.Image, str]:
    """The decoded image, upright, and its codec. Unreadable when it is no image of FORMATS or above `max_pixels`."""
    try:
        # A pipe would be waited for, and a device read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("not a regular file")
        # Pillow warns of large images, broken EXIF and palettes; what it can read is wanted all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                codec = _checked_codec(image, max_pixels)
                image.load()
                return _upright(image), codec
    except UnidentifiedImageError as error:
        raise Unreadable("not a JPEG, PNG, WebP or GIF image") from error
    except Unreadable:
        raise
    # Pillow's readers raise errors of many classes for damaged files: SyntaxError, struct.error, EOFError, KeyError …
    except Exception as error:
        raise Unreadable(reason_of(error)) from error


def _checked_codec(image: Image.Image, max_pixels: int) -> str:
    """The codec of an image whose pixels are not decoded yet. Unreadable when it is not to be decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable(f"it has {width}×{height} px, more than max-pixels = {max_pixels}")
    if image.format == JPEG_WITH_OTHERS:
        return f"{CODEC_PREFIX}jpeg"
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 or getattr(image, "is_animated", False):
        raise Unreadable(f"an animation of {num_frames} frames, and no still image")
    return f"{CODEC_PREFIX}{str(image.format).lower()}"


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; as it is where the EXIF data cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    # A picture that is whole is not rejected for what is written beside it.
    except Exception:
        return image.copy()


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3), of grey, palette, CMYK and 16-bit images too; transparent pixels on white."""
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion would cut all values above 255.
        high_HW = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(high_HW[..., None], 3, axis=2)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return np.ascontiguousarray(image.convert("RGB"), dtype=np.uint8)

"""Decode JPEG frames on the device: the data loading workers read bytes, the GPU decodes, cuts, resizes and mirrors.

torchvision's `decode_jpeg` decodes a list of JPEGs on a GPU by nvJPEG. The bytes of a batch are a tenth of its pixels,
and no core decodes. Crops and flips are drawn in the workers as for the CPU, so a resumed run reads the same clips, bit
for bit on the same kind of GPU. The pixels differ a little from those that the CPU decodes: nvJPEG rounds, and
interpolates the chroma, in its own way.

On a CPU the same functions run with torchvision's CPU decoder; tests hold them to the clips of the workers.

Axes: S bytes · F frames of a batch, each stored frame once · B clips of a batch · T frames of a clip · C = RGB ·
H,W pixels of a stored frame.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mgm_shared.codec import encode_jpeg
from mgm_shared.errors import UserError
from mgm_train.data.packed_batch import Allocate, fresh
from mgm_train.data.views import View, is_shrunk_far, sides

JPEG_BYTES, ENCODED_CLIPS = "jpeg_S", "encoded"
"""Names in a batch: the bytes of its frames, one after the other, and what the clips show of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedClip:
    """A clip as the stored bytes of its frames. The repeats of a video share one list of them."""

    jpegs: Sequence[memoryview]
    """The distinct frames."""
    place_T: NDArray[np.int64]
    """The place in `jpegs` of each frame of the clip."""
    view: View


@dataclass(frozen=True, kw_only=True)
class EncodedClips:
    """What a batch shows of the frames in its bytes."""

    num_bytes_F: list[int]
    frames_BT: list[list[int]]
    """The frames of each encoded clip."""
    views: list[View]
    clips: list[int]
    """The places of the encoded clips in the batch. The others were decoded by the workers."""
    num_clips: int
    """Of the whole batch."""


def pack_encoded(encoded_B: Sequence[EncodedClip | None], allocate: Allocate = fresh) -> dict[str, Any]:
    """What `decode_batch` needs, from the clips of a batch; None for those that are decoded already."""
    first_of: dict[int, int] = {}
    jpegs: list[memoryview] = []
    frames_BT, views, clips = [], [], []
    for b, encoded in enumerate(encoded_B):
        if encoded is None:
            continue
        if id(encoded.jpegs) not in first_of:
            first_of[id(encoded.jpegs)] = len(jpegs)
            jpegs.extend(encoded.jpegs)
        frames_BT.append((encoded.place_T + first_of[id(encoded.jpegs)]).tolist())
        views.append(encoded.view)
        clips.append(b)
    about = EncodedClips(
        num_bytes_F=[len(jpeg) for jpeg in jpegs],
        frames_BT=frames_BT,
        views=views,
        clips=clips,
        num_clips=len(encoded_B),
    )
    bytes_S = allocate("jpegs", (sum(about.num_bytes_F),))
    np.concatenate([np.frombuffer(jpeg, np.uint8) for jpeg in jpegs], out=bytes_S.numpy())
    return {JPEG_BYTES: bytes_S, ENCODED_CLIPS: about}


def decode_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch whose `frames_BCTHW` has all its clips, on the device; others as they are.

    `frames_BCTHW` of the batch given has the clips that the workers decoded, already on the device. The bytes stay on
    the CPU, where nvJPEG reads them.
    """
    about: EncodedClips | None = batch.get(ENCODED_CLIPS)
    if about is None:
        return batch
    pictures_F = decode_jpegs(list(batch[JPEG_BYTES].split(about.num_bytes_F)), device)
    shown = [
        show_on_device([pictures_F[frame] for frame in frames_T], view)
        for frames_T, view in zip(about.frames_BT, about.views, strict=True)
    ]
    rest = {name: value for name, value in batch.items() if name not in (JPEG_BYTES, ENCODED_CLIPS)}
    if len(shown) == about.num_clips:
        return rest | {"frames_BCTHW": torch.stack(shown)}
    decoded_BCTHW = batch["frames_BCTHW"]
    frames_BCTHW = decoded_BCTHW.new_empty((about.num_clips, *decoded_BCTHW.shape[1:]))
    others = sorted(set(range(about.num_clips)) - set(about.clips))
    for b, clip_CTHW in [*zip(about.clips, shown, strict=True), *zip(others, decoded_BCTHW, strict=True)]:
        frames_BCTHW[b] = clip_CTHW
    return rest | {"frames_BCTHW": frames_BCTHW}


def decode_jpegs(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
    """RGB pictures, uint8 (3, H, W), on the device; by nvJPEG on a GPU. RuntimeError for bytes that are no JPEG."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if not jpegs:
        return []
    with warnings.catch_warnings():
        # Since torchvision 0.29 it advises to use torchcodec.
        warnings.simplefilter("ignore")
        pictures: list[Tensor] = decode_jpeg(jpegs, ImageReadMode.RGB, device=device)
    return pictures


def show_on_device(pictures_T: Sequence[Tensor], view: View) -> Tensor:
    """What a view shows of pictures (3, H, W), uint8 (3, T, H, W): `views.show` on the device of the pictures."""
    left, top, width, height = (int(side) for side in sides(view.box))
    rows, columns = slice(top, top + height), slice(left, left + width)
    cut_CTHW = torch.stack([picture_CHW[:, rows, columns] for picture_CHW in pictures_T], dim=1)
    if (height, width) != view.shape_px:
        cut_CTHW = _resized(cut_CTHW, view.shape_px)
    return cut_CTHW.flip(3) if view.is_mirrored else cut_CTHW


def _resized(frames_CTHW: Tensor, shape_px: tuple[int, int]) -> Tensor:
    """The frames at another size, by the methods of `views.py`: bilinear, or by area where they shrink a lot."""
    shape = frames_CTHW.shape[2:]
    pixels_CTHW = frames_CTHW.float()
    if is_shrunk_far(shape, shape_px):
        down, across = (_area_weights(*pair, frames_CTHW.device) for pair in zip(shape, shape_px, strict=True))
        resized_CTHW = down @ pixels_CTHW @ across.T
    else:
        resized_CTHW = F.interpolate(pixels_CTHW, shape_px, mode="bilinear", align_corners=False, antialias=False)
    return resized_CTHW.round_().clamp_(0, 255).byte()


def _area_weights(num_in: int, num_out: int, device: torch.device) -> Tensor:
    """The share of each of `num_in` pixels in each of `num_out` larger ones, (num_out, num_in) float32."""
    start = torch.arange(num_out, device=device, dtype=torch.float64)[:, None] * (num_in / num_out)
    place = torch.arange(num_in, device=device, dtype=torch.float64)
    overlap = torch.minimum(start + num_in / num_out, place + 1) - torch.maximum(start, place)
    return (overlap.clamp(min=0) * (num_out / num_in)).float()


def check_device_decoding(device: torch.device) -> None:
    """Decode a small JPEG. UserError where the device is no GPU, or torchvision cannot use its nvJPEG."""
    if device.type != "cuda":
        raise UserError("decode-on cuda and hybrid need a GPU, and torch sees none; set decode-on to cpu or auto")
    jpeg = torch.from_numpy(np.frombuffer(encode_jpeg(np.zeros((16, 16, 3), np.uint8), 90), np.uint8).copy())
    try:
        decode_jpegs([jpeg], device)
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(
            f"torchvision cannot decode JPEG on this GPU ({reason}); install a torchvision that is built for CUDA and "
            "fits to torch, or set decode-on to cpu or auto"
        ) from error

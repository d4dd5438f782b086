"""Codebooks: the patches that stand for all patches of a data set, so that a patch has a number, its code.

`mgm-prep codebook` fits one by k-means, and the target `kmeans` of pretraining predicts the codes of masked patches. A
code belongs to a patch of one frame. As for the discrete VAE of BEVT, the picture is shrunk to half its size first, so
that a patch of 16×16 pixels is a vector of 3·8·8 numbers.

Axes: N patches · H,W pixels of a patch · C = RGB · K codes · P numbers of a patch, in the order colour, row, column.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.files import replace_file

PatchNorm = Literal["none", "patch"]
FORMAT = 1
# Added to the std of a colour: what differs by less than a grey level is no texture.
STD_EPSILON = 1 / 255


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """The centres of the codes, float32 (K, P), and how a patch becomes a vector.

    `norm` is none, colours from 0 to 1, or patch, each colour of a patch with mean 0 and std 1.
    """

    centres_KP: NDArray[np.float32]
    patch_px: int
    norm: PatchNorm = "none"

    @property
    def num_codes(self) -> int:
        return len(self.centres_KP)

    def codes(self, patches_NHWC: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The code of each patch, (N,): the nearest centre, of equally near ones the first."""
        vectors_NP = patch_vectors(patches_NHWC, self.norm)
        # |v − c|² without |v|², which is the same for all centres.
        distance_NK = (self.centres_KP**2).sum(1) - 2 * vectors_NP @ self.centres_KP.T
        return np.asarray(distance_NK.argmin(1), np.int64)


def patch_vectors(patches_NHWC: NDArray[np.uint8], norm: PatchNorm) -> NDArray[np.float32]:
    """Patches of frames as vectors, float32 (N, P): means of 2×2 pixels, from 0 to 1, then normalised by `norm`."""
    num_patches, height, width, _ = patches_NHWC.shape
    split = patches_NHWC.reshape(num_patches, height // 2, 2, width // 2, 2, 3).astype(np.float32)
    vectors_N3Q = split.mean((2, 4)).transpose(0, 3, 1, 2).reshape(num_patches, 3, -1) / np.float32(255)
    if norm == "patch":
        std = vectors_N3Q.std(2, ddof=1, keepdims=True)
        vectors_N3Q = (vectors_N3Q - vectors_N3Q.mean(2, keepdims=True)) / (std + np.float32(STD_EPSILON))
    return np.ascontiguousarray(vectors_N3Q.reshape(num_patches, -1), np.float32)


def write_codebook(path: Path, codebook: Codebook) -> None:
    """Write a codebook as .npz, whole or not at all. The same codebook gives the same bytes."""

    def write(beside: Path) -> None:
        # Given a name, numpy would add .npz to it.
        with beside.open("wb") as file:
            np.savez(
                file,
                format=np.int64(FORMAT),
                patch_px=np.int64(codebook.patch_px),
                norm=np.array(codebook.norm),
                centres_KP=codebook.centres_KP,
            )

    replace_file(path, write)


def read_codebook(path: Path) -> Codebook:
    """Read what `write_codebook` wrote. UserError when it is no codebook, damaged, or of a later version."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            file_format, patch_px = int(arrays["format"]), int(arrays["patch_px"])
            centres_KP, norm_text = arrays["centres_KP"].astype(np.float32), str(arrays["norm"])
    except FileNotFoundError:
        raise UserError(f"there is no codebook {path}; `mgm-prep codebook STORE -o {path}` fits one") from None
    except Exception as error:
        # zipfile and numpy have half a dozen kinds of errors for files that are none of theirs, or damaged.
        raise UserError(f"{path} is no codebook of `mgm-prep codebook`, or damaged") from error
    if file_format != FORMAT:
        raise UserError(f"{path} is of version {file_format} of the format; this program reads {FORMAT}")
    if centres_KP.ndim != 2 or centres_KP.shape[1] != 3 * (patch_px // 2) ** 2 or not np.isfinite(centres_KP).all():
        raise UserError(f"{path} holds no centres of patches of {patch_px}×{patch_px} px")
    norm: PatchNorm = "patch" if norm_text == "patch" else "none"
    return Codebook(centres_KP=centres_KP, patch_px=patch_px, norm=norm)

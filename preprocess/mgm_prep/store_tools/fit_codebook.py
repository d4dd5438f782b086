"""Fit a codebook on the patches of a store by k-means; see `mgm_shared.codebook` for what a codebook is.

Axes: N patches · H,W pixels · C = RGB · K codes · P numbers of a patch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mgm_prep.config import CodebookSettings
from mgm_shared.codebook import Codebook, patch_vectors, write_codebook
from mgm_shared.errors import UserError
from mgm_shared.index import codes
from mgm_shared.progress import SILENT, Progress
from mgm_shared.storage import PathLike
from mgm_shared.store import Store, Video, open_store

# Patches of a frame: few, since those of a frame resemble each other, and a frame has to be decoded for them.
PATCHES_PER_FRAME = 32
# Two iterations of OpenCV are one assignment of the patches, and the means of those assigned.
ONE_ITERATION = (cv2.TERM_CRITERIA_MAX_ITER, 2, 0.0)
# Further iterations that lower the error by less than this share are not worth their time.
MIN_GAIN = 1e-4


@dataclass(frozen=True, kw_only=True)
class CodebookSummary:
    """A codebook that was fitted."""

    store: str
    out: str
    codes: int
    patches: int
    """Patches on which it was fitted."""
    iterations: int
    explained: float
    """The share of the variance of the patches that their centres explain."""
    smallest: int
    """Patches of the code that has the fewest."""
    unreadable: int
    """Frames that were chosen but cannot be read."""


def fit_codebook(
    store: PathLike,
    out: str | os.PathLike[str],
    settings: CodebookSettings | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> CodebookSummary:
    """Fit a codebook on random patches of the training videos, and write it to `out`.

    The same store, settings and version of OpenCV give the same codebook.

    Args:
        store: A store made by `extract`.
        out: The file to write, by convention NAME.npz; its folder is made.
        settings: The number of codes and what they are fitted on.
        force: Replace a file that is there. UserError without it.
        progress: Sees the frames that are read, and the iterations.
    """
    settings, out = settings or CodebookSettings(), Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it, such as {out / 'codes.npz'}")
    if out.exists() and not force:
        raise UserError(f"{out} exists; --force replaces it")
    opened = open_store(store)
    # Before the work, not after it.
    out.parent.mkdir(parents=True, exist_ok=True)
    vectors_NP, num_unreadable = _sample(opened, settings, progress)
    if len(vectors_NP) < settings.num_codes:
        raise UserError(f"{opened.path} gave {len(vectors_NP)} patches, fewer than num-codes, {settings.num_codes}")
    centres_KP, label_N, num_iterations = k_means(vectors_NP, settings.num_codes, settings, progress)
    write_codebook(out, Codebook(centres_KP=centres_KP, patch_px=settings.patch_px, norm=settings.norm))
    missed = float(((vectors_NP - centres_KP[label_N]) ** 2).sum())
    return CodebookSummary(
        store=str(opened.path),
        out=str(out),
        codes=settings.num_codes,
        patches=len(vectors_NP),
        iterations=num_iterations,
        explained=round(1 - missed / max(float(((vectors_NP - vectors_NP.mean(0)) ** 2).sum()), 1e-12), 4),
        smallest=int(np.bincount(label_N, minlength=settings.num_codes).min()),
        unreadable=num_unreadable,
    )


def k_means(
    vectors_NP: NDArray[np.float32], num_codes: int, settings: CodebookSettings, progress: Progress = SILENT
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Lloyd's algorithm from centres of k-means++, by OpenCV: the centres, the code of each vector, the iterations.

    Each centre is the mean of its vectors. A code that lost all its vectors takes the farthest one of the largest code.
    """
    progress.start("k-means", settings.num_iterations, "iteration")
    cv2.setRNGSeed(settings.seed % 2**31)
    no_labels: NDArray[np.int32] = np.empty(0, np.int32)
    error, label_N1, centres_KP = cv2.kmeans(vectors_NP, num_codes, no_labels, ONE_ITERATION, 1, cv2.KMEANS_PP_CENTERS)
    progress.advance()
    iteration, flags = 1, cv2.KMEANS_USE_INITIAL_LABELS
    while iteration < settings.num_iterations:
        iteration, before = iteration + 1, error
        error, label_N1, centres_KP = cv2.kmeans(vectors_NP, num_codes, label_N1, ONE_ITERATION, 1, flags)
        progress.advance(error=f"{error / len(vectors_NP):.4f}")
        if before - error <= MIN_GAIN * before:
            break
    return np.asarray(centres_KP, np.float32), np.asarray(label_N1[:, 0], np.int64), iteration


def _sample(store: Store, settings: CodebookSettings, progress: Progress) -> tuple[NDArray[np.float32], int]:
    """Vectors of random patches of random frames (N, P), and the number of frames that cannot be read."""
    rng = np.random.default_rng(settings.seed)
    rows = _training_rows(store)
    num_frames = -(-settings.num_patches // PATCHES_PER_FRAME)
    chosen = np.sort(rng.choice(rows, num_frames, replace=num_frames > len(rows)))
    progress.start("reading patches", num_frames, "frame")
    found, num_unreadable = [], 0
    for row in chosen.tolist():
        video = store.video_at(row)
        # Drawn before reading, so that the other patches do not depend on a frame that cannot be read.
        frame, places = int(rng.integers(video.num_frames)), list(_places(video, settings.patch_px, rng))
        try:
            (frame_HWC,) = video.frames[np.array([frame])]
        except OSError:
            num_unreadable += 1
            continue
        finally:
            progress.advance(unreadable=num_unreadable)
        side = settings.patch_px
        patches_NHWC = np.stack([frame_HWC[y : y + side, x : x + side] for y, x in places])
        found.append(patch_vectors(patches_NHWC, settings.norm))
    if not found:
        raise UserError(f"none of {num_frames} frames of {store.path} can be read; run `mgm-prep verify {store.path}`")
    return np.concatenate(found)[: settings.num_patches], num_unreadable


def _training_rows(store: Store) -> NDArray[np.int64]:
    """The rows of the training videos: those marked for training, or if none is, those without a mark."""
    code_of_row, splits = codes(store.table, "split")
    wanted = "train" if "train" in splits else None
    rows = np.flatnonzero(np.array([name == wanted for name in splits])[code_of_row])
    if not len(rows):
        raise UserError(f"{store.path} has no training videos")
    return rows


def _places(video: Video, side: int, rng: Generator) -> Iterator[tuple[int, int]]:
    """Random top left corners of patches."""
    if min(video.height, video.width) < side:
        raise UserError(f"{video.video_id} is smaller than a patch of {side}×{side} px")
    for _ in range(PATCHES_PER_FRAME):
        yield int(rng.integers(video.height - side + 1)), int(rng.integers(video.width - side + 1))

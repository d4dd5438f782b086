"""Write pictures as an MP4 movie with H.264, which browsers play. The program ffmpeg does it; no decoder is imported.

Axes: H,W pixels · C = RGB.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.files import replace_file

# High quality, because chroma subsampling and coarse quantization blur thin lines and small letters first.
ENCODER = ("-preset", "medium", "-crf", "16", "-tune", "animation")
# Without tags, players guess the colour space by the size of the picture.
COLOURS = (
    "-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int",
    "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
)  # fmt: skip
# The format is named because the temporary name does not end in .mp4. The index goes first (faststart), so that a
# browser can begin to play before it has the whole file.
CONTAINER = ("-movflags", "faststart", "-threads", "1", "-f", "mp4")


def save_mp4(pictures: Sequence[NDArray[np.uint8]], file: Path, frames_per_s: float) -> None:
    """Write pictures (H, W, 3) as a movie. Its directory is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda path: _write(pictures, path, Fraction(frames_per_s).limit_denominator(1001)))


def _write(pictures: Sequence[NDArray[np.uint8]], path: Path, rate: Fraction) -> None:
    # Only now: figures without a movie need no ffmpeg.
    from imageio_ffmpeg import write_frames

    height, width = _even(pictures[0]).shape[:2]
    options = [*ENCODER, *COLOURS, *CONTAINER]
    settings = {"codec": "libx264", "quality": None, "macro_block_size": 1, "ffmpeg_log_level": "error"}
    writer = write_frames(str(path), (width, height), fps=rate, output_params=options, **settings)
    writer.send(None)
    for picture_HWC in pictures:
        writer.send(np.ascontiguousarray(_even(picture_HWC)))
    writer.close()


def _even(picture_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad odd sides by a white line, because 4:2:0 needs even sides."""
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)

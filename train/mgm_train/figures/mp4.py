"""Write pictures as an MP4 movie with H.264, which browsers play. `mgm_shared` must not import a codec library.

Axes: H,W pixels · C = RGB.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from mgm_shared.files import replace_file

# High quality, because chroma subsampling and coarse quantization blur thin lines and small letters first.
OPTIONS = {"preset": "medium", "crf": "16", "tune": "animation"}


def save_mp4(pictures: Sequence[NDArray[np.uint8]], file: Path, frames_per_s: float) -> None:
    """Write pictures (H, W, 3) as a movie. Its directory is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda path: _write(pictures, path, Fraction(frames_per_s).limit_denominator(1001)))


def _write(pictures: Sequence[NDArray[np.uint8]], path: Path, rate: Fraction) -> None:
    # The format is given because the temporary name does not end in .mp4. The index goes first (faststart), so that a
    # browser can begin to play before it has the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=OPTIONS)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = _even(pictures[0]).shape[:2]
        _tag(stream.codec_context)
        for t, picture_HWC in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(_even(picture_HWC), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            frame.pts, frame.time_base = t, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _tag(context: av.VideoCodecContext) -> None:
    """Tag the stream as BT.709. Without tags, players guess the colour space by the size of the picture."""
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


def _even(picture_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad odd sides by a white line, because 4:2:0 needs even sides."""
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)

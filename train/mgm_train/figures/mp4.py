"""Pictures as a film that browsers play: H.264 in an MP4. `mgm_shared` has no codec library, so it is not beside GIF.

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

# Thin lines and small letters are what 4:2:0 and coarse steps blur first.
OPTIONS = {"preset": "medium", "crf": "16", "tune": "animation"}


def save_mp4(pictures: Sequence[NDArray[np.uint8]], file: Path, frames_per_s: float) -> None:
    """Write pictures (H, W, 3) as a film; its directory is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda path: _write(pictures, path, Fraction(frames_per_s).limit_denominator(1001)))


def _write(pictures: Sequence[NDArray[np.uint8]], path: Path, rate: Fraction) -> None:
    # The name that `replace_file` gives does not end in .mp4; the index goes first, so that a browser can begin early.
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
    """Say which colours these are: without it a player guesses by the size of the picture."""
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


def _even(picture_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With a white line more where a side is odd, which 4:2:0 cannot have."""
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)

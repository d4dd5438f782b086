"""What can be set of an extraction. No decoder and no Zarr here, so that `--help` is fast."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from mgm_shared.config import Config, check, option

FRAME_CODECS = ("jpeg", "planes", "lossless")
DECODERS = ("pyav", "mv-extractor")
NO_VECTORS = ("transcode", "estimate", "skip")
X264_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
FLOW_METHODS = ("farneback", "dis", "raft-small")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(Config):
    """What decides a store's bytes; recorded in it, and a resumed run must bring the same."""

    short_side: int = option(256, "short side of the stored frames, px; smaller videos keep their size")
    frame_codec: str = option(
        "jpeg",
        "jpeg; planes (4:2:0 by LZ4), four to five times larger and read in half the time; or lossless (RGB by zstd), "
        "nine times larger",
    )
    jpeg_quality: int = option(90, "libjpeg's quality, 1 to 100")
    decoder: str = option("pyav", "pyav, or mv-extractor, which is right on less and bound to Linux on x86-64")
    no_vectors: str = option(
        "transcode",
        "codecs without motion vectors: transcode to H.264, estimate by block matching, or skip the motion",
    )
    max_corrupt: float = option(
        0.5, "reject a video when more than this share of its frames is damaged; 1 keeps whatever decodes"
    )
    max_pixels: int = option(8192 * 4320, "reject a video whose pictures are larger than this, before memory is taken")
    max_seconds: int = option(3600, "reject a video that takes longer, 0 for no limit; may change on resuming")

    def recorded(self) -> dict[str, Any]:
        """The settings that a store keeps and that a resumed run must bring: all but the time limit."""
        return {name: value for name, value in asdict(self).items() if name != "max_seconds"}

    def __post_init__(self) -> None:
        check(self.short_side >= 16, "short_side", self.short_side, "at least 16")
        check(self.frame_codec in FRAME_CODECS, "frame_codec", self.frame_codec, " or ".join(FRAME_CODECS))
        check(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "from 1 to 100")
        check(self.decoder in DECODERS, "decoder", self.decoder, " or ".join(DECODERS))
        is_there = self.decoder != "mv-extractor" or find_spec("mvextractor") is not None
        check(is_there, "decoder", self.decoder, "pyav: the package motion-vector-extractor is not installed")
        check(self.no_vectors in NO_VECTORS, "no_vectors", self.no_vectors, " or ".join(NO_VECTORS))
        check(0 <= self.max_corrupt <= 1, "max_corrupt", self.max_corrupt, "a share from 0 to 1")
        check(self.max_pixels >= 1, "max_pixels", self.max_pixels, "at least 1")
        check(self.max_seconds >= 0, "max_seconds", self.max_seconds, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TranscodeSettings(Config):
    """What a transcoded copy is like."""

    short_side: int = option(0, "short side of the copies, px; smaller videos keep their size, and 0 keeps every size")
    crf: int = option(18, "x264's constant rate factor, 0 (lossless) to 51; 18 is hard to tell from the source")
    preset: str = option("veryfast", "x264's preset, such as ultrafast, veryfast or medium")
    max_seconds: int = option(3600, "reject a video that takes longer, 0 for no limit")

    def __post_init__(self) -> None:
        check(self.short_side == 0 or self.short_side >= 16, "short_side", self.short_side, "0, or at least 16")
        check(0 <= self.crf <= 51, "crf", self.crf, "from 0 to 51")
        check(self.preset in X264_PRESETS, "preset", self.preset, f"one of {', '.join(X264_PRESETS)}")
        check(self.max_seconds >= 0, "max_seconds", self.max_seconds, "0 or more")


@dataclass(frozen=True, kw_only=True)
class FlowSettings(Config):
    """What decides a store's optical flow."""

    method: str = option("farneback", "farneback or dis, which need nothing; raft-small, the paper's, needs weights")
    weights: str = option("", "file of torchvision's raft_small weights (a state dict), for raft-small")
    device: str = option("auto", "where raft-small runs: auto, cpu or cuda")

    def __post_init__(self) -> None:
        check(self.method in FLOW_METHODS, "method", self.method, f"one of {', '.join(FLOW_METHODS)}")
        check(self.device in DEVICES, "device", self.device, f"one of {', '.join(DEVICES)}")
        has_weights = (self.method == "raft-small") == bool(self.weights)
        check(has_weights, "weights", self.weights, "a file for raft-small, and none for the others")

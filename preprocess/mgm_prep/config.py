"""What can be set of an extraction. No decoder and no Zarr here, so that `--help` is fast."""

from dataclasses import dataclass

from mgm_shared.config import Config, check, option

FRAME_CODECS = ("jpeg", "lossless")
NO_VECTORS = ("transcode", "skip")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(Config):
    """What decides a store's bytes; recorded in it, and a resumed run must bring the same."""

    short_side: int = option(256, "short side of the stored frames, px; smaller videos keep their size")
    frame_codec: str = option("jpeg", "jpeg, or lossless (zstd), which is about nine times larger")
    jpeg_quality: int = option(90, "libjpeg's quality, 1 to 100")
    no_vectors: str = option(
        "transcode", "codecs without motion vectors: transcode to H.264 and take those, or skip the motion"
    )

    def __post_init__(self) -> None:
        check(self.short_side >= 16, "short_side", self.short_side, "at least 16")
        check(self.frame_codec in FRAME_CODECS, "frame_codec", self.frame_codec, " or ".join(FRAME_CODECS))
        check(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "from 1 to 100")
        check(self.no_vectors in NO_VECTORS, "no_vectors", self.no_vectors, " or ".join(NO_VECTORS))

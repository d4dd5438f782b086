"""Options of extraction, transcoding and optical flow. No decoder and no Zarr is imported: `--help` stays fast."""

from importlib.util import find_spec
from typing import Any, Literal, Self

from pydantic import model_validator

from mgm_shared.config import Config, check, option

FrameCodec = Literal["jpeg", "planes", "lossless"]
Decoder = Literal["pyav", "mv-extractor"]
NoVectors = Literal["transcode", "estimate", "skip"]
X264Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
FlowMethod = Literal["farneback", "dis", "raft-small"]
Device = Literal["auto", "cpu", "cuda"]
ReadAs = Literal["auto", "labels", "segments"]
TimesFrom = Literal["container", "first-frame"]

PatchPx = Literal[8, 16]
PatchNorm = Literal["none", "patch"]

FRAMES, MOTION, LIMITS = "Stored frames", "Motion vectors", "Limits"


class ExtractSettings(Config):
    """Options that decide the bytes of a store. The store records them, and a resumed run must use the same ones."""

    short_side: int = option(
        256, "Short side of the stored frames in pixels; smaller videos keep their size", group=FRAMES, ge=16
    )
    frame_codec: FrameCodec = option(
        "jpeg",
        "How frames are stored: jpeg; planes (YUV 4:2:0 by LZ4), four to five times larger and read in half the time; "
        "or lossless (RGB by zstd), nine times larger",
        group=FRAMES,
    )
    jpeg_quality: int = option(90, "Quality of libjpeg", group=FRAMES, ge=1, le=100)
    decoder: Decoder = option(
        "pyav", "Video decoder; mv-extractor reads fewer files correctly and needs Linux on x86-64", group=MOTION
    )
    no_vectors: NoVectors = option(
        "transcode",
        "Source of motion for codecs without motion vectors: transcode to H.264, estimate by block matching, or skip",
        group=MOTION,
    )
    max_corrupt: float = option(
        0.5,
        "Reject a video when more than this share of its frames is damaged, or missing because the file is cut off; "
        "1 keeps everything that decodes",
        group=LIMITS,
        ge=0,
        le=1,
    )
    max_pixels: int = option(
        8192 * 4320, "Reject a video whose frames have more pixels, before memory is allocated", group=LIMITS, ge=1
    )
    max_seconds: int = option(
        3600, "Reject a video that takes longer to decode; 0 sets no limit", group=LIMITS, may_change=True, ge=0
    )

    def recorded(self) -> dict[str, Any]:
        """The options that a store records and that a resumed run must repeat."""
        return {name: value for name, value in self.to_dict().items() if name not in self.changeable()}

    @model_validator(mode="after")
    def _check_decoder(self) -> Self:
        is_there = self.decoder != "mv-extractor" or find_spec("mvextractor") is not None
        check(is_there, "decoder", self.decoder, "pyav: the package motion-vector-extractor is not installed")
        return self


class TranscodeSettings(Config):
    """Options of `transcode`: what the H.264 copies are like."""

    short_side: int = option(
        0, "Short side of the copies in pixels; smaller videos keep their size, and 0 keeps every size", ge=0
    )
    crf: int = option(
        18, "Constant rate factor of x264; 0 is lossless, 18 is hard to tell from the source", ge=0, le=51
    )
    preset: X264Preset = option("veryfast", "Preset of x264")
    max_seconds: int = option(3600, "Reject a video that takes longer to transcode; 0 sets no limit", ge=0)

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check(self.short_side == 0 or self.short_side >= 16, "short_side", self.short_side, "0, or at least 16")
        return self


class SegmentSettings(Config):
    """Options of reading segments, places in videos, from annotation files."""

    read_as: ReadAs = option(
        "auto", "What a file holds that could be either: labels of whole videos, or segments of videos"
    )
    label: str = option(
        "",
        "Which label of a segment to take: verb, noun or action of EPIC-Kitchens; element or event of FineGym; or the "
        "name of a column",
    )
    times_from: TimesFrom = option(
        "container",
        "Zero of the times: that of the container's clock, as players of MP4 files show it, or the first-frame, for "
        "recordings such as MPEG-TS whose clock began earlier",
    )
    cut_at_end: bool = option(False, "Cut segments that end after their video, instead of rejecting them")
    allow_shared_videos: bool = option(False, "Go on where segments of one video are in different splits")


class FlowSettings(Config):
    """Options that decide the optical flow of a store."""

    method: FlowMethod = option(
        "farneback", "Farneback and DIS need no weights; raft-small, the method of the paper, needs them"
    )
    weights: str = option("", "File with torchvision's raft_small weights (a state dict), for raft-small")
    device: Device = option("auto", "Device for raft-small")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        has_weights = (self.method == "raft-small") == bool(self.weights)
        check(has_weights, "weights", self.weights, "a file for raft-small, and empty for the other methods")
        return self


class CodebookSettings(Config):
    """Options of fitting a codebook, the classes of the target `kmeans`."""

    num_codes: int = option(1024, "Number of codes", ge=2, le=65536)
    num_patches: int = option(100_000, "Random patches of training videos on which k-means is fitted", ge=2)
    patch_px: PatchPx = option(16, "Side of a patch in pixels: patch-px of the pretraining")
    norm: PatchNorm = option(
        "none", "Patches as they are (none), or each colour of a patch with mean 0 and std 1 (patch)"
    )
    num_iterations: int = option(
        30, "Iterations at most; k-means ends when one lowers the error by less than a ten-thousandth", ge=1
    )
    seed: int = option(0, "Seed of the choice of patches and of the first centres", ge=0)

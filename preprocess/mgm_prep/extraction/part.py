"""Write one part of a store: videos of one stored size, each decoded once.

A part is written to a scratch folder, and moved to its place when all its bytes are on disk. So a reader never sees an
unfinished part, and a run that is killed leaves only a folder to delete.
"""

import uuid
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import av
import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.colour import PlaneScaler, luma_of, to_rgb
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.image import ImageFile, is_image_codec
from mgm_prep.decoding.mv_extractor import CapturedFile
from mgm_prep.decoding.pyav import Header, Picture, VideoFile
from mgm_prep.decoding.timestamps import mean_rate, shown_at
from mgm_prep.extraction.failures import Failure, failure_of
from mgm_prep.extraction.tasks import Task
from mgm_prep.motion.block_matching import with_estimates
from mgm_prep.motion.codec import is_exported_as_zero, motion_grid, stored_motion, with_references
from mgm_prep.motion.filling import Filler
from mgm_prep.motion.x264 import VECTOR_CODECS, Reencoder
from mgm_prep.runtime.crash_journal import journal
from mgm_prep.sources.discover import Source
from mgm_shared.codec import Planes
from mgm_shared.files import flush
from mgm_shared.geometry import CELL_PX
from mgm_shared.pack import pack_motion
from mgm_shared.schema import (
    PARTS_DIR,
    UNFINISHED_DIR,
    VideoRecord,
    create_tracks,
    frames_spec,
    motion_spec,
)
from mgm_shared.shard_writer import ShardWriter
from mgm_shared.storage import StorePath, publish, scratch_folder

Item = TypeVar("Item")

DECODERS = {"pyav": VideoFile, "mv-extractor": CapturedFile}

# What reading a bad file can raise. Any other error is a fault of this program.
REJECTED = (OSError, ValueError, ArithmeticError, MemoryError, RuntimeError, av.FFmpegError, cv2.error)


@dataclass(frozen=True, kw_only=True)
class Part(Task):
    """A planned part, with its stored size in pixels."""

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What a worker returns: counts and reasons, never arrays."""

    part: str
    num_videos: int
    num_frames: int
    failures: tuple[Failure, ...]


def extract_part(part: Part, store: StorePath, settings: ExtractSettings) -> PartResult:
    """Decode the videos of a part and publish it; a part whose videos are all rejected is not published."""
    # A unique name: Dask may start a task again while the first try is still running elsewhere.
    with scratch_folder(store / UNFINISHED_DIR / f"{part.name}-{uuid.uuid4().hex}") as folder:
        writer = PartWriter(folder, part.height, part.width, settings)
        failures = list(part.rejected)
        with journal(store, part.name, settings.max_seconds) as notes:
            for source in part.sources:
                notes.opening(source.video_id)
                mark = writer.mark()
                try:
                    writer.add_video(source)
                except Unreadable as error:
                    writer.rewind(mark)
                    failures.append(failure_of(source, error))
        if writer.records:
            failures.sort(key=lambda failure: failure.video_id)
            writer.finish({"failures": [asdict(failure) for failure in failures]})
            publish(folder, store / PARTS_DIR / part.name)
        return PartResult(
            part=part.name,
            num_videos=len(writer.records),
            num_frames=sum(record.num_frames for record in writer.records),
            failures=tuple(failures),
        )


class PartWriter:
    """Appends videos to the four arrays of a part, in `directory`."""

    def __init__(self, directory: Path, height: int, width: int, settings: ExtractSettings) -> None:
        self.records: list[VideoRecord] = []
        self._directory = directory
        self._size = (height, width)
        self._settings = settings
        self._frames = ShardWriter(directory, frames_spec(height, width, settings.frame_codec, settings.jpeg_quality))
        self._motion = ShardWriter(directory, motion_spec(height, width))
        self._time_s = array("d")
        self._picture_type = array("B")

    def add_video(self, source: Source) -> None:
        """Decode a video and append it. Unreadable when it cannot be decoded; call `rewind` then.

        An OSError comes from writing, for example to a full disk, and is not the fault of the video.
        """
        version = _version(source)
        start = self._frames.num_frames
        num_corrupt = num_zero = 0
        pts_s, dts_s = array("d"), array("d")
        open_file = ImageFile if source.is_image else DECODERS[self._settings.decoder]
        with open_file(source.path, self._settings) as video:
            header = video.header
            motion_source = self._motion_source(header)
            for picture, frame, motion_YX2 in _reading(self._converted(video.pictures(), motion_source)):
                self._frames.append(frame)
                self._motion.append(pack_motion(motion_YX2))
                pts_s.append(picture.time_s)
                dts_s.append(picture.dts_s)
                self._picture_type.append(picture.picture_type)
                num_corrupt += picture.is_corrupt
                num_zero += is_exported_as_zero(picture)
            num_errors, max_pause_s = video.num_errors, video.max_pause_s
        time_s = shown_at(pts_s, dts_s, header.frame_rate, max_pause_s)
        self._time_s.extend(time_s)
        if _version(source) != version:
            raise Unreadable("the file changed while it was read")
        num_corrupt += num_errors
        share = num_corrupt / (len(time_s) + num_errors)
        if share > self._settings.max_corrupt:
            limit = f"more than max-corrupt = {self._settings.max_corrupt:.0%}"
            raise Unreadable(f"{share:.0%} of it is missing or damaged, {limit}")
        self.records.append(
            VideoRecord(
                video_id=source.video_id,
                start=start,
                num_frames=len(time_s),
                fps=mean_rate(time_s, header.frame_rate),
                label=source.label,
                split=source.split,
                size=version[0],
                mtime=version[1],
                codec=header.codec,
                source_height=header.height,
                source_width=header.width,
                rotation=header.rotation,
                motion_source=f"codec+{self._instead}" if num_zero else motion_source,
                num_corrupt=num_corrupt,
            )
        )

    def copy_video(
        self,
        record: VideoRecord,
        encoded_frames: Iterable[bytes | memoryview],
        packed_TYX2: NDArray[np.int16],
        time_s: NDArray[np.float64],
        picture_type: NDArray[np.uint8],
    ) -> None:
        """Append a video of another part without decoding a frame."""
        start = self._frames.num_frames
        for payload in encoded_frames:
            self._frames.append_encoded(bytes(payload))
        for packed_YX2 in packed_TYX2:
            self._motion.append(packed_YX2)
        self._time_s.extend(time_s.tolist())
        self._picture_type.extend(picture_type.tolist())
        self.records.append(replace(record, start=start))

    def __len__(self) -> int:
        """Number of frames so far."""
        return self._motion.num_frames

    def mark(self) -> tuple[Any, Any]:
        """The current position, for `rewind`."""
        return self._frames.mark(), self._motion.mark()

    def rewind(self, mark: tuple[Any, Any]) -> None:
        """Drop what was appended since `mark`."""
        self._frames.rewind(mark[0])
        self._motion.rewind(mark[1])
        del self._time_s[self._motion.num_frames :], self._picture_type[self._motion.num_frames :]

    def finish(self, attributes: dict[str, Any]) -> None:
        """Write the indexes of the shards and the metadata with `attributes`, and wait until all is on disk."""
        self._frames.close()
        self._motion.close()
        create_tracks(self._directory, np.array(self._time_s), np.array(self._picture_type, np.uint8))
        described = {
            "Conventions": "CF-1.11",
            "height": self._size[0],
            "width": self._size[1],
            "videos": [asdict(record) for record in self.records],
        }
        zarr.create_group(str(self._directory), attributes=described | attributes)
        for path in [*self._directory.rglob("*"), self._directory]:
            flush(path)

    def _motion_source(self, header: Header) -> str:
        if is_image_codec(header.codec):
            return "none"
        return "codec" if header.codec in VECTOR_CODECS else self._instead

    @property
    def _instead(self) -> str:
        """Where motion comes from that a codec does not have."""
        return "none" if self._settings.no_vectors == "skip" else self._settings.no_vectors

    def _converted(
        self, pictures: Iterator[Picture], motion_source: str
    ) -> Iterator[tuple[Picture, Planes | NDArray[np.uint8], NDArray[np.float32]]]:
        """Each picture with its frame and its motion, upright and at the stored size."""
        height, width = self._size
        scaler = PlaneScaler()
        if motion_source == "codec":
            filler = None if self._instead == "none" else Filler(self._instead, height, width)
            for picture, references in with_references(pictures):
                frame = self._frame(picture, scaler)
                motion_YX2 = filler.motion(picture, frame) if filler else None
                if motion_YX2 is None:
                    motion_YX2 = stored_motion(picture, motion_grid(picture, references), height, width)
                yield picture, frame, motion_YX2
            return
        shown = ((picture, self._frame(picture, scaler)) for picture in pictures)
        if motion_source == "estimate":
            with_luma = ((item, luma_of(item[1])) for item in shown)
            yield from ((*item, motion_YX2) for item, motion_YX2 in with_estimates(with_luma, height, width))
        elif motion_source == "transcode":
            reencoder = Reencoder(height, width)
            yield from ((*item, reencoder.motion(luma_of(item[1]))) for item in shown)
        else:
            missing_YX2 = np.full((height // CELL_PX, width // CELL_PX, 2), np.nan, np.float32)
            yield from ((*item, missing_YX2) for item in shown)

    def _frame(self, picture: Picture, scaler: PlaneScaler) -> Planes | NDArray[np.uint8]:
        """The picture, upright and at the stored size; one with another shape than the first is stretched to it."""
        lay = picture.orientation.frame
        size = self._size[::-1] if picture.orientation.is_transposed else self._size
        if self._settings.frame_codec != "lossless":
            return Planes(*map(lay, scaler.planes(picture.frame, *size)))
        return lay(to_rgb(picture.frame, *size))


def file_version(path: Path) -> tuple[int, float]:
    """Size in bytes and modification time of a file. OSError when there is none."""
    status = path.stat()
    return status.st_size, status.st_mtime


def _version(source: Source) -> tuple[int, float]:
    try:
        return file_version(source.path)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _reading(converted: Iterator[Item]) -> Iterator[Item]:
    """The same items. An error while decoding them is the fault of the video, so it becomes Unreadable."""
    while True:
        try:
            item = next(converted)
        except StopIteration:
            return
        except REJECTED as error:
            raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error
        yield item

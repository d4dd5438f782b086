"""The memory that extraction takes: a worker with one very long video; client and scheduler with very many tiny ones.

The long video is a group of pictures that is muxed again and again, so it takes seconds to make; it is all decoded. The
tiny ones are links to one file. To open and decode 240,000 would take most of an hour and shows nothing of the client,
so workers make up what they would find; listing, plan, tasks, results, failures, parts' metadata, index and a second
run are real. Goals: 500 MB a worker, 1 GB for client and scheduler, which share a process.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import click
import numpy as np
import psutil

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import ExtractSummary, extract
from mgm_prep.runtime.execution import Execution

# Read by each worker at its start. Every hundredth video fails; of a part only the metadata is written.
MADE_UP = """
from dataclasses import asdict
from mgm_prep.extraction import headers
from mgm_prep.extraction import part
from mgm_prep.decoding.pyav import Unreadable
from mgm_shared.files import flush
from mgm_shared.schema import VideoRecord, group_metadata

def probe(source, settings):
    if source.video_id.endswith("00.mp4"):
        return headers.failure_of(source, Unreadable("made up"))
    return headers.Probe(video_id=source.video_id, height=256, width=344, num_frames_estimate=300, codec="h264")

class Writer(part.PartWriter):
    def add_video(self, source):
        size, mtime = part.file_version(source.path)
        self.records.append(VideoRecord(
            video_id=source.video_id, start=300 * len(self.records), num_frames=300, fps=30.0, label=source.label,
            split=source.split, size=size, mtime=mtime, codec="h264", source_height=256, source_width=340, rotation=0,
            motion_source="codec", num_corrupt=0,
        ))

    def finish(self, attributes):
        videos = [asdict(record) for record in self.records]
        described = {"height": 256, "width": 344, "videos": videos, **attributes}
        (self._directory / "zarr.json").write_bytes(group_metadata(described))
        flush(self._directory / "zarr.json")

headers.probe, part.PartWriter = probe, Writer
"""


@dataclass
class Peak:
    """The most memory that this process, and any one below it, was seen to hold, MB."""

    own: float = 0
    child: float = 0


@contextmanager
def watched() -> Iterator[Peak]:
    """Look ten times a second."""
    peak, is_over, me = Peak(), threading.Event(), psutil.Process()

    def look() -> None:
        while not is_over.wait(0.1):
            peak.own = max(peak.own, me.memory_info().rss / 1e6)
            for child in me.children(recursive=True):
                try:
                    peak.child = max(peak.child, child.memory_info().rss / 1e6)
                except psutil.NoSuchProcess:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def long_video(path: Path, minutes: float, height: int = 256, width: int = 344) -> None:
    """Ten seconds of a moving texture at 25 frames a second, as often as it takes."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    texture_HWC = np.kron(noise, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path.with_suffix(".once")), "w", format="mp4") as once:
        encoded = once.add_stream("libx264", rate=25)
        encoded.height, encoded.width, encoded.pix_fmt = height, width, "yuv420p"
        encoded.options = {"preset": "veryfast", "threads": "1", "x264-params": "keyint=250:scenecut=0"}
        for t in range(250):
            moved_HWC = np.roll(texture_HWC, (t, 2 * t), (0, 1))
            once.mux(encoded.encode(av.VideoFrame.from_ndarray(moved_HWC, format="rgb24")))
        once.mux(encoded.encode())
    with av.open(str(path.with_suffix(".once"))) as once, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(once.streams.video[0])
        packets = [packet for packet in once.demux(video=0) if packet.size]
        ten_s = round(10 / packets[0].time_base)
        for repeat in range(round(minutes * 6)):
            for packet in packets:
                assert packet.pts is not None
                assert packet.dts is not None
                again = av.Packet(bytes(packet))
                again.pts, again.dts = packet.pts + repeat * ten_s, packet.dts + repeat * ten_s
                again.time_base, again.is_keyframe, again.stream = packet.time_base, packet.is_keyframe, stream
                container.mux(again)
    path.with_suffix(".once").unlink()


def of_one_worker(minutes: float, folder: Path) -> tuple[Peak, ExtractSummary]:
    (folder / "long").mkdir()
    long_video(folder / "long/long.mp4", minutes)
    with watched() as peak:
        return peak, extract(
            folder / "long", folder / "long.store", ExtractSettings(max_seconds=0), Execution(workers=1)
        )


def of_many_sources(number: int, folder: Path) -> tuple[Peak, ExtractSummary, ExtractSummary]:
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(MADE_UP)
    (folder / "clip.mp4").touch()
    for k in range(number):
        link = folder / f"many/class{k % 400:03d}/{k:06d}.mp4"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / "clip.mp4")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), *sys.path])
    with watched() as peak:
        first = extract(folder / "many", folder / "many.store", ExtractSettings(), Execution(workers=2))
        return peak, first, extract(folder / "many", folder / "many.store", ExtractSettings(), Execution(workers=2))


@click.command()
@click.option(
    "--minutes", type=float, default=120, show_default=True, help="Length of the long video; 0 leaves it out."
)
@click.option("--sources", type=int, default=240_000, show_default=True, help="Tiny videos; 0 leaves them out.")
def main(minutes: float, sources: int) -> None:
    print("| | took | most memory, MB | goal |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="mgm-bench-") as name:
        if minutes:
            start_s = time.monotonic()
            peak, summary = of_one_worker(minutes, Path(name))
            took = f"{summary.frames} frames, {time.monotonic() - start_s:.0f} s"
            print(f"| one worker, a video of {minutes:g} minutes | {took} | {peak.child:.0f} | 500 |", flush=True)
        if sources:
            start_s = time.monotonic()
            peak, first, second = of_many_sources(sources, Path(name))
            took = f"{first.done} done, {first.failed} rejected, then {second.extracted_now}; "
            took += f"{time.monotonic() - start_s:.0f} s"
            print(f"| client and scheduler, {sources} videos, two runs | {took} | {peak.own:.0f} | 1000 |", flush=True)


if __name__ == "__main__":
    main()

"""Cut original videos of the corpus into clips: the second half of `corpus.py`."""

import csv
import json
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import av
import click
import imageio_ffmpeg
import numpy as np

from mgm_shared.errors import UserError

CUT_S = 900
# A clip whose consecutive frames differ by less than this many grey levels on average is a still picture.
STILL_LEVELS = 0.4
MIN_CLIP_S = 1.0
MAX_FPS = 30
# Moving crops are this share of the shorter side, and are taken only from pictures of at least MIN_CROPPED_PX.
CROP_SHARE = (0.45, 0.75)
MIN_CROPPED_PX = 224


def source_size(video: Path) -> tuple[int, int]:
    """Width and height of the first video stream. UserError when there is none."""
    try:
        with av.open(str(video)) as container:
            return container.streams.video[0].width, container.streams.video[0].height
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{video} is not a video: {error}") from None


def view_filter(view: int, size: tuple[int, int], size_px: int, name: str) -> str:
    """FFmpeg filters of a view: 0 is the whole picture, the others are square crops that move slowly over it."""
    scale = f"scale={size_px}:{size_px}:force_original_aspect_ratio=increase:force_divisible_by=2"
    if view == 0:
        return f"{scale},setsar=1"
    rng = np.random.default_rng([zlib.crc32(name.encode()), view])
    side = 2 * round(rng.uniform(*CROP_SHARE) * min(size) / 2)
    phase_x, phase_y = rng.uniform(0, 2 * np.pi, 2)
    # Radians a second: the crop crosses the picture in 6 to 16 seconds.
    rate_x, rate_y = rng.uniform(0.2, 0.5, 2)
    x = f"(iw-ow)*(0.5+0.5*sin({phase_x:.3f}+{rate_x:.3f}*t))"
    y = f"(ih-oh)*(0.5+0.5*sin({phase_y:.3f}+{rate_y:.3f}*t))"
    return f"crop={side}:{side}:'{x}':'{y}',scale={size_px}:{size_px},setsar=1"


def cut(video: Path, folder: Path, filters: str, clip_s: float) -> list[Path]:
    """Cut a video into clips of `clip_s` seconds in `folder`: H.264, 3 B-frames, a key frame at each start."""
    folder.mkdir(parents=True)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-protocol_whitelist", "file"]
    command += ["-i", str(video), "-map", "0:v:0", "-an", "-sn", "-dn", "-vf", filters, "-fpsmax", str(MAX_FPS)]
    command += [
        "-c:v",
        "libx264",
        "-preset",
        "medium",
        "-crf",
        "20",
        "-bf",
        "3",
        "-pix_fmt",
        "yuv420p",
        "-threads",
        "1",
    ]
    command += [
        "-threads",
        "1",
        "-force_key_frames",
        f"expr:gte(t,n_forced*{clip_s})",
        "-f",
        "segment",
        "-segment_time",
        str(clip_s),
    ]
    command += ["-reset_timestamps", "1", "-segment_format", "mp4", str(folder / "%04d.mp4")]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=CUT_S)
    except subprocess.CalledProcessError as error:
        # A damaged end leaves the clips before it.
        click.echo(f"corpus: {video.name}: {(error.stderr.strip().splitlines() or ['?'])[-1]}", err=True)
    return sorted(folder.glob("*.mp4"))


def measure(clip: Path) -> dict[str, float]:
    """Duration in seconds, and the mean change between frames in grey levels of a 64×64 picture."""
    frames_THW, duration_s = [], 0.0
    try:
        with av.open(str(clip)) as container:
            for frame in container.decode(video=0):
                frames_THW.append(frame.reformat(64, 64, "gray").to_ndarray().astype(np.float32))
            rate = container.streams.video[0].average_rate
            duration_s = len(frames_THW) / float(rate) if rate else 0.0
    except (av.FFmpegError, IndexError):
        return {"duration_s": 0.0, "change": 0.0}
    change = float(np.abs(np.diff(np.stack(frames_THW), axis=0)).mean()) if len(frames_THW) > 1 else 0.0
    return {"duration_s": round(duration_s, 3), "change": round(change, 3)}


def cut_original(about: dict[str, str], video: Path, out: Path, clip_s: float, size_px: int, num_crops: int) -> None:
    """Write the clips of one original into OUT/clips and, last, the record of them into OUT/cut.

    `about` holds the columns of sources.csv that tell of the package.
    """
    name = f"{about['package']}-{video.stem}"
    record = out / "cut" / f"{name}.json"
    if record.exists():
        return
    rows: list[dict[str, Any]] = []
    size = source_size(video)
    for view in range(1 + (num_crops if min(size) >= MIN_CROPPED_PX else 0)):
        folder = out / ".unfinished" / name
        shutil.rmtree(folder, ignore_errors=True)
        for clip in cut(video, folder, view_filter(view, size, size_px, name), clip_s):
            measured = measure(clip)
            if measured["duration_s"] < min(MIN_CLIP_S, clip_s / 2) or measured["change"] < STILL_LEVELS:
                continue
            kept = out / "clips" / f"{name}-{'crop' + str(view) + '-' if view else ''}{clip.name}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            clip.replace(kept)
            rows.append({"file": kept.name, **about, "original": video.name, "view": view, **measured})
        shutil.rmtree(folder)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(rows))


def write_sources(out: Path) -> list[dict[str, Any]]:
    """Write OUT/sources.csv, a row for each clip."""
    rows = [row for record in sorted((out / "cut").glob("*.json")) for row in json.loads(record.read_text())]
    with (out / "sources.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["file"])
        writer.writeheader()
        writer.writerows(rows)
    return rows

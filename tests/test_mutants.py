"""Damaged files by the hundred: bytes flipped, cut out, swapped. Each is kept or rejected with a reason, and none ends
the run; what is kept has as many frames as plain PyAV gets out of the same file.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import ffmpeg

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.failures import read_failures
from mgm_prep.runtime.execution import Execution
from mgm_shared.store import open_store

CLIPS = {
    "h264.mp4": ("-c:v", "libx264", "-bf", "3", "-g", "12"),
    "faststart.mp4": ("-c:v", "libx264", "-bf", "3", "-g", "12", "-movflags", "+faststart"),
    "fragments.mp4": ("-c:v", "libx264", "-g", "12", "-movflags", "frag_keyframe+empty_moov"),
    "h264.mkv": ("-c:v", "libx264", "-bf", "2", "-g", "12"),
    "h264.ts": ("-c:v", "libx264", "-bf", "2", "-g", "12"),
    "h264.h264": ("-c:v", "libx264", "-g", "12", "-x264-params", "interlaced=1"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2", "-g", "12"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-g", "12"),
    "flv1.flv": ("-c:v", "flv", "-g", "12"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-g", "12"),
    "hevc.mp4": ("-c:v", "libx265", "-preset", "ultrafast", "-g", "12", "-x265-params", "log-level=none"),
    "hevc.mkv": ("-c:v", "libx265", "-preset", "ultrafast", "-g", "12", "-x265-params", "log-level=none"),
}

# Frames that plain PyAV's loop gets out of each file, and what stopped it; a line a file, so that a crash shows which.
PLAIN_LOOP = """
import sys
import av
lenient = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
for path in sys.stdin.read().split():
    num_frames, error = 0, "-"
    try:
        with av.open(path, **lenient) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for _ in container.decode(stream):
                num_frames += 1
    except Exception as raised:
        error = type(raised).__name__
    print(path, num_frames, error, flush=True)
"""


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One of eight kinds of damage, at a random place, as often near an end, where the headers are, as anywhere."""
    size = len(content)
    length = int(rng.integers(1, max(2, size // 10)))
    where = rng.integers(4)
    at = int(rng.integers(min(size, 800))) if where == 0 else int(rng.integers(size))
    at = max(0, size - 1 - int(rng.integers(min(size, 800)))) if where == 1 else at
    block, rest = content[at : at + length], content[at + length :]
    damaged = bytearray(content)
    match rng.integers(8):
        case 0:  # single bits
            for place in rng.integers(size, size=rng.integers(1, 20)):
                damaged[place] ^= 1 << int(rng.integers(8))
        case 1:  # bytes close together
            for place in range(at, min(size, at + 64), int(rng.integers(1, 16))):
                damaged[place] = int(rng.integers(256))
        case 2:
            return content[:at]
        case 3:
            return content[:at] + rest
        case 4:
            return content[:at] + block + block + rest
        case 5:
            return content[:at] + rng.bytes(length) + rest
        case 6:
            return content[:at] + bytes(len(block)) + rest
        case 7:  # two blocks change places
            other = int(rng.integers(size))
            first, second = sorted((at, other))
            return (
                content[:first] + content[second : second + length] + content[first:second] + content[second + length :]
            )
    return bytes(damaged)


def _make(folder: Path, num_mutants: int) -> list[Path]:
    """Mutants of every clip in turn, as many of each."""
    folder.mkdir()
    contents = {}
    for name, options in CLIPS.items():
        ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=1", *options, str(folder / name))
        contents[name] = (folder / name).read_bytes()
        (folder / name).unlink()
    mutants = []
    for number in range(num_mutants):
        name = list(CLIPS)[number % len(CLIPS)]
        mutants.append(folder / f"{number:03d}.{name}")
        mutants[-1].write_bytes(_mutated(contents[name], np.random.default_rng(number)))
    return mutants


def _plain_counts(paths: list[Path]) -> dict[str, tuple[int, str]]:
    """By name; a file that ends the process is left out."""
    counts: dict[str, tuple[int, str]] = {}
    while paths:
        text = "\n".join(map(str, paths))
        lines = subprocess.run([sys.executable, "-c", PLAIN_LOOP], input=text, capture_output=True, text=True).stdout
        for line in lines.splitlines():
            path, num_frames, error = line.split()
            counts[Path(path).name] = int(num_frames), error
        paths = paths[len(lines.splitlines()) + 1 :]
    return counts


@pytest.mark.starts_dask
@pytest.mark.parametrize("num_mutants", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_mutants(tmp_path: Path, num_mutants: int) -> None:
    mutants = _make(tmp_path / "in", num_mutants)
    settings = ExtractSettings(max_corrupt=1.0, max_seconds=30, no_vectors="skip")
    summary = extract(tmp_path / "in", tmp_path / "out.store", settings, Execution(workers=2))
    kept = open_store(tmp_path / "out.store").videos["num_frames"].to_dict()
    failures = read_failures(tmp_path / "out.store")
    assert summary.listed == num_mutants
    assert kept.keys().isdisjoint(failures)
    assert kept.keys() | failures.keys() == {path.name for path in mutants}
    assert all(failure.reason and len(failure.reason.splitlines()) == 1 for failure in failures.values())
    assert not [
        failure for failure in failures.values() if "max-seconds" in failure.reason or "Timeout" in failure.reason
    ]
    plain = _plain_counts(mutants)
    more = 0
    for name, num_frames in kept.items():
        expected, error = plain[str(name)]
        # Where an error ends PyAV's loop, we go on after it, as the ffmpeg program does.
        assert num_frames == expected or (error != "-" and num_frames > expected), name
        more += num_frames > expected
    for name, failure in failures.items():
        crashed = failure.exception == "KilledWorker"
        assert plain.get(name, (0, "-"))[0] == 0 or crashed or "max-pixels" in failure.reason, (name, failure.reason)
    print(f"{len(kept)} kept, {more} of them with more frames than PyAV's loop, {len(failures)} rejected")
    assert len(kept) > num_mutants // 2

"""LeRobot datasets (v3.0): a folder whose videos hold many episodes each, one file series for each camera.

meta/info.json                                      codebase_version, video_path, splits {"train": "0:80"}
meta/episodes/chunk-000/file-000.parquet            a row an episode: episode_index, tasks, and for each camera
                                                    videos/CAMERA/chunk_index, videos/CAMERA/file_index,
                                                    videos/CAMERA/from_timestamp, videos/CAMERA/to_timestamp
videos/observation.images.top/chunk-000/file-000.mp4
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mgm_prep.sources.names import SPLITS
from mgm_prep.sources.segments import About, Segment, segment, unusable
from mgm_shared.errors import UserError

INFO_FILE = Path("meta", "info.json")
VIDEOS_FOLDER = "videos"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FIRST_VERSION = 3


def is_lerobot(folder: Path) -> bool:
    """Whether the folder is a LeRobot dataset of any version."""
    if not (folder / INFO_FILE).is_file():
        return False
    try:
        return "codebase_version" in json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def camera_of(video_id: str) -> str | None:
    """The camera of a video of a dataset, `observation.images.top`; None for another path."""
    parts = video_id.split("/")
    if len(parts) < 3 or parts[0] != VIDEOS_FOLDER:
        return None
    # Version 2 has videos/chunk-000/CAMERA/episode_000000.mp4.
    return parts[2] if parts[1].startswith("chunk-") else parts[1]


def read_episodes(folder: Path) -> Iterator[Segment]:
    """Each episode of each camera as a segment, whose label is its task.

    UserError for a dataset of version 2, whose videos are single episodes, and for files that cannot be read.
    """
    info = _read_info(folder)
    template = info.get("video_path") or VIDEO_PATH
    split_of_episode = _splits(info, folder)
    files = sorted((folder / "meta" / "episodes").glob("**/*.parquet"))
    if not files:
        raise UserError(f"{folder} has no meta/episodes/*.parquet, where LeRobot v3 says where its episodes are")
    for file in files:
        for row, episode in enumerate(_rows(file)):
            number = int(episode["episode_index"])
            where = f"{file}, row {row + 1} (episode {number})"
            tasks = episode.get("tasks") or []
            label = tasks if isinstance(tasks, str) else "; ".join(tasks)
            for camera in sorted(name.split("/")[1] for name in episode if name.endswith("/from_timestamp")):
                yield _episode(where, camera, episode, template, label, split_of_episode.get(number))


def _episode(where: str, camera: str, episode: dict[str, Any], template: str, label: str, split: str | None) -> Segment:
    at = {
        name: episode.get(f"videos/{camera}/{name}")
        for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    }
    sample_id = f"episode_{int(episode['episode_index']):06d}/{camera}"
    about: About = {"label": label, "split": split, "sample_id": sample_id}
    if at["chunk_index"] is None or at["file_index"] is None:
        return unusable(where, (camera,), f"it has no video of the camera {camera}", **about)
    path = template.format(video_key=camera, chunk_index=int(at["chunk_index"]), file_index=int(at["file_index"]))
    place = segment(where, (path,), at["from_timestamp"], at["to_timestamp"], **about)
    # All cameras have files of the same names.
    return replace(place, folder=camera)


def _read_info(folder: Path) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    version = str(info["codebase_version"])
    major = version.removeprefix("v").partition(".")[0]
    if not major.isdigit() or int(major) < FIRST_VERSION:
        raise UserError(
            f"{folder} is a LeRobot dataset of version {version}, and episodes are read from version 3.0 on; convert "
            "it with LeRobot's convert_dataset_v21_to_v30"
        )
    return info


def _splits(info: dict[str, Any], folder: Path) -> dict[int, str]:
    """The split of each episode, from ranges such as {"train": "0:80"}; a single split of all of them says nothing."""
    ranges: dict[str, Any] = info.get("splits") or {}
    if len(ranges) < 2:
        return {}
    found: dict[int, str] = {}
    for name, text in ranges.items():
        start, _, stop = str(text).partition(":")
        if name.lower() not in SPLITS or not start.isdigit() or not stop.isdigit():
            raise UserError(f"{folder / INFO_FILE}: split {name!r}: {text!r} is not train, val or test with START:STOP")
        found |= dict.fromkeys(range(int(start), int(stop)), SPLITS[name.lower()])
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of episodes, without their statistics. UserError when it cannot be read."""
    try:
        with pq.ParquetFile(file) as opened:
            names: Sequence[str] = opened.schema_arrow.names
            wanted = [name for name in names if name.startswith("videos/") or name in ("episode_index", "tasks")]
            if "episode_index" not in wanted:
                raise UserError(f"{file} has no column episode_index; it is none of LeRobot v3")
            rows: list[dict[str, Any]] = opened.read(columns=wanted).to_pylist()
            return rows
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None

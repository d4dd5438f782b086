"""Make the set: for each episode two clips, the episode as it ran and the same frames in the opposite order.

An opening that is played backwards is a closing. So each frame occurs in a clip of both classes of its scene, and
nothing but the order of the frames tells the two apart.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mgm_shared.errors import UserError
from motion50.episode import find_episode, scene_file, stretch
from motion50.pictures import split_clips
from motion50.scenes import SCENES

SPLITS = ("train", "test")
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of a clip, with its split, scene and number."""

    corpus: str
    size_px: int = 128
    num_frames: int = 33
    fps: int = 16
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Item:
    """One episode to film: scene `scene` (an index), clip `number` of `split`."""

    split: str
    scene: int
    number: int


def list_items(num_train: int, num_test: int, scenes: tuple[int, ...] = tuple(range(len(SCENES)))) -> list[Item]:
    """All episodes, so ordered that an unfinished set is balanced: of each number, first all scenes."""
    counts = dict(zip(SPLITS, (num_train, num_test), strict=True))
    every = max(1, round(num_train / max(1, num_test)))
    items = [
        Item(split=split, scene=scene, number=number)
        for split in SPLITS
        for number in range(counts[split])
        for scene in scenes
    ]
    return sorted(items, key=lambda item: item.number * (every if item.split == "test" else 1))


def clip_names(item: Item) -> tuple[str, str]:
    """Paths, without a suffix, of the clip as the expert moved and of the same in the opposite order."""
    classes = SCENES[item.scene].classes
    expert = item.number % 2
    own, other = (f"{item.split}/{name}/{item.number:04d}" for name in (classes[expert], classes[1 - expert]))
    return own, other


def film_item(item: Item, settings: Settings) -> tuple[Any, NDArray[np.float64]]:
    """Render an episode: the clip and the object's progress (T,). Depends on the item and the settings alone."""
    from motion50.look import draw_look
    from motion50.render import get_studio
    from motion50.stage import place

    key = (settings.seed, SPLITS.index(item.split), item.scene, item.number)
    # One stream for each matter: a change of the looks leaves the movements as they are.
    moves, views, looks, paths = (np.random.default_rng((*key, matter)) for matter in range(4))
    scene, expert = SCENES[item.scene], item.number % 2
    episode = find_episode(scene, expert, moves)
    qpos_TQ, progress_T = stretch(episode, settings.num_frames, moves)
    studio = get_studio(scene_file(scene.experts[expert]), settings.size_px)
    place(studio.stage, episode.body_pos_B3, episode.body_quat_B4)
    clips = split_clips(Path(settings.corpus))[item.split]
    look = draw_look(clips, studio.stage.model.nlight, settings.num_frames, settings.size_px, looks)
    moving, centre_3, radius_m = studio.moving_geoms(qpos_TQ)
    path = studio.find_view(qpos_TQ, moving, (centre_3, radius_m), views)
    return studio.film(qpos_TQ, moving, path, look, paths), progress_T


def make_item(item: Item, settings: Settings, out: str) -> int:
    """Write the two clips of an episode with their boxes and truth, unless they are there. The number written."""
    names = clip_names(item)
    if all((Path(out) / "videos" / f"{name}.mp4").exists() for name in names):
        return 0
    clip, progress_T = film_item(item, settings)
    for name, step in zip(names, (1, -1), strict=True):
        path = clip.path if step == 1 else clip.path.reversed()
        truth = {
            "class": name.split("/")[1],
            "expert": SCENES[item.scene].experts[item.number % 2],
            "is_reversed": step == -1,
            "progress": [round(float(value), 5) for value in progress_T[::step]],
            "camera": path.rows(),
            "background_shift_px": np.round(clip.shift_T2[::step], 3).tolist(),
        }
        write(Path(out) / "truth" / f"{name}.json", (json.dumps(truth) + "\n").encode())
        write(Path(out) / "boxes" / f"{name}.txt", mot_lines(clip.boxes_T[::step]).encode())
        write_video(Path(out) / "videos" / f"{name}.mp4", clip.frames_THWC[::step], settings.fps)
    return 2


def mot_lines(boxes_T: list[dict[int, tuple[float, ...]]]) -> str:
    """Boxes as lines of a MOT file: frames and pixels count from 1; the distractor has confidence 0."""
    from motion50.render import DISTRACTOR

    lines = []
    for frame, boxes in enumerate(boxes_T, 1):
        for identity, (left, top, width, height) in sorted(boxes.items()):
            confidence = 0 if identity == DISTRACTOR else 1
            lines.append(f"{frame},{identity},{left + 1:g},{top + 1:g},{width:g},{height:g},{confidence},-1,-1,-1\n")
    return "".join(lines)


def write(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(content)
    beside.replace(path)


def write_video(path: Path, frames_THWC: NDArray[np.uint8], fps: int) -> None:
    """H.264 with 3 B-frames, on one thread, so that the bytes are the same each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # x264's mbtree reads memory that nobody wrote in pictures this small (measured: other bytes after other work in
        # the same process).
        stream.options = {"threads": "1", "preset": "medium", "crf": "20", "bf": "3", "x264-params": "mbtree=0"}
        for index, frame_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    beside.replace(path)


def check_record(out: Path, settings: Settings) -> None:
    """Note the settings in OUT/set.json. UserError when the folder holds a set of other settings or another corpus."""
    clips = [path.name for paths in split_clips(Path(settings.corpus)).values() for path in paths]
    known = {**asdict(settings), "corpus_crc32": zlib.crc32("\n".join(clips).encode()), "version": VERSION}
    del known["corpus"]
    record = out / "set.json"
    if record.exists():
        held = json.loads(record.read_text())
        different = sorted(name for name in known if held.get(name) != known[name])
        if different:
            raise UserError(f"{out} holds a set with another {', '.join(different)}; name another folder")
    else:
        write(record, (json.dumps(known, indent=1) + "\n").encode())


def run(items: list[Item], settings: Settings, out: Path, workers: int) -> int:
    """Make all items in `workers` Dask processes, or in this one with 0; the number of clips written."""
    done = run_on_dask(items, settings, out, workers) if workers else (make_item(i, settings, str(out)) for i in items)
    return sum(tqdm(done, total=len(items), unit="episode", desc="motion50", disable=None))


def run_on_dask(items: list[Item], settings: Settings, out: Path, workers: int) -> Iterator[int]:
    """Make items on a local Dask cluster, one process a worker: OpenGL contexts are not shared by threads."""
    from distributed import Client, LocalCluster, as_completed

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(make_item, items, settings=settings, out=str(out), pure=False)
        for _, written in as_completed(futures, with_results=True):
            yield written

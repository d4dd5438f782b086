"""Clips of textured boxes that stand, move, grow or shrink, and their annotations and proposals in AVA's forms.

Axes: T frames · H,W pixels · C = RGB.
"""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from synthetic import texture, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract

# Class number → name, velocity in px a frame, growth a frame. Number 3 has no box, and 4 is not scored.
ACTIONS = {1: ("stand", 0.0, 0.0), 2: ("go left", -1.2, 0.0), 5: ("go right", 1.2, 0.0), 6: ("come", 0.0, 0.8)}
NAMES = {1: "stand", 2: "go left", 3: "fly", 4: "look", 5: "go right", 6: "come"}
SCORED = (1, 2, 3, 5, 6)
HEIGHT, WIDTH, FPS = 96, 128, 25
NUM_FRAMES = 60

Row = tuple[str, float, tuple[float, ...], int]
"""Video, time in s, box in shares, action."""


def box_at(action: int, lane: int, t: int) -> tuple[float, float, float, float]:
    """A box in pixels in the upper or lower half of the picture: left, top, right, bottom."""
    _, velocity, growth = ACTIONS[action]
    half = 14 + growth * (t - NUM_FRAMES / 2) / 4
    x, y = WIDTH / 2 + velocity * (t - NUM_FRAMES / 2) + 12 * (lane * 2 - 1), HEIGHT * (0.27 + 0.46 * lane)
    return x - half, y - half, x + half, y + half


def draw(actions: Sequence[int], seed: int) -> list[NDArray[np.uint8]]:
    """The frames of a clip, each action with a texture of its own in its lane."""
    ground_HWC = (texture(HEIGHT, WIDTH, seed, is_grey=False) // 3 + 40).astype(np.uint8)
    patches = [texture(64, 64, seed + 100 + lane, is_grey=False) for lane in range(len(actions))]
    frames = []
    for t in range(NUM_FRAMES):
        frame_HWC = ground_HWC.copy()
        for lane, action in enumerate(actions):
            left, top, right, bottom = (round(side) for side in box_at(action, lane, t))
            patch_HWC = cv2.resize(patches[lane], (right - left, bottom - top))
            low, high = max(0, left), min(WIDTH, right)
            frame_HWC[top:bottom, low:high] = patch_HWC[:, low - left : high - left]
        frames.append(frame_HWC)
    return frames


def make_set(folder: Path, pairs: Sequence[tuple[int, int]], times_s: Sequence[float]) -> list[Row]:
    """Write a video for each pair of actions, `videos/clip0.mp4` …, their store, and the files of annotations.

    All clips are in split train and in split val. Returns the rows of the labels.
    """
    rows: list[Row] = []
    (folder / "videos").mkdir(parents=True)
    for number, actions in enumerate(pairs):
        write_video(folder / "videos" / f"clip{number}.mp4", draw(actions, number))
        for time_s in times_s:
            for lane, action in enumerate(actions):
                left, top, right, bottom = box_at(action, lane, round(time_s * FPS))
                box = (left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT)
                rows.append((f"clip{number}", time_s, tuple(round(side, 4) for side in box), action))
    extract(folder / "videos", folder / "boxes.store", ExtractSettings())
    write_annotations(folder / "annotations", rows)
    write_proposals(folder / "proposals.csv", rows)
    return rows


def write_annotations(folder: Path, rows: Sequence[Row], excluded: str = "") -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"{name},{time_s:g},{','.join(map(str, box))},{action},0" for name, time_s, box, action in rows]
    for split in ("train", "val"):
        (folder / f"toy_{split}_v1.0.csv").write_text("\n".join([*lines, ""]))
    (folder / "toy_val_excluded_timestamps_v1.0.csv").write_text(excluded)
    write_classes(folder / "toy_action_list_v1.0.pbtxt", NAMES, "id", "item")
    challenge = {number: NAMES[number] for number in SCORED}
    write_classes(folder / "toy_action_list_v1.0_for_activitynet_2019.pbtxt", challenge, "label_id", "label")


def write_classes(file: Path, names: dict[int, str], key: str, block: str) -> None:
    file.write_text("".join(f'{block} {{\n  name: "{name}"\n  {key}: {n}\n}}\n' for n, name in names.items()))


def boxes_of(rows: Sequence[Row]) -> list[tuple[str, float, tuple[float, ...]]]:
    """The distinct boxes of labels."""
    return sorted({row[:3] for row in rows})


def write_proposals(file: Path, rows: Sequence[Row], score: float = 0.95) -> None:
    """The labelled boxes as proposals, in the form that the suffix names."""
    boxes = boxes_of(rows)
    if file.suffix == ".csv":
        lines = [f"{name},{time_s:g},{','.join(map(str, box))},,{score}" for name, time_s, box in boxes]
        file.write_text("\n".join([*lines, ""]))
    elif file.suffix == ".pkl":
        of_frame: dict[str, list[Any]] = {}
        for name, time_s, box in boxes:
            of_frame.setdefault(f"{name},{time_s:04g}", []).append((*box, score))
        file.write_bytes(pickle.dumps({key: np.array(value) for key, value in of_frame.items()}, protocol=2))
    else:
        numbers = {moment: 7 + k for k, moment in enumerate(dict.fromkeys(box[:2] for box in boxes))}
        images = [
            {"id": number, "movie": name, "timestamp": time_s, "width": 200, "height": 100}
            for (name, time_s), number in numbers.items()
        ]
        file.with_name("pictures.json").write_text(json.dumps({"images": images}))
        found = [_in_pixels(numbers[name, time_s], box, score) for name, time_s, box in boxes]
        file.write_text(json.dumps(found))


def _in_pixels(number: int, box: tuple[float, ...], score: float) -> dict[str, Any]:
    left, top, right, bottom = box
    sides = [left * 200, top * 100, (right - left) * 200, (bottom - top) * 100]
    return {"image_id": number, "category_id": 1, "bbox": sides, "score": score}

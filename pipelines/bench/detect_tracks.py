"""An action detector learns fifty key frames of tracked people by heart: what each box does, from its own track.

    python pipelines/bench/detect_tracks.py TRACKS OUT

TRACKS holds videos with MOT files beside them, NAME.mp4 and NAME.gt.txt, such as MOTChallenge's TUD-Campus and
TUD-Stadtmitte. OUT gets the store, the annotations, the run, and its figure of key frames. The last line is the mAP
with the labelled boxes as proposals, which must be near 1: it is a test of the whole chain, not of the method.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mgm_train
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.boxes import Boxes, read_boxes
from mgm_shared.progress import TerminalProgress
from mgm_shared.store import Video, open_store
from mgm_train.checkpoint.run_folder import RunFolder

ACTIONS = ("still", "left", "right", "towards", "away")
NUM_KEY_FRAMES = 50
# Half of the time over which a box's motion is measured, in frames.
REACH = 8
# Motion of a box's centre in its widths, and growth of its height, over that time, from which on it counts.
MIN_SHIFT, MIN_GROWTH = 0.15, 0.06


def main() -> None:
    """Extract, label, train and test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tracks", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=90)
    arguments = parser.parse_args()
    store_path = arguments.out / "tracks.store"
    if not store_path.exists():
        extract(arguments.tracks, store_path, ExtractSettings())
    write_annotations(
        arguments.tracks, arguments.out / "annotations", open_store(store_path).table["video_id"].to_pylist()
    )
    config = mgm_train.DetectConfig(
        annotations=str(arguments.out / "annotations"), model="vit_tiny", num_frames=8, stride=2, image_px=144,
        crop_scale=1.0, flip=False, box_jitter=False, colour_jitter=False, batch_size=5, epochs=arguments.epochs,
        warmup_epochs=5, base_lr=4e-2, layer_decay=1.0, drop_path=0.0, eval_every_epochs=15, num_workers=0,
    )  # fmt: skip
    with TerminalProgress() as progress:
        mgm_train.detect(store_path, arguments.out / "run", config, progress=progress)
    mgm_train.visualize(store_path, arguments.out / "run")
    rows = RunFolder(arguments.out / "run").read_metrics()
    print([row["val_labelled_boxes_mean_ap"] for row in rows if "val_labelled_boxes_mean_ap" in row][-1])


def write_annotations(tracks: Path, folder: Path, video_ids: list[str]) -> None:
    """AVA's files for `NUM_KEY_FRAMES` key frames, spread evenly over the videos; train and val are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(folder.parent / "tracks.store")
    videos = [store[video_id] for video_id in video_ids]
    places = [(video, frame) for video in videos for frame in range(REACH, video.num_frames - REACH)]
    chosen = [places[k] for k in np.linspace(0, len(places) - 1, NUM_KEY_FRAMES).round().astype(int).tolist()]
    boxes_of = {video.video_id: read_boxes(tracks / Path(video.video_id).with_suffix(".gt.txt")) for video in videos}
    lines = [line for video, frame in chosen for line in key_frame_lines(video, boxes_of[video.video_id], frame)]
    for split in ("train", "val"):
        (folder / f"tracks_{split}_v1.csv").write_text("\n".join([*lines, ""]))
    blocks = [f'label {{ name: "{name}" label_id: {number} }}\n' for number, name in enumerate(ACTIONS, 1)]
    (folder / "tracks_action_list.pbtxt").write_text("".join(blocks))


def key_frame_lines(video: Video, boxes: Boxes, frame: int) -> Iterator[str]:
    """A line for each action of each box of a frame whose track reaches far enough before and after it."""
    size_2 = np.array([video.record["source_width"], video.record["source_height"]])
    time_s = video.time_s[frame]
    for k in np.flatnonzero(boxes.frame_K == frame).tolist():
        before, after = (nearest_box(boxes, k, frame + shift) for shift in (-REACH, REACH))
        if before is None or after is None:
            continue
        left, top, width, height = boxes.box_K4[k]
        first_2, last_2 = (
            (np.array([left, top]) / size_2).clip(0, 1),
            (np.array([left + width, top + height]) / size_2).clip(0, 1),
        )
        sides = ",".join(f"{side:.5f}" for side in (*first_2, *last_2))
        yield from (f"{Path(video.video_id).stem},{time_s:.3f},{sides},{n},{k}" for n in actions(before, after))


def nearest_box(boxes: Boxes, k: int, frame: int) -> NDArray[np.float64] | None:
    """The box of another frame that is nearest to box k and of like height: the same person, `REACH` frames on."""
    there_4 = boxes.box_K4[boxes.frame_K == frame]
    if not len(there_4):
        return None
    own_4 = boxes.box_K4[k]
    distance = np.hypot(*(there_4[:, :2] + there_4[:, 2:] / 2 - own_4[:2] - own_4[2:] / 2).T) / own_4[2]
    best = int((distance + 2 * np.abs(np.log(there_4[:, 3] / own_4[3]))).argmin())
    return there_4[best] if distance[best] < 1 else None


def actions(before_4: NDArray[np.float64], after_4: NDArray[np.float64]) -> list[int]:
    """The numbers of what a box does between two frames."""
    shift = ((after_4[0] + after_4[2] / 2) - (before_4[0] + before_4[2] / 2)) / before_4[2]
    growth = np.log(after_4[3] / before_4[3])
    does = {
        "left": shift < -MIN_SHIFT,
        "right": shift > MIN_SHIFT,
        "towards": growth > MIN_GROWTH,
        "away": growth < -MIN_GROWTH,
    }
    found = [name for name, is_true in does.items() if is_true]
    return [ACTIONS.index(name) + 1 for name in found or ["still"]]


if __name__ == "__main__":
    main()

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
from mgm_shared.cli import shown_progress
from mgm_shared.store import Video, open_store
from mgm_train.checkpoint.run_folder import RunFolder

ACTIONS = ("still", "left", "right", "towards", "away")
NUM_KEY_FRAMES = 50
# Half of the time over which a box's motion is measured, in frames.
REACH = 8
# Motion of a box's centre in its widths, and growth of its height, over that time, from which on it counts.
MIN_SHIFT, MIN_GROWTH = 0.15, 0.03

Tracks = dict[tuple[int, int], NDArray[np.float64]]
"""(frame, person) → left, top, width, height in pixels from 0."""


def main() -> None:
    """Extract, label, train and test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tracks", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=80)
    arguments = parser.parse_args()
    store_path = arguments.out / "tracks.store"
    if not store_path.exists():
        extract(arguments.tracks, store_path, ExtractSettings())
    write_annotations(
        arguments.tracks, arguments.out / "annotations", open_store(store_path).table["video_id"].to_pylist()
    )
    config = mgm_train.DetectConfig(
        annotations=str(arguments.out / "annotations"), model="vit_tiny", patch_px=8, image_px=128, num_frames=4,
        stride=4, crop_scale=1.0, flip=False, box_jitter=False, colour_jitter=False, batch_size=5,
        epochs=arguments.epochs, warmup_epochs=5, base_lr=4e-2, layer_decay=1.0, drop_path=0.0, eval_every_epochs=10,
        num_workers=0,
    )  # fmt: skip
    with shown_progress() as progress:
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
    tracked = {video.video_id: read_tracks(tracks / Path(video.video_id).with_suffix(".gt.txt")) for video in videos}
    lines = [line for video, frame in chosen for line in key_frame_lines(video, tracked[video.video_id], frame)]
    for split in ("train", "val"):
        (folder / f"tracks_{split}_v1.csv").write_text("\n".join([*lines, ""]))
    blocks = [f'label {{ name: "{name}" label_id: {number} }}\n' for number, name in enumerate(ACTIONS, 1)]
    (folder / "tracks_action_list.pbtxt").write_text("".join(blocks))


def read_tracks(file: Path) -> Tracks:
    """The boxes of a MOT file by frame, from 0, and person."""
    rows_KX = np.loadtxt(file, delimiter=",")
    return {(int(row_X[0]) - 1, int(row_X[1])): row_X[2:6] - (1, 1, 0, 0) for row_X in rows_KX}


def key_frame_lines(video: Video, box_of: Tracks, frame: int) -> Iterator[str]:
    """A line for each action of each box of a frame whose track reaches far enough before and after it."""
    size_2 = np.array([video.record["source_width"], video.record["source_height"]])
    for person in sorted(person for at, person in box_of if at == frame):
        before_4, after_4 = (box_of.get((frame + shift, person)) for shift in (-REACH, REACH))
        if before_4 is None or after_4 is None:
            continue
        first_2, last_2 = box_of[frame, person][:2], box_of[frame, person][:2] + box_of[frame, person][2:]
        sides = ",".join(f"{side:.5f}" for side in np.concatenate([first_2 / size_2, last_2 / size_2]).clip(0, 1))
        moment = f"{Path(video.video_id).stem},{video.time_s[frame]:.3f}"
        yield from (f"{moment},{sides},{number},{person}" for number in actions(before_4, after_4))


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

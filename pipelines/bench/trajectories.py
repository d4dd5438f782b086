"""How true are trajectories from codec vectors? Against known motion, and against optical flow and labelled boxes.

    python pipelines/bench/trajectories.py [VIDEOS]

VIDEOS is a folder of videos with MOT files NAME.gt.txt beside them. Known motion: textures that pan, zoom and turn, and
a textured square that moves over another texture, encoded by x264 with its defaults. Points on the 8-px grid are
carried from every fourth frame over 1, 2, 4 and 8 frames:

- codec: `mgm_train.data.trajectories`.
- naive: each step takes the vector at the point's old place, bilinear. "codec where naive" counts the same points.
- DIS, Farneback: OpenCV's flow from each frame to the next, bilinear.

The end-point error is in stored pixels. `deformation` is the explained share of what TrackMAE's and M3Video's targets
keep after normalization in a token: the displacements of its 2×2 points less their mean.

Axes: S stored frames · H,W pixels · L lengths · Y,X points of the grid · K boxes · 2 = (dx, dy) px.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import click
import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_prep import Execution, ExtractSettings, extract
from mgm_shared.boxes import Boxes, boxes_at, read_boxes
from mgm_shared.geometry import CELL_PX, Box
from mgm_shared.store import Video, open_store
from mgm_train.data.trajectories import carry, consecutive_stops, trajectories
from mgm_train.data.views import View

LENGTHS = (1, 2, 4, 8)
START_STEP = 4
NUM_FRAMES, HEIGHT, WIDTH = 49, 256, 344
# The square of "square over ground": its side, and where it starts.
SQUARE_PX, SQUARE_START = 96, (20, 0)

Field = NDArray[np.float32]
Moved = tuple[Field, NDArray[np.bool_]]
"""Displacements (L, Y, X, 2) after each of LENGTHS, and which of them are valid."""


@dataclass
class Known:
    """A rendered clip: `path(f)` maps the grid's points of frame 0, (Y, X, 2), to where they are in frame f."""

    name: str
    matrix: NDArray[np.float64]
    """A step of the content, 2×3, about the picture's middle."""
    square_velocity: tuple[int, int] | None = None

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        ground_HWC, square_HWC = texture(0), texture(1)[:SQUARE_PX, :SQUARE_PX]
        for frame in range(NUM_FRAMES):
            shown_HWC = warped(ground_HWC, power(self.matrix, frame))
            if self.square_velocity is not None:
                y, x = (start + frame * step for start, step in zip(SQUARE_START, self.square_velocity, strict=True))
                shown_HWC[y : y + SQUARE_PX, x : x + SQUARE_PX] = square_HWC
            yield shown_HWC

    def truth(self, start: int, num_frames: int) -> Moved:
        """Where the grid's points of a frame go, (Y, X, 2), and whether they stay in sight."""
        points_YX2 = grid_points(HEIGHT, WIDTH)
        step = power(self.matrix, num_frames)
        middle_2 = np.array([WIDTH, HEIGHT]) / 2
        end_YX2 = (points_YX2 - middle_2) @ step[:, :2].T + step[:, 2] + middle_2
        is_seen_YX = np.asarray(((end_YX2 >= 0) & (end_YX2 < (WIDTH, HEIGHT))).all(-1), np.bool_)
        if self.square_velocity is not None:
            velocity_2 = np.array(self.square_velocity[::-1])
            corner_2 = np.array(SQUARE_START[::-1]) + start * velocity_2
            is_on_YX = in_square(points_YX2, corner_2)
            end_YX2 = np.where(is_on_YX[..., None], points_YX2 + num_frames * velocity_2, end_YX2)
            # The ground that the square comes to cover goes nowhere.
            is_seen_YX &= is_on_YX | ~in_square(end_YX2, corner_2 + num_frames * velocity_2)
        return (end_YX2 - points_YX2).astype(np.float32), is_seen_YX


def in_square(points_YX2: NDArray[Any], corner_2: NDArray[Any]) -> NDArray[np.bool_]:
    is_in_YX2 = (points_YX2 >= corner_2) & (points_YX2 < corner_2 + SQUARE_PX)
    return np.asarray(is_in_YX2.all(-1), np.bool_)


def affine(dx: float = 0, dy: float = 0, scale: float = 1, degrees: float = 0) -> NDArray[np.float64]:
    """A step of the content about the middle, 2×3."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[scale * cos, -scale * sin, dx], [scale * sin, scale * cos, dy]])


def power(matrix: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.linalg.matrix_power(np.vstack([matrix, [0, 0, 1]]), exponent)[:2]
    return result


def known_clips() -> list[Known]:
    return [
        Known("pan (3, −2) px a frame", affine(3, -2)),
        Known("pan (1.5, 0.75)", affine(1.5, 0.75)),
        Known("pan (9, 4)", affine(9, 4)),
        Known("zoom 1 % a frame", affine(scale=1.01)),
        Known("zoom 2.5 %", affine(scale=1.025)),
        Known("turn 0.5° a frame", affine(degrees=0.5)),
        Known("turn 1.5°", affine(degrees=1.5)),
        Known("square (2, 1) over ground (−1, 0)", affine(-1, 0), (1, 2)),
        Known("square (5, 2) over ground (−1, 0)", affine(-1, 0), (2, 5)),
    ]


def texture(seed: int) -> NDArray[np.uint8]:
    """Band-limited colour noise, large enough for all clips."""
    noise_HWC = np.random.default_rng(seed).normal(size=(1100, 1400, 3)).astype(np.float32)
    fine_HWC, coarse_HWC = cv2.GaussianBlur(noise_HWC, (0, 0), 2), cv2.GaussianBlur(noise_HWC, (0, 0), 8)
    mixed_HWC = fine_HWC / fine_HWC.std() + coarse_HWC / coarse_HWC.std()
    return np.asarray((128 + 35 * mixed_HWC).clip(0, 255), np.uint8)


def warped(texture_HWC: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The texture after a motion about the picture's middle; pixel centres are at half."""
    to_middle = np.array([[1, 0, texture_HWC.shape[1] / 2 - 0.5], [0, 1, texture_HWC.shape[0] / 2 - 0.5], [0, 0, 1]])
    from_middle = np.array([[1, 0, 0.5 - WIDTH / 2], [0, 1, 0.5 - HEIGHT / 2], [0, 0, 1]])
    back = to_middle @ np.linalg.inv(np.vstack([matrix, [0, 0, 1]])) @ from_middle
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(texture_HWC, back[:2], (WIDTH, HEIGHT), flags=flags), np.uint8)


def write_video(path: Path, frames: Iterator[NDArray[np.uint8]]) -> Path:
    """Encode RGB frames by x264 with its defaults."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.options = "yuv420p", {"threads": "1"}
        stream.height, stream.width = HEIGHT, WIDTH
        for frame_HWC in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


def grid_points(height: int, width: int) -> NDArray[np.float64]:
    """The centres of the cells, (Y, X, 2) of (x, y)."""
    y_Y, x_X = ((np.arange(side // CELL_PX) + 0.5) * CELL_PX for side in (height, width))
    return np.stack(np.meshgrid(x_X, y_Y), axis=-1)


def by_codec(motion_SYX2: Field, start: int) -> Moved:
    y_Y, x_X = ((np.arange(side) + 0.5) * CELL_PX for side in motion_SYX2.shape[1:3])
    found = carry(motion_SYX2, np.array([start]), start + np.array([LENGTHS]), y_Y, x_X)
    return found.moved_tLYX2[0], found.is_valid_tLYX[0]


def by_fields(fields: list[Field], start: int, px: float, height: int, width: int) -> Moved:
    """Carried by fields (rows, columns, 2) that say where the content at a place goes; a value every `px` pixels."""
    points_YX2 = grid_points(height, width).astype(np.float32)
    place_YX2, moved, valid = points_YX2.copy(), [], []
    is_valid_YX = np.ones(points_YX2.shape[:2], np.bool_)
    for frame in range(start, start + LENGTHS[-1]):
        at_YX2 = place_YX2 / px - np.float32(0.5)
        step_YX2 = cv2.remap(fields[frame], at_YX2, np.empty(0), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        place_YX2 = place_YX2 + step_YX2
        is_valid_YX = is_valid_YX & ((place_YX2 >= 0) & (place_YX2 < (width, height))).all(-1)
        if frame + 1 - start in LENGTHS:
            moved.append(place_YX2 - points_YX2)
            valid.append(is_valid_YX)
    return np.stack(moved), np.stack(valid)


def flows(frames_THWC: NDArray[np.uint8]) -> dict[str, list[Field]]:
    """OpenCV's flows from each frame to the next."""
    grey_THW = [cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY) for frame_HWC in frames_THWC]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    no_guess: Any = None
    pairs = list(pairwise(grey_THW))
    return {
        "DIS": [dis.calc(*pair, no_guess) for pair in pairs],
        "Farneback": [cv2.calcOpticalFlowFarneback(*pair, no_guess, 0.5, 3, 15, 3, 5, 1.2, 0) for pair in pairs],
    }


def carriers(video: Video) -> dict[str, Callable[[int], Moved]]:
    """By name: the trajectories of the points of a frame."""
    motion_SYX2, size = video.motion[:], (video.height, video.width)
    by_flow = flows(video.frames[:])
    cells = [np.ascontiguousarray(motion_YX2) for motion_YX2 in motion_SYX2[1:]]

    def where_naive(start: int) -> Moved:
        moved_LYX2, is_valid_LYX = by_codec(motion_SYX2, start)
        return moved_LYX2, is_valid_LYX & by_fields(cells, start, CELL_PX, *size)[1]

    return {
        "codec": lambda start: by_codec(motion_SYX2, start),
        "codec where naive": where_naive,
        "naive": lambda start: by_fields(cells, start, CELL_PX, *size),
        "DIS": lambda start: by_fields(by_flow["DIS"], start, 1, *size),
        "Farneback": lambda start: by_fields(by_flow["Farneback"], start, 1, *size),
    }


@dataclass
class Errors:
    """End-point errors of one method at each length, and the squares of true and missed deformation."""

    errors: dict[int, list[NDArray[Any]]] = field(default_factory=lambda: {length: [] for length in LENGTHS})
    num_wanted: dict[int, int] = field(default_factory=lambda: dict.fromkeys(LENGTHS, 0))
    deformation: dict[int, list[tuple[float, float]]] = field(
        default_factory=lambda: {length: [] for length in LENGTHS}
    )

    def add(self, length: int, moved: Moved, truth: Moved) -> None:
        """One start: (Y, X, 2) and validity of the method and of the truth."""
        (moved_YX2, is_valid_YX), (true_YX2, is_wanted_YX) = moved, truth
        is_known_YX = is_valid_YX & is_wanted_YX
        self.errors[length].append(np.linalg.norm(moved_YX2 - true_YX2, axis=-1)[is_known_YX])
        self.num_wanted[length] += int(is_wanted_YX.sum())
        token_YX2x = [in_tokens(field_YXC) for field_YXC in (moved_YX2, true_YX2, is_known_YX[..., None])]
        moved_N42, true_N42, is_known_N41 = token_YX2x
        is_whole_N = is_known_N41.all((1, 2))
        ours_N42, true_N42 = (v[is_whole_N] - v[is_whole_N].mean(1, keepdims=True) for v in (moved_N42, true_N42))
        self.deformation[length].append((float(((ours_N42 - true_N42) ** 2).sum()), float((true_N42**2).sum())))

    def row(self, length: int) -> str:
        errors = np.concatenate(self.errors[length])
        missed, total = np.sum(self.deformation[length], axis=0)
        explained = f"{1 - missed / total:6.2f}" if total > 1e-3 else "     –"
        share = len(errors) / max(1, self.num_wanted[length])
        return f"{errors.mean():8.2f} {np.median(errors):7.2f} {share:7.3f} {explained}"


def in_tokens(field_YXC: NDArray[Any]) -> NDArray[Any]:
    """(N, 4, C): the 2×2 points of each whole token."""
    rows, columns = (side // 2 for side in field_YXC.shape[:2])
    cut = field_YXC[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, -1)
    return cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, 4, -1)


def starts(num_frames: int) -> range:
    return range(1, num_frames - LENGTHS[-1], START_STEP)


def print_errors(title: str, by_name: dict[str, Errors]) -> None:
    click.echo(f"\n{title}\n{'':32}frames    mean  median   valid  deformation")
    for name, errors in by_name.items():
        for length in LENGTHS:
            click.echo(f"{name:32}{length:6}{errors.row(length)}")


def measure_known(clip: Known, video: Video) -> dict[str, Errors]:
    by_name = {}
    for name, carrier in carriers(video).items():
        by_name[name] = errors = Errors()
        for start in starts(video.num_frames):
            moved_LYX2, is_valid_LYX = carrier(start)
            for k, length in enumerate(LENGTHS):
                errors.add(length, (moved_LYX2[k], is_valid_LYX[k]), clip.truth(start, length))
    return by_name


def measure_against_flow(video: Video) -> dict[str, Errors]:
    """Codec and Farneback against DIS, and codec against Farneback: everywhere."""
    by = carriers(video)
    pairs = (
        ("codec", "DIS"),
        ("codec where naive", "DIS"),
        ("naive", "DIS"),
        ("Farneback", "DIS"),
        ("codec", "Farneback"),
    )
    by_name = {f"{one} against {other}": Errors() for one, other in pairs}
    for start in starts(video.num_frames):
        moved = {name: carrier(start) for name, carrier in by.items()}
        for one, other in pairs:
            for k, length in enumerate(LENGTHS):
                ours, theirs = ((moved[name][0][k], moved[name][1][k]) for name in (one, other))
                by_name[f"{one} against {other}"].add(length, ours, theirs)
    return by_name


def tracks_at(file: Path, boxes: Boxes, video: Video, frame: int) -> dict[int, Box]:
    """The boxes of a frame by their track, in stored pixels."""
    ids_K = np.array([int(float(line.split(",")[1])) for line in file.read_text().split()])
    return dict(zip(ids_K[boxes.frame_K == frame].tolist(), boxes_at(boxes, video, frame), strict=True))


def centre(box: Box) -> NDArray[np.float64]:
    return np.array([box.x + box.width / 2, box.y + box.height / 2])


def measure_boxes(video: Video, file: Path) -> None:
    """The median displacement of the points in the middle of each box, against that of its centre."""
    boxes, by = read_boxes(file), carriers(video)
    points_YX2 = grid_points(video.height, video.width)
    errors: dict[tuple[str, int], list[float]] = {}
    num = dict.fromkeys(LENGTHS, 0)
    for start in starts(video.num_frames):
        moved = {name: carrier(start) for name, carrier in by.items()}
        now = tracks_at(file, boxes, video, start)
        for k, length in enumerate(LENGTHS):
            later = tracks_at(file, boxes, video, start + length)
            for track in now.keys() & later.keys():
                box, true_2 = now[track], centre(later[track]) - centre(now[track])
                far_YX2 = np.abs(points_YX2 - centre(box)) / (box.width, box.height)
                is_in_YX = (far_YX2 < 0.25).all(-1)
                if not is_in_YX.any():
                    continue
                num[length] += 1
                errors.setdefault(("nothing moves", length), []).append(float(np.linalg.norm(true_2)))
                for name, (moved_LYX2, is_valid_LYX) in moved.items():
                    is_known_YX = is_in_YX & is_valid_LYX[k]
                    if is_known_YX.any():
                        found_2 = np.median(moved_LYX2[k][is_known_YX], axis=0)
                        errors.setdefault((name, length), []).append(float(np.linalg.norm(found_2 - true_2)))
    click.echo(f"\n{video.video_id}, box centres\n{'':32}frames    mean  median   valid")
    for name in dict.fromkeys(name for name, _ in errors):
        for length in LENGTHS:
            of = errors[name, length]
            click.echo(f"{name:32}{length:6}{np.mean(of):8.2f} {np.median(of):7.2f} {len(of) / num[length]:7.3f}")


def print_cost() -> None:
    """CPU time of the trajectories of one clip: 16 frames at stride 4, 224 px."""
    rng = np.random.default_rng(0)
    motion_SYX2 = (rng.integers(-16, 17, (65, 32, 43, 2)) / 16 + (3, -1)).astype(np.float32)
    motion_SYX2[:, 10:14, 10:14] = np.nan
    view = View(box=Box(x=20, y=10, width=224, height=192), size_px=224, is_mirrored=True)
    indices_T = 4 * np.arange(16)
    for num_steps in (1, 4, 8):
        times = []
        for _ in range(200):
            start_s = time.process_time()
            trajectories(motion_SYX2, indices_T[::2], consecutive_stops(indices_T, 2, num_steps), view)
            times.append(time.process_time() - start_s)
        click.echo(
            f"{num_steps} frames from each slice: {1e3 * np.median(times):.2f} ms a clip of 16 frames at stride 4"
        )


def extracted(videos: Path, store: Path) -> Any:
    extract(videos, store, ExtractSettings(), Execution(workers=0))
    return open_store(store)


@click.command()
@click.argument("videos", type=click.Path(path_type=Path), required=False)
@click.option(
    "--store", type=click.Path(path_type=Path), help="Of VIDEOS; extracted into a temporary folder otherwise."
)
def main(videos: Path | None, store: Path | None) -> None:
    """Measure trajectories on known motion, and on VIDEOS with MOT files NAME.gt.txt."""
    cv2.setNumThreads(1)
    print_cost()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "known").mkdir()
        clips = known_clips()
        for k, clip in enumerate(clips):
            write_video(folder / "known" / f"{k}.mp4", clip.frames())
        known = extracted(folder / "known", folder / "known.store")
        for k, clip in enumerate(clips):
            print_errors(clip.name, measure_known(clip, known[f"{k}.mp4"]))
        if videos is not None:
            opened = open_store(store) if store else extracted(videos, folder / "videos.store")
            for video in opened:
                print_errors(f"{video.video_id}, flows", measure_against_flow(video))
                measure_boxes(video, (videos / video.video_id).with_suffix(".gt.txt"))


if __name__ == "__main__":
    main()

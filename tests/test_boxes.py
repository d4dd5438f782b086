"""MOT files: read, laid on the stored picture, refused with the line that is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgm_shared.boxes import box_file, box_files, box_peaks, cells_in_boxes, read_boxes
from mgm_shared.errors import UserError
from mgm_shared.store import Store

VIDEO = "train/left/0.mp4"


@pytest.fixture
def mot(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: Any) -> Any:
        file = tmp_path / "boxes.txt"
        file.write_text(text)
        return file

    return write


def test_frames_and_pixels_count_from_one_and_ignored_boxes_are_left_out(mot: Callable[[str], Path]) -> None:
    boxes = read_boxes(mot("1,7,11,21,30,40,1,-1,-1,-1\n3,7,1.5,1,2,2\n\n2,8,5,5,5,5,0,1,1,1\n"))
    assert boxes.frame_K.tolist() == [0, 2]
    assert boxes.box_K4.tolist() == [[10, 20, 30, 40], [0.5, 0, 2, 2]]


def test_a_cell_that_touches_a_box_is_in_it(pan_store: Store, mot: Callable[[str], Path]) -> None:
    # 128×160 px, as stored. Pixels 8 to 15 are cell 1; a box over 15 and 16 touches two.
    boxes = read_boxes(mot("1,1,9,17,8,8,1\n2,1,16,17,2,8,1\n3,1,-20,-20,25,25,1\n4,1,150,120,50,50,1\n"))
    is_inside_TYX = cells_in_boxes(boxes, pan_store[VIDEO])
    assert is_inside_TYX.shape == (24, 16, 20)
    cells = [{tuple(cell) for cell in np.argwhere(is_inside_YX).tolist()} for is_inside_YX in is_inside_TYX[:5]]
    assert cells[:3] == [{(2, 1)}, {(2, 1), (2, 2)}, {(0, 0)}]
    assert cells[3] == {(y, x) for y in (14, 15) for x in (18, 19)}
    assert not cells[4]


def test_boxes_of_the_source_are_scaled_and_turned_with_the_picture(
    pan_store: Store, mot: Callable[[str], Path]
) -> None:
    video = pan_store[VIDEO]
    boxes = read_boxes(mot("1,1,321,1,320,256,1\n"))
    larger = replace(video, record=video.record | {"source_width": 640, "source_height": 512})
    assert cells_in_boxes(boxes, larger)[0, :8, 10:].all()
    assert cells_in_boxes(boxes, larger)[0].sum() == 8 * 10
    turned = replace(video, record=larger.record | {"source_width": 512, "source_height": 640, "rotation": 90})
    assert np.array_equal(cells_in_boxes(boxes, turned), cells_in_boxes(boxes, larger))


def test_the_highest_point_is_the_middle_of_the_largest_box(pan_store: Store, mot: Callable[[str], Path]) -> None:
    boxes = read_boxes(mot("2,1,17,17,40,24,1\n2,2,97,97,16,16,1\n"))
    peaks_TYX = box_peaks(boxes, pan_store[VIDEO], slice(0, 3))
    assert np.isnan(peaks_TYX[[0, 2]]).all()
    # 5 cells wide from cell 2, 3 high from cell 2.
    assert np.unravel_index(peaks_TYX[1].argmax(), (16, 20)) == (3, 4)
    assert peaks_TYX[1].max() == 5 * 3
    assert np.array_equal(peaks_TYX[1] > 0, cells_in_boxes(boxes, pan_store[VIDEO])[1])
    assert np.array_equal(box_peaks(boxes, pan_store[VIDEO], slice(1, 2))[0], peaks_TYX[1])


def test_a_folder_has_a_file_for_each_video(tmp_path: Path) -> None:
    assert box_file(tmp_path, "train/wave/17.mp4") == tmp_path / "train/wave/17.txt"
    assert box_file(tmp_path / "one.txt", "train/wave/17.mp4") == tmp_path / "one.txt"


@pytest.mark.parametrize(
    ("video_id", "file"),
    [
        ("train/wave/17.mp4", "train/wave/17.txt"),
        ("train/wave/17.mp4", "train/wave/17.mp4.txt"),
        ("train/wave/17.mp4", "train/wave/17/gt/gt.txt"),
        ("MOT17-02-raw.webm", "MOT17-02/gt/gt.txt"),
        ("MOT17-02-raw.webm", "MOT17-02.txt"),
        ("v1.2/a.b.mp4", "v1.2/a.b.txt"),
        ("/data/17.mp4", "17.txt"),
        ("../17.mp4", "17/gt/gt.txt"),
    ],
)
def test_where_the_boxes_of_a_video_may_lie(tmp_path: Path, video_id: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert box_file(tmp_path, video_id) == tmp_path / file
    assert box_files(tmp_path, [video_id, "other.mp4"]) == {video_id: tmp_path / file}


def test_the_folder_may_be_the_one_that_the_id_begins_with(tmp_path: Path) -> None:
    (tmp_path / "train/A/gt").mkdir(parents=True)
    (tmp_path / "train/A/gt/gt.txt").touch()
    assert box_file(tmp_path / "train", "train/A.mp4") == tmp_path / "train/A/gt/gt.txt"


def test_a_name_alone_finds_its_boxes_only_if_one_video_has_it(tmp_path: Path) -> None:
    (tmp_path / "A.txt").touch()
    (tmp_path / "B.txt").touch()
    assert box_files(tmp_path, ["x/A.mp4", "y/A.mp4", "y/B.mp4"]) == {"y/B.mp4": tmp_path / "B.txt"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_box_files_of_windows_programs(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("1,7,11,21,30,40,1\r\n\r\n2, 7, 1, 1, 2, 2\r\n".encode(encoding))
    assert read_boxes(tmp_path / "a.txt").box_K4.tolist() == [[10, 20, 30, 40], [0, 0, 2, 2]]


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n",
        "a,1,2,3,4,5\n",
        "0,1,2,3,4,5,1\n",
        "1.5,1,2,3,4,5,1\n",
        "1,1,nan,3,4,5,1\n",
        "1e300,1,2,3,4,5,1\n",
        "# x\n",
    ],
)
def test_a_line_that_is_no_box_is_named(mot: Callable[[str], Path], text: str) -> None:
    with pytest.raises(UserError, match=r"boxes\.txt, line 2: not `frame,id"):
        read_boxes(mot("1,1,1,1,5,5,1\n" + text))


def test_files_that_cannot_be_read_or_belong_to_another_video_are_refused(
    mot: Callable[[str], Path], tmp_path: Path, pan_store: Store
) -> None:
    with pytest.raises(UserError, match=r"none\.txt cannot be read: No such file"):
        read_boxes(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(bytes([255, 0, 0, 200]))
    with pytest.raises(UserError, match=r"binary\.txt is not UTF-8 text"):
        read_boxes(tmp_path / "binary.txt")
    with pytest.raises(UserError, match=r"boxes for frame 25; train/left/0\.mp4 has 24"):
        cells_in_boxes(read_boxes(mot("25,1,1,1,5,5,1\n")), pan_store[VIDEO])

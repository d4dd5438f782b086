"""Segment tables of each format, small ones made by hand: which rows they give, and which rows are rejected and why."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgm_prep.sources.discover import find_sources
from mgm_prep.sources.segment_files import read_segment_files
from mgm_prep.sources.segments import Segment, seconds
from mgm_shared.errors import UserError

EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
EPIC_ROWS = (
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    "P01_102_0,P01,P01_102,00:01:01.100,00:01:00.54,00:01:02.23,27,111,take knife and plate,take,0,knife,4,"
    "\"['knife', 'plate']\",\"[4, 2]\"\n"
)
CHARADES = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    '46GP8,HR43,Kitchen,6,7,Yes,"A person cooks, and eats.",food,"x;y",c092 11.90 21.20;c147 0.00 12.60,24.83\n'
    "N11GT,0KZ7,Stairs,4,5,Yes,nothing,,z,,18.33\n"
)
ACTIVITYNET = {
    "version": "1.3",
    "database": {
        "QOlSCBRmfWY": {
            "subset": "training",
            "duration": 82.7,
            "annotations": [
                {"segment": [6.2, 77.2], "label": "Ballet"},
                {"segment": [1, 2], "label": "Polo"},
            ],
        },
        "sJn5GAgeQp4": {"subset": "testing", "annotations": []},
        "ehGHCYKzyZ8": {"subset": "validation", "annotations": [{"segment": [3.0, 9.5], "label": "Polo"}]},
    },
}
FINEGYM = {
    "A0xAXXysHUo": {
        "E_002184_002237": {
            "event": 4,
            "timestamps": [[2184.1, 2237.6]],
            "segments": {
                "A_0035_0036": {"stages": 1, "timestamps": [[35.2, 36.0]]},
                "A_0040_0043": {"stages": 2, "timestamps": [[40.5, 41.0], [41.2, 43.25]]},
                "A_0050_0051": {"stages": 1, "timestamps": [[50.0, 51.0]]},
            },
        },
        "E_003000_003010": {"event": 1, "timestamps": [[3000.0, 3010.5]], "segments": None},
    }
}


def read(*files: Path, **options: Any) -> list[Segment]:
    return read_segment_files(files, **options).segments


def essence(segments: list[Segment]) -> list[tuple[Any, ...]]:
    return [(one.names[0], round(one.start, 4), round(one.end, 4), one.label, one.split) for one in segments]


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.5", 12.5), (" 3 ", 3.0), ("0:07", 7.0), ("1:02.5", 62.5), ("01:00:02.50", 3602.5), (2, 2.0)]
    + [(text, None) for text in ("", "nan", "inf", "x", "1:2:3:4", None, True, "-")],
)
def test_times(text: object, value: float | None) -> None:
    assert seconds(text) == value


def test_a_table_of_seconds(tmp_path: Path) -> None:
    text = (
        "path,start_s,end_s,label,split\na.mp4,0,1.5,wave,train\na.mp4,1.0,2,jump,val\n# said twice\nb.mp4,0:02,3,,\n"
    )
    segments = read(write(tmp_path / "mine.csv", text))
    assert essence(segments) == [
        ("a.mp4", 0, 1.5, "wave", "train"),
        ("a.mp4", 1, 2, "jump", "val"),
        ("b.mp4", 2, 3, None, None),
    ]
    assert segments[1].where == f"{tmp_path / 'mine.csv'}, line 3"
    assert not any(one.is_frames or one.sample_id for one in segments)


@pytest.mark.parametrize(("columns", "stop"), [("start_frame,end_frame", 9), ("first_frame,last_frame", 10)])
def test_a_table_of_frames(tmp_path: Path, columns: str, stop: int) -> None:
    (one,) = read(write(tmp_path / "mine.csv", f"segment_id,path,{columns},label\ns1,a.mp4,3,9,wave\n"))
    assert (one.start, one.end, one.is_frames, one.sample_id) == (3, stop, True, "s1")


def test_rows_that_cannot_be_read_keep_their_place_and_say_why(tmp_path: Path) -> None:
    text = "path,start_s,end_s,split\na,x,1,\na,0,,\n,0,1,\na,0,1,mine\na,0,1,test\n"
    segments = read(write(tmp_path / "mine.csv", text))
    assert [one.problem for one in segments] == [
        "start 'x' is not a time",
        "the end is missing",
        "nothing names the video",
        "split 'mine' is not train, val or test",
        "",
    ]


def test_json_rows_and_another_label_column(tmp_path: Path) -> None:
    rows = [{"video": "a", "start_s": 1, "end_s": 2.5, "coarse": "eat", "label": "eat rice"}]
    file = write(tmp_path / "rows.json", rows)
    assert essence(read(file)) == [("a", 1, 2.5, "eat rice", None)]
    assert essence(read(file, label="coarse")) == [("a", 1, 2.5, "eat", None)]
    with pytest.raises(UserError, match="no column 'fine' for the label; there is video, starts"):
        read(file, label="fine")


@pytest.mark.parametrize(("label", "labels"), [("verb", ["3", "0"]), ("noun", ["3", "4"]), ("action", ["3 3", "0 4"])])
def test_epic_kitchens(tmp_path: Path, label: str, labels: list[str]) -> None:
    file = write(tmp_path / "EPIC_100_train.csv", EPIC_HEADER + EPIC_ROWS)
    segments = read(file, label=label)
    assert essence(segments) == [
        ("P01_01", 0.14, 3.37, labels[0], "train"),
        ("P01_102", 60.54, 62.23, labels[1], "train"),
    ]
    assert [one.sample_id for one in segments] == ["P01_01_0", "P01_102_0"]


def test_epic_kitchens_with_its_class_lists(tmp_path: Path) -> None:
    file = write(tmp_path / "EPIC_100_validation.csv", EPIC_HEADER + EPIC_ROWS)
    verbs = write(
        tmp_path / "EPIC_100_verb_classes.csv", "id,key,instances,category\n0,take,\"['take']\",x\n3,open,[],y\n"
    )
    nouns = write(tmp_path / "EPIC_100_noun_classes.csv", "id,key,instances,category\n3,cupboard,[],x\n")
    segments = read(file, verbs, nouns, label="action")
    assert [(one.label, one.split, one.problem) for one in segments] == [
        ("open cupboard", "val", ""),
        ("take 4", "val", "the class list has no noun '4'"),
    ]
    with pytest.raises(UserError, match="--label verb, noun or action"):
        read(file)
    # The segments of the test have no classes.
    text = EPIC_HEADER.partition(",narration,")[0] + "\n"
    text += "P01_101_0,P01,P01_101,00:00:02.851,00:00:02.86,00:00:03.87,143,193\n"
    assert essence(read(write(tmp_path / "EPIC_100_test_timestamps.csv", text))) == [
        ("P01_101", 2.86, 3.87, None, "test")
    ]


def test_charades(tmp_path: Path) -> None:
    file = write(tmp_path / "Charades_v1_train.csv", CHARADES)
    assert essence(read(file)) == [("46GP8", 11.9, 21.2, "c092", "train"), ("46GP8", 0, 12.6, "c147", "train")]
    names = write(tmp_path / "Charades_v1_classes.txt", "c092 Watching television\nc147 Someone is cooking\n")
    segments = read(file, names)
    assert [one.label for one in segments] == ["Watching television", "Someone is cooking"]
    assert segments[1].where.endswith("line 2, action 2")
    assert essence(read(tmp_path)) == essence(segments)


def test_activitynet(tmp_path: Path) -> None:
    segments = read(write(tmp_path / "activity_net.v1-3.min.json", ACTIVITYNET))
    assert essence(segments) == [
        ("QOlSCBRmfWY", 6.2, 77.2, "Ballet", "train"),
        ("QOlSCBRmfWY", 1, 2, "Polo", "train"),
        ("ehGHCYKzyZ8", 3, 9.5, "Polo", "val"),
    ]
    assert segments[0].names == ("QOlSCBRmfWY", "v_QOlSCBRmfWY")
    bad = {"database": {"x": {"subset": "training", "annotations": [{"segment": [1], "label": "a"}, "?"]}}}
    assert [one.problem for one in read(write(tmp_path / "bad.json", bad))] == ["the start is missing"] * 2


def test_finegym(tmp_path: Path) -> None:
    file = write(tmp_path / "finegym_annotation_info_v1.1.json", FINEGYM)
    train = write(tmp_path / "gym99_train_element_v1.1.txt", "A0xAXXysHUo_E_002184_002237_A_0035_0036 31\n")
    val = write(tmp_path / "gym99_val_element.txt", "A0xAXXysHUo_E_002184_002237_A_0040_0043 2\n")
    segments = read(file, train, val)
    # The times count from the start of the event; both stages are one segment; what no list has does not count.
    assert essence(segments) == [
        ("A0xAXXysHUo", 2219.3, 2220.1, "31", "train"),
        ("A0xAXXysHUo", 2224.6, 2227.35, "2", "val"),
    ]
    assert segments[0].sample_id == "A0xAXXysHUo_E_002184_002237_A_0035_0036"
    names = write(
        tmp_path / "gym99_categories.txt",
        "Clabel: 31; set: 1; Glabel: 9; (VT) round-off\nClabel: 2; set: 1; Glabel: 1; (UB) salto\n",
    )
    assert [one.label for one in read(file, train, val, names)] == ["(VT) round-off", "(UB) salto"]
    assert essence(read(file, label="event")) == [
        ("A0xAXXysHUo", 2184.1, 2237.6, "UB", None),
        ("A0xAXXysHUo", 3000, 3010.5, "VT", None),
    ]
    # Without a list all elements count, by the name of their event.
    assert [(one.label, round(one.start, 2)) for one in read(file)] == [("UB", 2219.3), ("UB", 2224.6), ("UB", 2234.1)]
    with pytest.raises(UserError, match="--label element or event says which to take, not 'verb'"):
        read(file, label="verb")


def test_epic_kitchens_55(tmp_path: Path) -> None:
    header = EPIC_HEADER.replace("narration_id", "uid").replace("narration_timestamp,", "")
    row = "7,P01,P01_01,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    (one,) = read(write(tmp_path / "EPIC_train_action_labels.csv", header + row), label="noun")
    assert (one.sample_id, one.label, one.split, one.start) == ("7", "3", "train", 0.14)


def test_class_numbers_get_names_from_a_class_list(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.csv", "path,start_s,end_s,label\na,0,1,1\na,0,1,7\na,0,1,wave\n")
    found = read_segment_files([mine, write(tmp_path / "classInd.txt", "1 jump\n2 run\n")])
    assert [(one.label, one.problem) for one in found.segments] == [
        ("jump", ""),
        ("7", "the class list of 2 lacks the label 7"),
        ("wave", ""),
    ]
    assert found.others == []


def test_each_row_has_times_or_frames(tmp_path: Path) -> None:
    text = "path,start_s,end_s,start_frame,end_frame\na,0.5,1,3,9\na,,,3,9\na,,,,\n"
    segments = read(write(tmp_path / "mine.csv", text))
    assert [(one.start, one.end, one.is_frames) for one in segments[:2]] == [(0.5, 1, False), (3, 9, True)]
    assert segments[2].problem == "the start is missing"


def lerobot_dataset(root: Path, cameras: tuple[str, ...] = ("top", "wrist")) -> Path:
    """The metadata of two episodes in one file, whose videos the caller writes."""
    info = {"codebase_version": "v3.0", "fps": 25, "splits": {"train": "0:1", "test": "1:2"}}
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    write(root / "meta" / "info.json", info)
    columns: dict[str, Any] = {
        "episode_index": [0, 1],
        "tasks": [["pick up"], ["put down", "let go"]],
        "length": [8, 12],
    }
    for camera in cameras:
        name = f"videos/observation.images.{camera}"
        columns |= {f"{name}/chunk_index": [0, 0], f"{name}/file_index": [0, 0]}
        columns |= {f"{name}/from_timestamp": [0.0, 0.32], f"{name}/to_timestamp": [0.32, 0.8]}
    columns["stats/action/mean"] = [[0.5], [0.25]]
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    return root


def test_lerobot(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "so100")
    segments = read(root)
    path = "videos/observation.images.{}/chunk-000/file-000.mp4"
    assert essence(segments) == [
        (path.format("top"), 0, 0.32, "pick up", "train"),
        (path.format("wrist"), 0, 0.32, "pick up", "train"),
        (path.format("top"), 0.32, 0.8, "put down; let go", "test"),
        (path.format("wrist"), 0.32, 0.8, "put down; let go", "test"),
    ]
    assert segments[3].sample_id == "episode_000001/observation.images.wrist"
    write(root / "meta" / "info.json", {"codebase_version": "v2.1"})
    with pytest.raises(UserError, match=r"version v2\.1, and episodes are read from version 3\.0 on"):
        read(root)


def test_the_cameras_of_a_lerobot_dataset(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "so100")
    for camera in ("top", "wrist"):
        write(root / "videos" / f"observation.images.{camera}" / "chunk-000" / "file-000.mp4", "")
    write(root / "train" / "other.mp4", "")
    found = find_sources(root)
    assert [(one.video_id, one.label, one.split) for one in found.sources] == [
        ("videos/observation.images.top/chunk-000/file-000.mp4", None, None),
        ("videos/observation.images.wrist/chunk-000/file-000.mp4", None, None),
    ]
    (one,) = find_sources(root, ["wrist"]).sources
    assert "wrist" in one.video_id
    with pytest.raises(UserError, match=r"no camera 'left'; the cameras are observation\.images\.top, observation"):
        find_sources(root, ["left"])


def test_what_could_be_either_is_asked(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.csv", "path,start,end,label\na.mp4,1,2,wave\n")
    with pytest.raises(UserError, match="--read-as segments takes them as places"):
        read(mine)
    assert essence(read(mine, read_as="segments")) == [("a.mp4", 1, 2, "wave", None)]
    assert read_segment_files([mine], read_as="labels").others == [mine]
    # Kinetics names clips by their seconds, and Diving48 counts the frames of whole clips.
    kinetics = write(tmp_path / "k.csv", "label,youtube_id,time_start,time_end,split\nwave,abc,1,11,train\n")
    diving = write(tmp_path / "d.json", [{"vid_name": "x_01", "label": 1, "start_frame": 0, "end_frame": 117}])
    labels = write(tmp_path / "labels.csv", "path,label,split\na.mp4,wave,train\n")
    assert read_segment_files([kinetics, diving, labels]).others == [kinetics, diving, labels]
    assert essence(read(diving, read_as="segments")) == [("x_01", 0, 117, "1", None)]
    with pytest.raises(UserError, match="has no segments"):
        read(write(tmp_path / "list.txt", "a.mp4 wave\n"), read_as="segments")
    with pytest.raises(UserError, match="no file has segments"):
        read(labels, label="verb")


def test_both_kinds_in_one_call(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.csv", "path,start_s,end_s,label\na.mp4,1,2,wave\n")
    labels = write(tmp_path / "labels.csv", "path,label,split\na.mp4,wave,train\n")
    found = read_segment_files([labels, mine])
    assert (essence(found.segments), found.others) == ([("a.mp4", 1, 2, "wave", None)], [labels])

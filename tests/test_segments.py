"""Segments in a store: which frames they are, which rows are rejected, and what reads them.

The oracle of "which frames" is a loop over the presentation times that PyAV gives for the file, at constant and at
variable frame rate.
"""

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from synthetic import pan
from test_segment_files import lerobot_dataset

from mgm_prep.cli import main as prep
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.labels import attach_labels
from mgm_shared.boxes import Boxes, box_peaks, boxes_at, cells_in_boxes
from mgm_shared.errors import UserError
from mgm_shared.objects import Url
from mgm_shared.samples import write_segments
from mgm_shared.store import open_store

# Steps of 20 to 120 ms, as phones write them, the first picture at 40 ms.
VARIABLE_MS = (40 + np.cumsum(np.random.default_rng(1).integers(20, 120, 50))).tolist()
CONSTANT_MS = [40 * k for k in range(50)]


def write_timed(path: Path, times_ms: list[int], seed: int = 0) -> None:
    """Frames at the given times, with B frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"bf": "2", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame_HWC, time_ms in zip(pan((3, seed), len(times_ms), 64, 80), times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [float(frame.time) for frame in file.decode(video=0) if frame.time is not None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the videos constant.mp4 and variable.mp4, and their store."""
    folder = tmp_path_factory.mktemp("segments")
    write_timed(folder / "videos" / "constant.mp4", CONSTANT_MS)
    write_timed(folder / "videos" / "variable.mp4", VARIABLE_MS, seed=1)
    extract(folder / "videos", folder / "my.store", ExtractSettings())
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "my.store", tmp_path / "my.store")


def labels(store: Path, *arguments: object) -> Result:
    return CliRunner().invoke(prep, ["labels", str(store), *map(str, arguments)])


def attach(store: Path, text: str, *options: object) -> Result:
    (store.parent / "mine.csv").write_text(text)
    return labels(store, store.parent / "mine.csv", *options)


@pytest.mark.parametrize("name", ["constant.mp4", "variable.mp4"])
def test_the_frames_of_a_segment_are_those_of_pyavs_times(made: Path, store: Path, name: str) -> None:
    times_s = times_of(made / "videos" / name)
    edges = np.random.default_rng(3).uniform(0, times_s[-1], (40, 2))
    places = [(round(min(pair), 3), round(max(pair), 3)) for pair in edges.tolist()]
    # The times of frames themselves, as a table rounds them: the end does not belong to the segment.
    places += [(round(times_s[5], 3), round(times_s[9], 3)), (round(times_s[0], 3), round(times_s[1], 3))]
    wanted = [[k for k, time_s in enumerate(times_s) if start <= round(time_s, 3) < end] for start, end in places]
    rows = "".join(f"{name},{start},{end},x\n" for start, end in places)
    result = attach(store, "path,start_s,end_s,label\n" + rows, "--json")
    empty = sum(not frames for frames in wanted)
    assert json.loads(result.stdout)["rejected_segments"] == ({"no frame": empty} if empty else {})
    samples = open_store(store).samples
    found = {f"{name}#{k:04d}": [frames[0], frames[-1]] for k, frames in enumerate(wanted) if frames}
    assert {row.Index: [row.first_frame, row.last_frame] for row in samples.itertuples()} == found


def test_a_segment_is_a_video_of_its_frames(store: Path) -> None:
    assert attach(store, "path,start_frame,end_frame,label,split\nvariable,10,25,wave,test\n").exit_code == 0
    opened = open_store(store)
    whole, segment = opened["variable.mp4"], opened["variable.mp4#0000"]
    assert (segment.video_id, segment.sample_id, segment.first_frame) == ("variable.mp4", "variable.mp4#0000", 10)
    assert (len(segment), segment.label, segment.split) == (15, "wave", "test")
    for name in ("frames", "motion", "time_s", "picture_type"):
        np.testing.assert_array_equal(getattr(segment, name)[:], getattr(whole, name)[10:25])
    np.testing.assert_array_equal(segment.to_xarray()["frames"][0], whole.frames[10])
    assert "Video('variable.mp4#0000': 15 frames of 64×80 px" in repr(segment)
    assert "variable.mp4#0000" in opened
    assert "variable.mp4#0001" not in opened
    with pytest.raises(KeyError, match="no id contains it; `mgm-prep list` lists them"):
        opened["variable.mp4#0001"]
    inner = segment.segment(2, 4)
    np.testing.assert_array_equal(inner.frames[:], whole.frames[12:15])
    assert (inner.first_frame, inner.sample_id) == (12, "variable.mp4#12-14")
    with pytest.raises(IndexError, match="has 15 frames, not 3 to 15"):
        segment.segment(3, 15)


def test_boxes_of_a_video_are_found_in_its_segment(store: Path) -> None:
    whole = open_store(store)["constant.mp4"]
    boxes = Boxes(file=Path("gt.txt"), frame_K=np.array([3, 12, 49]), box_K4=np.array([[8.0, 8, 24, 16]] * 3))
    segment = whole.segment(10, 19)
    assert boxes_at(boxes, segment, 2) == boxes_at(boxes, whole, 12)
    assert boxes_at(boxes, segment, 3) == []
    np.testing.assert_array_equal(cells_in_boxes(boxes, segment), cells_in_boxes(boxes, whole)[10:20])
    peaks_TYX = box_peaks(boxes, segment, slice(0, 10))
    np.testing.assert_array_equal(peaks_TYX, box_peaks(boxes, whole, slice(10, 20)))


def test_without_segments_every_video_is_a_sample(store: Path) -> None:
    opened = open_store(store)
    assert list(opened.samples.index) == list(opened.videos.index)
    assert opened.samples["video_id"].tolist() == ["constant.mp4", "variable.mp4"]
    assert opened.samples["first_frame"].tolist() == [0, 0]
    assert opened.samples["last_frame"].tolist() == [49, 49]
    assert opened.select().digest == opened.digest
    assert [sample.sample_id for sample in opened.select()] == ["constant.mp4", "variable.mp4"]
    with pytest.raises(UserError, match="has no segments; attach some with `mgm-prep labels"):
        opened.select("segments")


def test_rows_of_several_segments_with_their_ids(store: Path) -> None:
    rows = ["mine,constant,0,1,a", ",constant,0.5,1.5,b", ",variable,0,1,a", ",constant,1,2,a"]
    text = "\n".join(["sample_id,path,start_s,end_s,label", *rows, ""])
    assert attach(store, text).exit_code == 0
    opened = open_store(store)
    ids = ["mine", "constant.mp4#0001", "variable.mp4#0000", "constant.mp4#0002"]
    assert list(opened.samples.index) == ids
    assert list(opened.samples.columns) == ["video_id", "first_frame", "last_frame", "label", "split"]
    assert [sample.sample_id for sample in opened.select()] == ids
    assert opened.samples["split"].tolist() == [None] * 4
    received = pickle.loads(pickle.dumps(opened.select()))
    assert len(pickle.dumps(opened.select())) < 1000
    assert received.digest == opened.select().digest != opened.digest
    # The same command again, and a file that says less.
    before = (store / "segments.parquet").read_bytes()
    assert "the 4 segments that were attached before are replaced" in attach(store, text).stderr
    assert (store / "segments.parquet").read_bytes() == before
    assert attach(store, "path,start_s,end_s\nvariable,0,1\n").exit_code == 0
    assert list(open_store(store).samples.index) == ["variable.mp4#0000"]
    assert open_store(store).digest == opened.digest


REJECTED = """\
path,start_s,end_s,label,split
constant,0.1,0.5,a,train
nobody,0.1,0.5,a,train
constant,0.9,0.5,a,train
constant,0.5,0.5,a,train
constant,-1,0.5,a,train
constant,1.5,7,a,train
constant,9,12,a,train
constant,x,1,a,train
constant,0.501,0.519,a,train
constant,0.2,0.6,a,sometimes
constant,1.0,2.0,b,train
"""


def test_rejected_rows_are_counted_and_named(store: Path) -> None:
    result = attach(store, REJECTED, "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["listed"], summary["segments"]) == (11, 2)
    assert summary["rejected_segments"] == {
        "outside the video": 3,
        "end before start": 2,
        "unreadable row": 2,
        "unknown video": 1,
        "no frame": 1,
    }
    rows = [json.loads(line) for line in (store / "rejected_segments.jsonl").read_text().splitlines()]
    assert [(int(row["where"].split()[-1]), row["reason"]) for row in rows] == [
        (3, "the store has no video 'nobody'"),
        (4, "its end is not after its start (0.9 to 0.5 s)"),
        (5, "its end is not after its start (0.5 to 0.5 s)"),
        (6, "it starts before the video (-1 to 0.5 s)"),
        (7, "it ends after the video, which ends at 2 s (1.5 to 7 s); --cut-at-end cuts such segments"),
        (8, "it starts after the video, which ends at 2 s (9 to 12 s)"),
        (9, "start 'x' is not a time"),
        (10, "no frame begins from 0.501 to 0.519 s"),
        (11, "split 'sometimes' is not train, val or test"),
    ]
    assert "rejected: " in result.stderr
    assert "9 rows are no segments: 3 outside the video, 2 end before start" in result.stderr
    # The number counts the rejected rows: correcting them changes no other id.
    assert list(open_store(store).samples.index) == ["constant.mp4#0000", "constant.mp4#0009"]
    result = attach(store, REJECTED, "--json", "--cut-at-end")
    assert json.loads(result.stdout)["cut_segments"] == 1
    assert open_store(store)["constant.mp4#0004"].first_frame == 38
    assert len(open_store(store)["constant.mp4#0004"]) == 12
    assert attach(store, "path,start_s,end_s\nconstant,0,1\n").exit_code == 0
    assert not (store / "rejected_segments.jsonl").exists()


@pytest.mark.parametrize("row", ["constant,0,51", "constant,50,51", "constant,7,7", "constant,0.5,3", "constant,-1,3"])
def test_frame_numbers_outside_of_the_video(store: Path, row: str) -> None:
    result = attach(store, f"path,start_frame,end_frame\n{row}\nconstant,0,50\n")
    assert result.exit_code == 3
    assert len(open_store(store).samples) == 1


def test_nothing_is_written_when_no_row_fits(store: Path) -> None:
    before = sorted(file.name for file in store.iterdir())
    result = attach(store, "path,start_s,end_s\nnobody,0,1\n")
    assert result.exit_code == 2
    assert "no segment of a video of the store; the first: " in result.stderr
    assert "line 2: the store has no video 'nobody'" in result.stderr
    assert attach(store, "path,start_s,end_s\nconstant,0,1\n", "-n").exit_code == 0
    assert sorted(file.name for file in store.iterdir()) == before


def test_an_id_that_is_taken_is_rejected(store: Path) -> None:
    text = "segment_id,path,start_s,end_s\nx,constant,0,1\nx,variable,0,1\nvariable.mp4,constant,0,1\n"
    result = attach(store, text, "--json")
    assert json.loads(result.stdout)["rejected_segments"] == {"id twice": 2}
    assert list(open_store(store).samples.index) == ["x"]


def test_splits_of_one_video_do_not_leak(store: Path) -> None:
    text = "path,start_s,end_s,split\nconstant,0,1,train\nconstant,1,2,val\nvariable,0,1,train\n"
    result = attach(store, text)
    assert result.exit_code == 2
    assert "1 videos have samples in several splits, such as 'constant.mp4' in train and val" in result.stderr
    assert not (store / "segments.parquet").exists()
    result = attach(store, text, "--allow-shared-videos", "--json")
    assert (result.exit_code, json.loads(result.stdout)["shared_videos"]) == (0, 1)
    assert "warning: 1 videos have samples in several splits" in result.stderr
    # A segment without a mark trains where no segment is marked for training.
    assert attach(store, "path,start_s,end_s,split\nconstant,0,1,\nconstant,1,2,val\n").exit_code == 2
    # The whole video is a sample as well.
    (store.parent / "whole.csv").write_text("path,split\nconstant.mp4,test\n")
    assert labels(store, store.parent / "whole.csv", "--allow-shared-videos").exit_code == 0
    assert attach(store, "path,start_s,end_s,split\nconstant,0,1,train\n").exit_code == 2
    assert attach(store, "path,start_s,end_s,split\nconstant,0,1,\n").exit_code == 0
    assert open_store(store).samples["split"].tolist() == ["test"]


def test_splits_that_are_attached_later_count(store: Path) -> None:
    """A segment without a split has that of its video, also one that the video gets afterwards."""
    assert attach(store, "path,start_s,end_s,split\nconstant,0,1,\nvariable,0,1,\nvariable,1,2,train\n").exit_code == 0
    (store.parent / "later.csv").write_text("path,split\nconstant.mp4,test\nvariable.mp4,train\n")
    assert labels(store, store.parent / "later.csv").exit_code == 0
    assert open_store(store).samples["split"].tolist() == ["test", "train", "train"]
    assert [sample.split for sample in open_store(store).select()] == ["test", "train", "train"]
    before = (store / "labels.jsonl").read_bytes()
    (store.parent / "later.csv").write_text("path,split\nvariable.mp4,test\n")
    result = labels(store, store.parent / "later.csv")
    assert result.exit_code == 2
    assert "such as 'variable.mp4' in test and train" in result.stderr
    assert (store / "labels.jsonl").read_bytes() == before
    assert labels(store, store.parent / "later.csv", "--allow-shared-videos").exit_code == 0


def test_a_table_without_an_end_is_an_error(store: Path) -> None:
    result = attach(store, "path,start_s,stop,label\nconstant,0,1,a\n")
    assert result.exit_code == 2
    assert "no column with the end of the segments; there is path, starts, stop, label" in result.stderr


def test_whole_videos_have_the_split_of_their_segments(store: Path) -> None:
    """A pretraining on whole videos must not read what the segments keep for the test."""
    assert attach(store, "path,start_s,end_s,split\nconstant,0,1,train\nvariable,0,1,test\n").exit_code == 0
    whole = open_store(store).select("videos")
    assert whole.table["split"].to_pylist() == ["train", "test"]
    assert [sample.split for sample in whole] == ["train", "test"]
    assert whole.digest != open_store(store).digest
    text = "path,start_s,end_s,split\nconstant,0,1,train\nconstant,1,2,test\n"
    assert attach(store, text, "--allow-shared-videos").exit_code == 0
    assert open_store(store).select("videos").table["split"].to_pylist() == ["none", None]


def test_a_clock_that_did_not_begin_at_zero(tmp_path: Path) -> None:
    write_timed(tmp_path / "videos" / "late.ts", [100_000 + time_ms for time_ms in CONSTANT_MS])
    extract(tmp_path / "videos", tmp_path / "my.store", ExtractSettings())
    first_s = times_of(tmp_path / "videos" / "late.ts")[0]
    assert first_s > 90
    result = attach(tmp_path / "my.store", "path,start_s,end_s\nlate,0.4,0.8\n", "--times-from", "first-frame")
    assert result.exit_code == 0
    (row,) = open_store(tmp_path / "my.store").samples.itertuples()
    assert (row.first_frame, row.last_frame) == (10, 19)
    result = attach(tmp_path / "my.store", f"path,start_s,end_s\nlate,{first_s + 0.4},{first_s + 0.8}\n")
    (row,) = open_store(tmp_path / "my.store").samples.itertuples()
    assert (row.first_frame, row.last_frame) == (10, 19)


def test_segments_that_the_store_outgrew_are_an_error(store: Path) -> None:
    assert attach(store, "path,start_s,end_s\nconstant,0,1\n").exit_code == 0
    assert CliRunner().invoke(prep, ["verify", str(store), "--workers", "0"]).exit_code == 0
    table = pq.read_table(store / "segments.parquet")
    for name, value, message in (
        ("video_id", "gone.mp4", "1 segments are of videos that it lacks, such as 'gone.mp4'"),
        ("last_frame", 50, "1 segments lie outside of their video, such as 'constant.mp4#0000'"),
    ):
        place = table.column_names.index(name)
        write_segments(store, table.set_column(place, name, pa.array([value])))
        with pytest.raises(UserError, match=message):
            open_store(store).select()
        result = CliRunner().invoke(prep, ["verify", str(store), "--workers", "0"])
        assert result.exit_code == 3
        assert message in result.stdout
    (store / "segments.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"segments\.parquet is damaged or of another version"):
        open_store(store).select()


def test_a_lerobot_dataset_from_its_folder(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "so100")
    for number, camera in enumerate(("top", "wrist")):
        write_timed(
            root / "videos" / f"observation.images.{camera}" / "chunk-000" / "file-000.mp4", CONSTANT_MS[:20], number
        )
    out = tmp_path / "robot.store"
    arguments = ["extract", root, out, "--workers", 0, "--labels", root]
    # Two episodes of one file are in different splits.
    result = CliRunner().invoke(prep, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert "--allow-shared-videos" in result.stderr
    result = labels(out, root, "--allow-shared-videos", "--json")
    assert (result.exit_code, json.loads(result.stdout)["segments"]) == (0, 4)
    samples = open_store(out).samples
    assert samples["label"].tolist() == ["pick up"] * 2 + ["put down; let go"] * 2
    assert list(samples.loc["episode_000001/observation.images.wrist"]) == [
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
        8,
        19,
        "put down; let go",
        "test",
    ]
    # Of one camera's folder nobody knows which camera it is: all cameras have files of the same names.
    alone = tmp_path / "alone.store"
    extract(root / "videos" / "observation.images.top", alone, ExtractSettings())
    result = labels(alone, root, "--allow-shared-videos")
    assert result.exit_code == 2
    assert "the store has no video of observation.images.top: 'chunk-000/file-000.mp4' may be" in result.stderr
    extract(root / "videos", tmp_path / "both.store", ExtractSettings())
    assert labels(tmp_path / "both.store", root, "--allow-shared-videos").exit_code == 0
    one = tmp_path / "top.store"
    result = CliRunner().invoke(prep, ["extract", str(root), str(one), "--workers", "0", "--camera", "top"])
    assert result.exit_code == 0
    assert list(open_store(one).videos.index) == ["videos/observation.images.top/chunk-000/file-000.mp4"]


def test_a_store_behind_a_url(store: Path, bucket: Url) -> None:
    import fsspec

    files, root = fsspec.core.url_to_fs(f"{bucket}/my.store")
    files.put(str(store), root, recursive=True)
    text = "path,start_s,end_s,label\nvariable,0.2,1.5,wave\nnone,0,1,wave\n"
    assert attach(store, text).exit_code == 3
    summary = attach_labels(Url(f"{bucket}/my.store"), [store.parent / "mine.csv"])
    assert (summary.segments, summary.rejected_segments) == (1, {"unknown video": 1})
    remote = open_store(Url(f"{bucket}/my.store"))
    assert remote.samples.equals(open_store(store).samples)
    assert remote.select().digest == open_store(store).select().digest
    one = remote.select().video_at(0)
    np.testing.assert_array_equal(one.frames[0], open_store(store)["variable.mp4#0000"].frames[0])


MILLION = """
    import json, resource, sys, time
    import numpy as np

    def memory_mb():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    import torch
    from mgm_shared.samples import select
    from mgm_shared.store import open_store
    from mgm_train.config import PretrainConfig
    from mgm_train.data.loader import Plan, make_loader
    from mgm_train.runtime.distributed import Distributed
    from mgm_train.tasks.pretrain import pretrain_dataset

    before_mb, started_s = memory_mb(), time.process_time()
    samples = open_store(sys.argv[1]).select()
    config = PretrainConfig(num_frames=4, image_px=32, stride=1, batch_size=8, epochs=1, warmup_epochs=0)
    dataset = pretrain_dataset(samples, config)
    loader = make_loader(dataset, Plan.of(config, len(dataset)), 0, Distributed(device=torch.device("cpu")), 0)
    batch = next(iter(loader))
    first_s, opened_mb = time.process_time() - started_s, memory_mb()
    for index in np.random.default_rng(0).integers(len(dataset), size=2000).tolist():
        samples.video_at(index)
    values = {"num": len(dataset), "first_s": first_s, "opened_mb": opened_mb - before_mb}
    print(json.dumps(values | {"grown_mb": memory_mb() - opened_mb}))
"""


def test_a_million_segments_open_fast_and_stay_in_columns(store: Path) -> None:
    """Open to first batch in less than 2 s, and no Python object for each of them."""
    num = 1_000_000
    rng = np.random.default_rng(0)
    first_N = rng.integers(0, 40, num)
    video_N = rng.integers(0, 2, num)
    names = np.array(["constant.mp4", "variable.mp4"], object)[video_N]
    columns = {
        "sample_id": pa.array([f"{name}#{number:07d}" for number, name in enumerate(names)]),
        "video_id": pa.array(names),
        "first_frame": first_N,
        "last_frame": first_N + rng.integers(0, 10, num),
        "label": pa.array(np.array(["wave", "jump"], object)[video_N]),
        "split": pa.array(["train"] * num),
    }
    write_segments(store, pa.table(columns))
    command = [sys.executable, "-c", textwrap.dedent(MILLION), str(store)]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert printed["num"] == num
    # Processor time, since other programs may run; 0.8 s, of which most is loading compiled kernels.
    assert printed["first_s"] < 2, printed
    # The columns are 33 MB of ids, 15 MB of videos, 16 MB of frames and 18 MB of labels and splits.
    assert printed["opened_mb"] < 400, printed
    assert printed["grown_mb"] < 5, printed

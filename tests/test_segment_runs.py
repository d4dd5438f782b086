"""Training and testing on segments: every format runs, and the numbers are those of clips that were cut beforehand."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_segment_files import CHARADES, EPIC_HEADER, lerobot_dataset, write
from test_segments import CONSTANT_MS, VARIABLE_MS, write_timed

from mgm_prep import ExtractSettings, SegmentSettings, attach_labels, extract, saliency
from mgm_prep.extraction.part import PartWriter
from mgm_shared.errors import UserError
from mgm_shared.index import write_index
from mgm_shared.schema import VideoRecord
from mgm_shared.shard_reader import ShardedArray
from mgm_shared.store import open_store
from mgm_train import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig, evaluate, finetune, pretrain, probe
from mgm_train.checkpoint.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP: dict[str, Any] = {"model": "vit_tiny", "num_frames": 4, "image_px": 32, "stride": 2, "num_workers": 0}
CLIP |= {"batch_size": 4, "epochs": 2, "warmup_epochs": 0, "device": "cpu", "precision": "fp32", "log_every_steps": 1}
TEST: dict[str, Any] = {"num_workers": 0, "device": "cpu", "precision": "fp32", "stride": 2}


def places() -> list[tuple[str, int, int, str]]:
    """40 segments of two videos, 20 of each: video, first frame, frame after the last, label. Some overlap."""
    rng = np.random.default_rng(5)
    firsts, lengths = rng.integers(0, 45, 40), rng.integers(1, 30, 40)
    return [
        ("train.mp4" if k < 20 else "test.mp4", int(first), int(min(50, first + length)), f"class {k % 3}")
        for k, (first, length) in enumerate(zip(firsts, lengths, strict=True))
    ]


def cut(source: Path, first: int, stop: int, out: Path) -> None:
    """The frames of a video as a file of their own, lossless: its decoded planes are those of the source."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as video, av.open(str(out), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"qp": "0", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for t, frame in enumerate(video.decode(video=0)):
            if first <= t < stop:
                frame.pts, frame.time_base = t - first, Fraction(1, 25)
                # Otherwise the encoder takes over the picture types of the source.
                frame.pict_type = av.video.frame.PictureType.NONE
                file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of two videos with 40 segments, and a store of the same clips as 40 files."""
    folder = tmp_path_factory.mktemp("runs")
    write_timed(folder / "videos" / "train.mp4", CONSTANT_MS)
    write_timed(folder / "videos" / "test.mp4", VARIABLE_MS, seed=2)
    extract(folder / "videos", folder / "whole.store", ExtractSettings())
    times = {name: open_store(folder / "whole.store")[name].time_s.tolist() for name in ("train.mp4", "test.mp4")}
    segments, files = ["sample_id,path,start_s,end_s,label,split"], ["path,label,split"]
    for k, (name, first, stop, label) in enumerate(places()):
        end_s = times[name][stop] if stop < 50 else times[name][-1] + 0.01
        segments.append(f"{k:02d},{name},{times[name][first]:.3f},{end_s:.3f},{label},{name.split('.')[0]}")
        files.append(f"{k:02d}.mp4,{label},{name.split('.')[0]}")
        cut(folder / "videos" / name, first, stop, folder / "cut" / f"{k:02d}.mp4")
    write(folder / "segments.csv", "\n".join(segments))
    write(folder / "files.csv", "\n".join(files))
    assert attach_labels(folder / "whole.store", [folder / "segments.csv"]).segments == 40
    extract(folder / "cut", folder / "cut.store", ExtractSettings(), labels=[folder / "files.csv"])
    return folder / "whole.store", folder / "cut.store"


def test_the_stores_have_the_same_frames(stores: tuple[Path, Path]) -> None:
    whole, parts = (open_store(store).select() for store in stores)
    assert (len(whole), len(parts)) == (40, 40)
    assert whole.describe() == "40 segments of 2 videos"
    for one, other, (_, first, stop, label) in zip(whole, parts, places(), strict=True):
        assert len(one) == len(other) == stop - first
        np.testing.assert_array_equal(one.frames[:], other.frames[:])
        assert (one.label, one.split) == (other.label, other.split) == (label, one.video_id.split(".")[0])


def cut_in_store(whole: Path, out: Path) -> Path:
    """A store of the segments as 40 videos, whose stored bytes are copied: motion vectors as well."""
    opened = open_store(whole)
    (part,) = set(opened.videos["part"])
    shutil.copytree(whole, out, ignore=lambda folder, names: {part, "index.parquet", "segments.parquet"} & {*names})
    old, new = whole / "parts" / part, out / "parts" / part
    new.mkdir()
    frames, motion = (ShardedArray.open(old / name) for name in ("frames", "motion"))
    writer = PartWriter(new, 64, 80, ExtractSettings())
    for k, (name, first, stop, label) in enumerate(places()):
        video = opened[name]
        span = range(video.record["start"] + first, video.record["start"] + stop)
        about = {"video_id": f"{k:02d}.mp4", "num_frames": len(span), "label": label, "split": name.split(".")[0]}
        record = {
            field.name: video.record[field.name] for field in fields(VideoRecord) if field.name not in about
        } | about
        tracks = video.time_s[first:stop], video.picture_type[first:stop]
        writer.copy_video(VideoRecord(**record | about), frames.encoded(span), motion.read(np.array(span)), *tracks)
    writer.finish({"failures": []})
    write_index(out)
    return out


def test_masks_by_motion_are_those_of_clips_that_were_cut_in_the_store(
    stores: tuple[Path, Path], tmp_path: Path
) -> None:
    """The same vectors make the same masks, and the same losses to the last bit."""
    cut = cut_in_store(stores[0], tmp_path / "copied.store")
    assert len(open_store(cut)) == 40
    for store in (stores[0], cut):
        pretrain(store, tmp_path / "runs" / store.name, PretrainConfig(mask="mgm", **CLIP))
    found = [losses(tmp_path / "runs" / store.name) for store in (stores[0], cut)]
    assert len(found[0]) == 10
    assert found[0] == found[1]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics() if "loss" in row]


def predictions(file: Path) -> list[list[str]]:
    rows = list(csv.reader(file.read_text().splitlines()))
    return [[row[0].removesuffix(".mp4"), *row[1:]] for row in rows[1:]]


def test_numbers_are_those_of_clips_that_were_cut_beforehand(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """Pretraining, fine-tuning, test and probe: losses and every probability, to the last bit."""
    found: list[dict[str, Any]] = []
    for store in stores:
        runs = tmp_path / store.name
        # The vectors of a file that was encoded again are others, so the mask is one without vectors.
        pretrain(store, runs / "mae", PretrainConfig(mask="tube", **CLIP))
        finetune(store, runs / "ft", FinetuneConfig(init=str(runs / "mae"), **CLIP))
        tested = evaluate(store, runs / "ft", EvaluateConfig(**TEST))
        config = ProbeConfig(init=str(runs / "mae"), epochs=2, group_pattern="none", held_out=0.3, **TEST)
        probed = probe(store, runs / "probe", config)
        assert tested is not None
        assert probed is not None
        assert (tested.scores.scored, tested.scores.listed) == (20, 20)
        numbers = {"mae": losses(runs / "mae"), "ft": losses(runs / "ft"), "choice": probed.choice}
        numbers |= {"test": predictions(tested.files["predictions"]), "probe": predictions(probed.files["predictions"])}
        found.append(numbers | {"scores": (tested.scores, probed.scores)})
    assert len(found[0]["mae"]) == len(found[0]["ft"]) == 10
    assert found[0] == found[1]
    header = (tmp_path / "whole.store" / "ft" / "predictions-test.csv").read_text().partition(",")[0]
    assert header == "sample_id"


def test_the_commands_say_what_they_read(stores: tuple[Path, Path], tmp_path: Path) -> None:
    class Lines:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def start(self, description: str, total: int | None, unit: str) -> None: ...

        def advance(self, count: int = 1, **postfix: object) -> None: ...

        def say(self, line: str) -> None:
            self.lines.append(line)

    said = Lines()
    pretrain(stores[0], tmp_path / "mae", PretrainConfig(**CLIP | {"epochs": 1}), progress=said)
    assert "the samples are 40 segments of 2 videos; --samples videos reads whole videos" in said.lines
    assert any(" · 20 segments · " in line for line in said.lines)
    said = Lines()
    whole = PretrainConfig(samples="videos", **CLIP | {"epochs": 1, "batch_size": 1})
    pretrain(stores[0], tmp_path / "whole", whole, progress=said)
    assert not any("segments" in line for line in said.lines)
    # A run does not go on with other samples.
    with pytest.raises(UserError, match="samples was 'videos' and is now 'auto'"):
        pretrain(stores[0], tmp_path / "whole", whole.replace(samples="auto"))
    with pytest.raises(UserError, match="has no segments"):
        pretrain(stores[1], tmp_path / "none", PretrainConfig(samples="segments", **CLIP))


def test_a_probe_holds_out_whole_videos(stores: tuple[Path, Path], tmp_path: Path) -> None:
    pretrain(stores[0], tmp_path / "mae", PretrainConfig(**CLIP | {"epochs": 1}))
    with pytest.raises(UserError, match="no class has training videos of two groups"):
        probe(stores[0], tmp_path / "probe", ProbeConfig(init=str(tmp_path / "mae"), **TEST))


def test_saliency_of_segments(stores: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / "boxes" / f"{name}.txt", "".join(f"{t},1,9,9,24,24,1\n" for t in range(1, 51)))
    whole = saliency(stores[0], tmp_path / "boxes")
    parts = saliency(stores[0], tmp_path / "boxes", samples="segments")
    assert (whole.videos, parts.videos) == (2, 2)
    motion = {name: open_store(stores[0])[f"{name}.mp4"].motion[:] for name in ("train", "test")}
    known = {name: ~np.isnan(field[..., 0]).all((1, 2)) for name, field in motion.items()}
    assert whole.frames == sum(int(is_known.sum()) for is_known in known.values())
    assert parts.frames == sum(int(known[name[:-4]][first:stop].sum()) for name, first, stop, _ in places())


def finegym(folder: Path) -> Sequence[Path]:
    names = [f"gym_E_000000_00000{k}_A_0000_000{k}" for k in (1, 2, 3, 4)]
    events = {
        f"E_000000_00000{k}": {
            "event": 1,
            "timestamps": [[0.0, 2.0]],
            "segments": {f"A_0000_000{k}": {"timestamps": [[0.1 * k, 1.0]]}},
        }
        for k in (1, 2, 3, 4)
    }
    others = {name.replace("gym_", "val_"): k for k, name in enumerate(names)}
    lines = "\n".join(f"{name} {k % 2}" for k, name in enumerate(names))
    tests = "\n".join(f"{name} {k % 2}" for name, k in others.items())
    return (
        write(folder / "finegym_annotation_info_v1.1.json", {"gym": events, "val": events}),
        write(folder / "gym99_train_element_v1.1.txt", lines),
        write(folder / "gym99_test_element.txt", tests),
    )


def annotations(kind: str, folder: Path) -> Sequence[Path]:
    """The files of a format: four segments of gym.mp4 for training, four of val.mp4 for the test."""
    spans = [(0.1, 0.9), (0.3, 1.5), (0.0, 0.2), (1.0, 1.9)]
    videos = {"gym": "train", "val": "test"}
    if kind == "table":
        rows = [f"{v},{a},{b},{k % 2},{s}" for v, s in videos.items() for k, (a, b) in enumerate(spans)]
        return [write(folder / "mine.csv", "\n".join(["path,start_s,end_s,label,split", *rows]))]
    if kind == "epic":
        files = []
        for video, split in videos.items():
            rows = [
                f"{video}_{k},P01,{video},00:00:00.5,00:00:0{a},00:00:0{b},0,0,cut,cut,{k % 2},x,3,[],[]"
                for k, (a, b) in enumerate(spans)
            ]
            files.append(write(folder / f"EPIC_100_{split}.csv", EPIC_HEADER + "\n".join(rows)))
        return files
    if kind == "charades":
        header = CHARADES.splitlines()[0]
        for video, split in videos.items():
            actions = ";".join(f"c00{k % 2} {a} {b}" for k, (a, b) in enumerate(spans))
            write(folder / f"Charades_v1_{split}.csv", f"{header}\n{video},x,x,6,6,Yes,x,x,x,{actions},2.0\n")
        return [folder]
    if kind == "activitynet":
        subsets = {"train": "training", "test": "testing"}
        database = {
            video: {
                "subset": subsets[split],
                "annotations": [{"segment": [a, b], "label": f"{k % 2}"} for k, (a, b) in enumerate(spans)],
            }
            for video, split in videos.items()
        }
        return [write(folder / "activity_net.json", {"database": database})]
    return finegym(folder)


def run_all(store: Path, folder: Path) -> None:
    """Pretrain, fine-tune, test: the shortest run of all."""
    config = {**CLIP, "epochs": 1, "batch_size": 2}
    pretrain(store, folder / "mae", PretrainConfig(**config))
    finetune(store, folder / "ft", FinetuneConfig(init=str(folder / "mae"), **config))
    tested = evaluate(store, folder / "ft", EvaluateConfig(num_temporal_views=1, num_spatial_views=1, **TEST))
    assert tested is not None
    assert tested.scores.scored == tested.scores.listed == (open_store(store).samples["split"] == "test").sum() > 0


@pytest.fixture(scope="module")
def two_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for number, name in enumerate(("gym", "val")):
        write_timed(folder / "videos" / f"{name}.mp4", CONSTANT_MS, number)
    extract(folder / "videos", folder / "my.store", ExtractSettings())
    return folder / "my.store"


@pytest.mark.parametrize("kind", ["table", "epic", "charades", "activitynet", "finegym"])
def test_each_format_runs(kind: str, two_videos: Path, tmp_path: Path) -> None:
    settings = SegmentSettings(label="verb" if kind == "epic" else "")
    summary = attach_labels(two_videos, annotations(kind, tmp_path / "annotations"), segments=settings)
    assert (summary.segments, summary.rejected_segments) == (8, {})
    samples = open_store(two_videos).samples
    assert (
        sorted(zip(samples["video_id"], samples["split"], strict=True))
        == [("gym.mp4", "train")] * 4 + [("val.mp4", "test")] * 4
    )
    run_all(two_videos, tmp_path / "runs")


def test_lerobot_runs(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "so100")
    for number, camera in enumerate(("top", "wrist")):
        folder = root / "videos" / f"observation.images.{camera}" / "chunk-000"
        write_timed(folder / "file-000.mp4", CONSTANT_MS[:20], number)
    table = root / "meta" / "info.json"
    table.write_text(json.dumps(json.loads(table.read_text()) | {"splits": {"train": "0:2"}}))
    extract(root, tmp_path / "my.store", ExtractSettings(), labels=[root])
    samples = open_store(tmp_path / "my.store").samples
    assert samples["split"].tolist() == [None] * 4
    config = {**CLIP, "epochs": 1, "batch_size": 2}
    pretrain(tmp_path / "my.store", tmp_path / "mae", PretrainConfig(**config))
    finetune(tmp_path / "my.store", tmp_path / "ft", FinetuneConfig(init=str(tmp_path / "mae"), **config))
    tested = evaluate(tmp_path / "my.store", tmp_path / "ft", EvaluateConfig(split="train", **TEST))
    assert tested is not None
    assert tested.scores.scored == 4

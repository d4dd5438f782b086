"""`mgm-train embed` against `load(...).features` and neighbours counted by hand."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from click.testing import CliRunner, Result
from PIL import Image
from toy import run_processes

from mgm_prep import extract
from mgm_shared.errors import UserError
from mgm_shared.samples import write_segments
from mgm_shared.store import Store, open_store
from mgm_train import EmbedConfig, embed, load
from mgm_train.checkpoint.weights import save_weights
from mgm_train.cli import main
from mgm_train.evaluation import features
from mgm_train.inference.embeddings import Embeddings, nearest, sample_vectors
from mgm_train.model_config import model_config
from mgm_train.models.videomae import VideoMAE, build

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = model_config("vit_tiny", num_frames=4, image_px=32)
SMALL: dict[str, Any] = {"num_workers": 0, "stride": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_weights(path, build(lambda: VideoMAE(MODEL), seed=0).state_dict(), MODEL, {})
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_row_is_the_features_of_a_video(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    result = embed(pan_store.path, tmp_path / "a.parquet", EmbedConfig(init=str(weights), **SMALL))
    assert result is not None
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert list(table.columns) == ["sample_id", "video_id", "label", "split", "view", "feature"]
    assert list(table["video_id"]) == list(pan_store.videos.index)
    assert list(table["label"]) == list(pan_store.videos["label"])
    assert list(table["split"]) == list(pan_store.videos["split"])
    model = load(weights)
    expected = model.features([pan_store[name] for name in table["video_id"]], stride=2)
    np.testing.assert_allclose(np.stack(table["feature"].tolist()), expected.numpy(), rtol=2e-3, atol=2e-3)
    assert not (tmp_path / "a.parquet.parts").exists()


def test_zarr_has_the_rows_of_parquet(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    config = EmbedConfig(init=str(weights), num_temporal_views=2, per_view=True, **SMALL)
    for name in ("a.parquet", "a.zarr"):
        embed(pan_store.path, tmp_path / name, config)
    table = pd.read_parquet(tmp_path / "a.parquet")
    group: Any = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert len(table) == 2 * len(pan_store)
    assert list(table["view"]) == [0, 1] * len(pan_store)
    np.testing.assert_array_equal(np.stack(table["feature"].tolist()), group["feature"][:])
    np.testing.assert_array_equal(table["view"], group["view"][:])
    assert group.attrs["video_id"] == list(table["video_id"])


def test_a_stopped_run_goes_on(
    pan_store: Store, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "VIDEOS_PER_CHUNK", 2)
    config = EmbedConfig(init=str(weights), **SMALL)
    embed(pan_store.path, tmp_path / "whole.parquet", config)
    save = features.FeatureCache._save
    saved: list[range] = []

    def stop_after_two(cache: Any, chunk: range, computed: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(chunk)
        save(cache, chunk, computed)

    with monkeypatch.context() as patch:
        patch.setattr(features.FeatureCache, "_save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            embed(pan_store.path, tmp_path / "a.parquet", config)
    assert not (tmp_path / "a.parquet").exists()
    computed: list[range] = []

    def record(cache: Any, chunk: range, part: Any) -> None:
        computed.append(chunk)
        save(cache, chunk, part)

    monkeypatch.setattr(features.FeatureCache, "_save", record)
    embed(pan_store.path, tmp_path / "a.parquet", config)
    assert computed == [range(4, 6), range(6, 8)]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), pd.read_parquet(tmp_path / "whole.parquet"))


def _embed_in_twos(store: str, out: Path, weights: str, num_saves: int) -> None:
    """Embed in chunks of two videos, and die after `num_saves` of them as by kill -9."""
    features.VIDEOS_PER_CHUNK = 2
    save, saved = features.FeatureCache._save, []

    def save_and_die(cache: Any, chunk: range, computed: Any) -> None:
        save(cache, chunk, computed)
        saved.append(chunk)
        if len(saved) == num_saves:
            os.kill(os.getpid(), signal.SIGKILL)

    features.FeatureCache._save = save_and_die  # type: ignore[method-assign, assignment]
    sys.stderr = out.with_name("stderr.txt").open("a")
    embed(store, out, EmbedConfig(init=weights, batch_size=3, **SMALL))


def _content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("suffix", "num_processes"), [(".parquet", 2), (".zarr", 1), pytest.param(".zarr", 2, marks=pytest.mark.slow)]
)
def test_a_killed_run_and_two_processes_give_the_same_bytes(
    pan_store: Store, weights: Path, tmp_path: Path, suffix: str, num_processes: int
) -> None:
    def run(name: str, num: int, num_saves: int = 0) -> list[int | None]:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        return run_processes(num, _embed_in_twos, str(pan_store.path), place / f"a{suffix}", str(weights), num_saves)

    assert run("whole", 1) == [0]
    whole = _content(tmp_path / "whole" / f"a{suffix}")
    assert whole
    codes = run("killed", num_processes, num_saves=1)
    assert -signal.SIGKILL in codes
    assert 0 not in codes
    assert not (tmp_path / "killed" / f"a{suffix}").exists()
    assert len(list((tmp_path / "killed").rglob("*.safetensors"))) == num_processes
    assert run("killed", num_processes) == [0] * num_processes
    assert _content(tmp_path / "killed" / f"a{suffix}") == whole
    assert not list((tmp_path / "killed").glob("*.parts"))


def test_a_finished_file_is_left_alone_and_another_one_refused(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    for name in ("a.parquet", "a.zarr"):
        command = ["embed", pan_store.path, "--init", weights, "-o", tmp_path / name, "--num-workers", 0]
        assert _run(*command).exit_code == 0
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        again = _run(*command, "--knn", "--json")
        assert again.exit_code == 0, again.stderr
        assert json.loads(again.stdout)["rows"] == len(pan_store)
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
        other = _run(*command, "--num-temporal-views", 2)
        assert other.exit_code == 2
        assert "holds features of another model, store or view" in other.stderr
        assert _run(*command, "--num-temporal-views", 2, "--force").exit_code == 0
        assert (tmp_path / f"{name}.old-1").exists()


def test_nearest_neighbours_vote_and_are_drawn(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    command = ["embed", pan_store.path, "--init", weights, "-o", tmp_path / "a.parquet", "--num-workers", 0]
    result = _run(*command, "--knn", "--nearest", "test/up", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    table = pd.read_parquet(tmp_path / "a.parquet").set_index("video_id")
    unit = {name: row / np.linalg.norm(row) for name, row in table["feature"].items()}
    similarity = {name: float(vector @ unit["test/up/0.mp4"]) for name, vector in unit.items()}
    expected = sorted(similarity.items(), key=lambda item: -item[1])[1:]
    assert [name for name, _ in found["nearest"]] == [name for name, _ in expected]
    hits = []
    for name in table.index[table["split"] == "test"]:
        votes: dict[str, float] = {}
        for other in table.index[table["split"] == "train"]:
            weight = float(np.exp(unit[name] @ unit[other] / 0.07))
            votes[table["label"][other]] = votes.get(table["label"][other], 0.0) + weight
        hits.append(max(votes, key=lambda label: votes[label]) == table["label"][name])
    assert found["knn_top1"] == pytest.approx(np.mean(hits))
    with Image.open(found["picture"]) as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 20


def test_vectors_of_several_views_are_means_of_unit_vectors() -> None:
    generator = np.random.default_rng(0)
    feature_NVD = generator.normal(size=(3, 2, 5)).astype(np.float32)
    names: dict[str, Any] = {
        "sample_ids": list("abc"),
        "video_ids": list("abc"),
        "labels": [None] * 3,
        "splits": [None] * 3,
    }
    rows = Embeddings(feature_RD=feature_NVD, view_R=np.zeros(3, np.int16), **names).with_views(2)
    vector_ND, starts = sample_vectors(rows)
    assert starts == [0, 2, 4]
    unit_NVD = torch.nn.functional.normalize(torch.from_numpy(feature_NVD), dim=2)
    expected_ND = torch.nn.functional.normalize(unit_NVD.mean(1), dim=1)
    np.testing.assert_allclose(vector_ND, expected_ND, atol=1e-6)
    assert nearest(rows, "b", 9)[0][1] == pytest.approx(
        max(float(expected_ND[1] @ expected_ND[0]), float(expected_ND[1] @ expected_ND[2])), abs=1e-6
    )
    with pytest.raises(UserError, match="no feature of 'd'"):
        nearest(rows, "d", 9)


def test_bad_input_is_one_line(pan_videos: Path, pan_store: Store, weights: Path, tmp_path: Path) -> None:
    extract(pan_videos / "test" / "up", tmp_path / "bare.store")
    (tmp_path / "junk.parquet").write_text("junk")
    (tmp_path / "junk.zarr").mkdir()
    of = ["--init", weights, "--num-workers", 0]
    cases = {
        (pan_store.path, "-o", tmp_path / "a.parquet"): "embed needs --init",
        (pan_store.path, *of, "-o", tmp_path / "a.csv"): "must end in .parquet or .zarr",
        (pan_store.path, *of, "-o", tmp_path / "junk.parquet"): "holds no embeddings",
        (pan_store.path, *of, "-o", tmp_path / "junk.zarr"): "holds no embeddings",
        (pan_store.path, *of, "-o", tmp_path / "a.parquet", "--split", "val"): "no video of split 'val'",
        (pan_store.path, *of, "-o", tmp_path / "a.parquet", "--nearest", "x"): "there is no 'x' among the videos",
        (
            pan_store.path,
            *of,
            "-o",
            tmp_path / "a.parquet",
            "--nearest",
            "up/",
        ): "'up/' is a part of the id of 2",
        (tmp_path / "bare.store", *of, "-o", tmp_path / "a.parquet", "--knn"): "needs labels",
        (pan_store.path, *of, "-o", tmp_path / "a.parquet", "--knn", "--split", "test"): "'train' and of another",
    }
    for arguments, message in cases.items():
        result = _run("embed", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr, result.stderr
        assert not (tmp_path / "a.parquet").exists()


def test_a_segment_is_a_row(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    shutil.copytree(str(pan_store.path), tmp_path / "a.store")
    rows = [
        {"sample_id": f"s{n}", "video_id": "train/up/0.mp4", "first_frame": n, "last_frame": n + 9, "label": f"l{n}"}
        for n in (0, 10)
    ]
    write_segments(tmp_path / "a.store", pa.Table.from_pylist([row | {"split": None} for row in rows]))
    embed(tmp_path / "a.store", tmp_path / "a.parquet", EmbedConfig(init=str(weights), **SMALL))
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert table[["sample_id", "video_id", "label", "split"]].to_numpy().tolist() == [
        ["s0", "train/up/0.mp4", "l0", "train"],
        ["s10", "train/up/0.mp4", "l10", "train"],
    ]
    expected = load(weights).features([pan_store["train/up/0.mp4"].frames[n : n + 10] for n in (0, 10)], stride=2)
    np.testing.assert_allclose(np.stack(table["feature"].tolist()), expected.numpy(), rtol=2e-3, atol=2e-3)


def test_videos_without_labels_have_rows(pan_videos: Path, weights: Path, tmp_path: Path) -> None:
    extract(pan_videos / "test" / "up", tmp_path / "bare.store")
    embed(tmp_path / "bare.store", tmp_path / "a.parquet", EmbedConfig(init=str(weights), **SMALL))
    (row,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    (video_id,) = open_store(tmp_path / "bare.store").videos.index
    assert (row["video_id"], row["label"], row["split"], row["view"]) == (video_id, None, None, None)

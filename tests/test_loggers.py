"""TensorBoard and Weights & Biases get what metrics.jsonl has: read back by their own readers."""

import json
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy import CPU, pretrain_job, toy_config

from mgm_shared.errors import UserError
from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.figures.pretrained import logged_pictures
from mgm_train.tasks.pretrain import pretrain
from mgm_train.training import loggers
from mgm_train.training.loggers import Loggers, check_loggers
from mgm_train.training.loop import train

BLOCK = 32_768
CURVES = {"loss", "lr", "grad_norm", "clips_per_s", "data_wait", "data_wait_ms", "epoch", "num_clips"}


def _events(run: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def _scalars(events: Any, name: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(name)}


def _history(run: Path) -> list[dict[str, Any]]:
    """The logged rows of the offline files of a run, in order."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows: list[dict[str, Any]] = []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for data in _leveldb_records(file.read_bytes()):
            record = proto.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return rows


def _leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format behind W&B's header of seven bytes: blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        # Whole, first, middle, last.
        if kind in (1, 4):
            yield record
            record = b""


@pytest.fixture(scope="module")
def logged(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining of two epochs that logs to both."""
    for name in ("tensorboard", "wandb"):
        pytest.importorskip(name)
    run = tmp_path_factory.mktemp("runs") / "logged"
    settings: dict[str, Any] = {"model": "vit_tiny", "num_frames": 4, "image_px": 32, "stride": 2, "batch_size": 2}
    settings |= {"epochs": 2, "warmup_epochs": 0, "log_every_steps": 1, "save_every_epochs": 1, "num_workers": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        # Its process would look for another one's in the environment.
        patch.delenv("WANDB_SERVICE", raising=False)
        pretrain(pan_store.path, run, PretrainConfig(**settings, device="cpu", log="tensorboard, wandb"))
    return run


def test_tensorboard_has_every_number(logged: Path) -> None:
    events, rows = _events(logged), RunFolder(logged).read_metrics()
    assert len(rows) == 4
    assert set(events.Tags()["scalars"]) >= CURVES
    for name in CURVES:
        expected = {row["step"]: row[name] for row in rows}
        assert _scalars(events, name) == pytest.approx(expected, rel=1e-6), name


def test_weights_and_biases_is_offline_and_has_every_number(logged: Path) -> None:
    (folder,) = logged.glob("wandb/offline-run-*")
    rows = {row["_step"]: row for row in _history(logged) if "loss" in row}
    for expected in RunFolder(logged).read_metrics():
        shown = rows[expected["step"]]
        assert {name: shown[name] for name in CURVES} == pytest.approx({name: expected[name] for name in CURVES})
    assert folder.name.endswith((logged / "wandb/id.txt").read_text().strip())


def test_both_have_the_pictures_of_each_kept_epoch(logged: Path) -> None:
    events = _events(logged)
    for name in ("masks", "attention", "reconstruction", "saliency"):
        shown = events.Images(name)
        assert [event.step for event in shown] == [2, 4]
        with Image.open(BytesIO(shown[-1].encoded_image_string)) as picture:
            assert picture.width > 500
            assert np.asarray(picture).std() > 10
        files = sorted(logged.glob(f"wandb/offline-run-*/files/media/images/{name}_*.png"))
        assert [int(file.stem.split("_")[1]) for file in files] == [2, 4]


def test_a_run_that_continues_hides_what_it_writes_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for start, value in ((0, 1.0), (3, 2.0)):
        opened = Loggers.open(["tensorboard"], run, "pretrain", {}, start)
        for step in range(start + 1, start + 4):
            opened.row({"step": step, "loss": value, "note": "text", "mfu": None, "lr": float("nan")})
        opened.close()
    events = _events(tmp_path)
    assert _scalars(events, "loss") == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}
    assert events.Tags()["scalars"] == ["loss"], "text, null and NaN are no points"


def test_loggers_change_no_number_of_the_training(tmp_path: Path, logged: Path) -> None:
    """Also the pictures draw nothing from the random state."""
    losses = []
    for name in ("", "tensorboard"):
        job = pretrain_job(tmp_path / f"run{name}", toy_config(log=name, epochs=2, save_every_epochs=1))
        train(job, CPU)
        losses.append([row["loss"] for row in job.run.read_metrics()])
    assert losses[0] == losses[1]


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(tmp_path: Path, pan_store: Store) -> None:
    def fail(path: Path) -> Any:
        raise UserError("figures need matplotlib")

    said: list[str] = []
    job = pretrain_job(
        tmp_path, toy_config(log="tensorboard", epochs=1, save_every_epochs=1), draw=fail, say=said.append
    )
    assert train(job, CPU).is_complete
    assert "no pictures were logged: figures need matplotlib" in said
    assert logged_pictures(pan_store, PretrainConfig()) is not None


def test_bad_names_and_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="log is 'tensorboard,neptune' but must be empty, or some of tensorboard, wandb"
    ):
        PretrainConfig(log="tensorboard,neptune")
    assert PretrainConfig(log=" wandb , tensorboard").loggers == ["wandb", "tensorboard"]
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log wandb needs the package wandb: pip install '\.\[log\]'"):
        check_loggers(["wandb"])
    with pytest.raises(UserError, match="needs the package tensorboard"):
        train(pretrain_job(tmp_path / "run", toy_config(log="tensorboard")), CPU)
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "config.yaml").exists()

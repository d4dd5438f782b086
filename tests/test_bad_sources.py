"""What is given as a model and is none, or not ours, or damaged: one line that says what is wrong, and exit code 2."""

import argparse
import collections
import dataclasses
import json
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from mgm_prep import extract
from mgm_shared.errors import UserError
from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.weights import save_weights
from mgm_train.cli import main
from mgm_train.config import PretrainConfig
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build

TINY = dataclasses.replace(MODEL_SIZES["vit_tiny"], depth=2, name="vit_192x2", num_frames=4, image_px=32)
ARGS = argparse.Namespace(num_frames=4, input_size=32)
HUGGING: dict[str, Any] = {
    "model_type": "videomae",
    "image_size": 32,
    "num_frames": 4,
    "num_attention_heads": 3,
}
Make = Callable[[Path], object]


def _classifier() -> dict[str, Tensor]:
    """A tiny classifier under the names of the VideoMAE programs."""
    state = build(lambda: VideoClassifier(TINY, 3), seed=0).state_dict()
    return {name.removeprefix("encoder."): tensor for name, tensor in state.items()}


def _run(*arguments: object) -> tuple[int, str]:
    """Exit code and last line on stderr; a traceback fails here."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert not result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("mgm-train")]
    return result.exit_code, line


def _text(path: Path) -> None:
    path.write_text("not a model")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


def _bert(path: Path) -> None:
    torch.save(collections.OrderedDict({"bert.embeddings.word_embeddings.weight": torch.zeros(9, 4)}), path)


def _safetensors_of_bert(path: Path) -> None:
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(9, 4)}, path)


def _images(path: Path) -> None:
    """A ViT of images: patches without time."""
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16)}}, path)


def _number(path: Path) -> None:
    torch.save({"model": {"patch_embed.proj.weight": torch.tensor(1.0)}}, path)


def _changed(**changes: Tensor | None) -> Make:
    """An official classifier with some tensors replaced, added or, where None, left out."""

    def write(path: Path) -> None:
        state = {name: changes.get(name.replace(".", "__"), tensor) for name, tensor in _classifier().items()}
        state |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
        kept = {name: tensor for name, tensor in state.items() if tensor is not None}
        torch.save({"model": kept, "args": ARGS}, path)

    return write


def _folder(settings: object, *files: str) -> Make:
    def write(path: Path) -> None:
        path.mkdir()
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (path / "config.json").write_text(text)
        for name in files:
            save_file({"a": torch.zeros(1)}, path / name)

    return write


def _lost_shard(path: Path) -> None:
    _folder(HUGGING, "model-00001-of-00002.safetensors")(path)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _ours(config: ModelConfig, **changes: Tensor | None) -> Make:
    """A weights file of ours whose tensors are not those of its model."""

    def write(path: Path) -> None:
        state = build(lambda: VideoMAE(TINY), seed=0).state_dict()
        state |= {name.replace("__", "."): tensor for name, tensor in changes.items() if tensor is not None}
        kept = {
            name: tensor for name, tensor in state.items() if changes.get(name.replace(".", "__"), tensor) is not None
        }
        save_weights(path, kept, config, {})

    return write


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("must-not-exist"),)  # type: ignore[return-value]


BAD: dict[str, tuple[str, Make, str]] = {
    "nowhere": ("nowhere", lambda path: None, "there is no file or folder"),
    "hub": ("MCG-NJU/videomae-base", lambda path: None, "there is no file or folder .*nothing is downloaded"),
    "empty-folder": ("folder", lambda path: path.mkdir(), "neither a weights file nor a run folder"),
    "empty-safetensors": ("a.safetensors", lambda path: path.touch(), "is an empty file"),
    "empty-pth": ("a.pth", lambda path: path.touch(), "is an empty file"),
    "text": ("a.txt", _text, "is no safetensors file"),
    "text-safetensors": ("a.safetensors", _text, "is no safetensors file"),
    "text-pth": ("a.pth", _text, "refused: it is no checkpoint of PyTorch"),
    "short": ("a.safetensors", lambda path: path.write_bytes(b"\x09"), "is no safetensors file"),
    "huge-header": ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"), "is no safetensors file"),
    "zip": ("a.pth", _zip, "is no checkpoint of PyTorch"),
    "zip-without-suffix": ("weights", _zip, "is no checkpoint of PyTorch"),
    "numpy": ("a.npz", lambda path: np.savez(path, a=np.zeros(3)), "is no checkpoint of PyTorch"),
    "bert-bin": ("pytorch_model.bin", _bert, "holds no VideoMAE"),
    "bert-safetensors": ("a.safetensors", _safetensors_of_bert, "holds no VideoMAE"),
    "images": ("a.pth", _images, "holds no VideoMAE"),
    "scalar": ("a.pth", _number, "holds no VideoMAE"),
    "list": ("a.pth", lambda path: torch.save([torch.zeros(1)], path), "holds no weights but a list"),
    "tensor": ("a.pth", lambda path: torch.save(torch.zeros(1), path), "holds no weights but a Tensor"),
    "nothing": ("a.pth", lambda path: torch.save({"model": {}}, path), "there is no tensor under"),
    "evil": ("a.pth", lambda path: torch.save({"model": {}, "args": Evil()}, path), "refused: it names .*getattr"),
    "evil-pickle": ("a.ckpt", lambda path: path.write_bytes(pickle.dumps(Evil())), "is refused"),
    "module": ("a.pt", lambda path: torch.save(torch.nn.Linear(1, 1), path), "refused: it names torch.nn"),
    "scripted": ("a.pt", lambda path: torch.jit.script(torch.nn.ReLU()).save(str(path)), "no checkpoint of PyTorch"),
    "missing": ("a.pth", _changed(blocks__1__mlp__fc1__bias=None), "1 missing: encoder.blocks.1.mlp.fc1.bias"),
    "extra": ("a.pth", _changed(cls_token=torch.zeros(1, 1, 192)), "1 unknown: cls_token"),
    "shape": ("a.pth", _changed(fc_norm__weight=torch.zeros(9)), r"1 of another shape: fc_norm.weight \(9,\) instead"),
    "no-axes": ("a.pth", _changed(head__weight=torch.tensor(1.0)), r"head.weight \(\) instead"),
    "table": ("a.pth", _changed(pos_embed=torch.zeros(1, 9, 192)), r"pos_embed has the shape \(1, 9, 192\)"),
    "table-no-axes": ("a.pth", _changed(pos_embed=torch.tensor(0.0)), r"pos_embed has the shape \(\)"),
    "nan": ("a.pth", _changed(head__bias=torch.full((3,), np.nan)), "head.bias is not finite"),
    "whole-numbers": (
        "a.pth",
        _changed(head__bias=torch.zeros(3, dtype=torch.int8)),
        "is of type torch.int8",
    ),
    "query-bias": (
        "a.pth",
        _changed(blocks__0__attn__q_bias=torch.zeros(192)),
        "1 unknown: .*attn.q_bias",
    ),
    "two-models": ("a.pth", _changed(module__head__bias=torch.zeros(3)), "several models"),
    "other-folder": (
        "folder",
        _folder({"model_type": "timesformer"}, "model.safetensors"),
        "'timesformer'",
    ),
    "no-type": ("folder", _folder([], "model.safetensors"), "a model of type None"),
    "no-json": ("folder", _folder("{", "model.safetensors"), "is no JSON"),
    "no-weights": ("folder", _folder(HUGGING), "has a config.json but no model.safetensors"),
    "lost-shard": ("folder", _lost_shard, "lacks model-00002-of-00002.safetensors"),
    "relu": ("folder", _folder(HUGGING | {"hidden_act": "relu"}, "model.safetensors"), "hidden_act is 'relu'"),
    "frames": ("folder", _folder(HUGGING | {"num_frames": "4"}, "model.safetensors"), "num_frames is '4'"),
    "timm-size": ("folder", _folder({"architecture": "mgm_vit_x_patch16_224"}, "model.safetensors"), "names an archit"),
    "timm-other": ("folder", _folder({"architecture": "resnet50"}, "model.safetensors"), "of type None"),
    "ours-missing": ("a.safetensors", _ours(TINY, mask_token=None), "1 missing: mask_token"),
    "ours-extra": ("a.safetensors", _ours(TINY, extra=torch.zeros(1)), "1 unknown: extra"),
    "ours-of-another-size": (
        "a.safetensors",
        _ours(dataclasses.replace(TINY, depth=3)),
        "12 missing: enc",
    ),
    "ours-unknown-attention": ("a.safetensors", _ours(dataclasses.replace(TINY, positions="x")), "no positions 'x'"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_bad_source_is_one_line(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, write, match = BAD[case]
    write(tmp_path / name)
    with pytest.raises(UserError, match=match) as raised:
        load_source(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value) or case in ("two-models",)
    assert not (tmp_path / "must-not-exist").exists()


@pytest.mark.parametrize("case", ["hub", "evil", "bert-safetensors", "missing", "other-folder", "ours-missing"])
@pytest.mark.parametrize("command", ["finetune", "probe", "embed", "evaluate", "export"])
def test_every_command_says_it_in_one_line(pan_store: Store, tmp_path: Path, command: str, case: str) -> None:
    name, write, match = BAD[case]
    source = tmp_path / name
    write(source)
    words: dict[str, list[object]] = {
        "finetune": [pan_store.path, "--run", tmp_path / "run", "--init", source],
        "probe": [pan_store.path, "--run", tmp_path / "run", "--init", source],
        "embed": [pan_store.path, "-o", tmp_path / "out.parquet", "--init", source],
        "evaluate": [pan_store.path, source],
        "export": [source, tmp_path / "out", "--to", "safetensors"],
    }
    code, line = _run(command, *words[command])
    assert code == 2
    assert re.search(match, line)
    assert not {"run", "out", "out.parquet", "out.parquet.parts"} & {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("command", ["finetune", "probe"])
def test_a_store_without_labels(pan_videos: Path, tmp_path: Path, command: str) -> None:
    extract(pan_videos / "train" / "up", tmp_path / "bare.store")
    size = dataclasses.replace(MODEL_SIZES["vit_tiny"], num_frames=4, image_px=32)
    save_weights(tmp_path / "a.safetensors", build(lambda: VideoMAE(size), seed=0).state_dict(), size, {})
    options = ["--init", tmp_path / "a.safetensors", "--run", tmp_path / "run"]
    code, line = _run(command, tmp_path / "bare.store", *options)
    assert code == 2
    assert "has no label; " in line
    assert not (tmp_path / "run").exists()


UNFINISHED = ["--model", "vit_tiny", "--num-frames", "4", "--image-px", "32", "--stride", "2", "--num-workers", "0"]
ENDLESS = [*UNFINISHED, "--batch-size", "4", "--epochs", "100000", "--save-every-epochs", "100000", "--no-flip"]


def test_a_run_that_stopped_before_its_first_weights_says_how_to_go_on(pan_store: Store, tmp_path: Path) -> None:
    """The command that the message names continues the run."""
    run = tmp_path / "a run"
    command = [sys.executable, "-m", "mgm_train", "pretrain", str(pan_store.path), "--run", str(run), *ENDLESS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    code, line = _run("finetune", pan_store.path, "--run", tmp_path / "ft", "--init", run)
    assert code == 2
    assert "is unfinished and has no weights yet; go on with `" in line
    named = shlex.split(line.split("`")[1])
    assert named[:4] == ["mgm-train", "pretrain", str(pan_store.path), "--run"]
    result = CliRunner().invoke(main, [*named[1:], "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["settings"]["epochs"] == 100000


@pytest.mark.parametrize(
    ("task", "match"),
    [
        ("pretrain", r"unfinished and has no weights yet; go on with `mgm-train pretrain STORE --run \S+ --config"),
        ("probe", "is the folder of a probe, which has no weights"),
    ],
)
def test_a_run_killed_before_its_first_checkpoint(tmp_path: Path, task: str, match: str) -> None:
    RunFolder(tmp_path).start(task, PretrainConfig(), {})
    with pytest.raises(UserError, match=match):
        load_source(tmp_path)

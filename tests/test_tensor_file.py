"""Checkpoints whose damage is noticed, byte by byte, and files that are equal where their content is."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy import TOY

from mgm_shared.errors import UserError
from mgm_train.checkpoint.resume import load_state
from mgm_train.checkpoint.run_folder import RunFolder, load_last, save_last
from mgm_train.checkpoint.tensor_file import load_tensors, save_tensors
from mgm_train.checkpoint.weights import find_weights, load_weights, save_weights

TEXTS = {"labels": '["höher", "a\\"b\\nc", "\\u2028"]', "mgm_epoch": "3", "zeta": "", "alpha": "\x1f\x7f"}


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "b": torch.randn(3, 4), "a": torch.randn(2).bfloat16(), "c.d": torch.arange(5), "empty": torch.zeros(0, 3),
    }  # fmt: skip


def test_the_library_reads_it(tmp_path: Path) -> None:
    save_tensors(tmp_path / "file", _tensors(), TEXTS)
    expected = _tensors()
    for state in (load_file(tmp_path / "file"), load_tensors(tmp_path / "file").tensors):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    with safe_open(tmp_path / "file", "pt") as opened:
        assert TEXTS.items() <= opened.metadata().items()
        assert opened.metadata()["format"] == "pt"
    assert load_tensors(tmp_path / "file").metadata.items() >= TEXTS.items()


def test_equal_content_gives_equal_bytes_in_any_process(tmp_path: Path) -> None:
    """The library's own order of texts differs from process to process, and from file to file."""
    script = """if True:
        import sys
        from pathlib import Path
        from test_tensor_file import TEXTS, _tensors
        from mgm_train.checkpoint.tensor_file import save_tensors
        for number in range(5):
            texts, tensors = list(TEXTS.items()), list(_tensors().items())
            save_tensors(Path(sys.argv[1]) / str(number), dict(tensors[::-1]), dict(texts[::-1]))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    for number in range(5, 10):
        save_tensors(tmp_path / str(number), _tensors(), TEXTS)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_every_flipped_byte_and_every_cut_of_a_weights_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "epoch-0001.safetensors"
    save_weights(path, _tensors() | {"c.d": torch.ones(5)}, TOY, TEXTS)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (1, 0x80):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            with pytest.raises(UserError):
                load_tensors(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="safetensors"):
            load_tensors(path)
    path.write_bytes(content)
    assert load_tensors(path).metadata.items() >= TEXTS.items()


def test_a_file_of_an_earlier_version_has_no_digest_and_is_read(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "file", metadata={"format": "pt", **TEXTS})
    assert load_tensors(tmp_path / "file").metadata.items() >= TEXTS.items()


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_weights_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_weights(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_version_is_one_line(tmp_path: Path) -> None:
    for text in ('{"name": "toy", "wings": 2}', "[1]", "{"):
        save_tensors(tmp_path / "file", _tensors(), {"mgm_model": text})
        with pytest.raises(UserError, match="holds a model of another version"):
            load_weights(tmp_path / "file")


def test_the_latest_weights_are_those_of_the_highest_epoch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for epoch in (9950, 10000, 50):
        save_weights(run.weights(epoch), {"a": torch.ones(1)}, TOY, {"mgm_epoch": str(epoch)})
    (run.checkpoints / "epoch-best.safetensors").write_bytes(b"somebody's")
    assert find_weights(tmp_path) == run.weights(10000)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    return run


def _state() -> dict[str, Any]:
    return {"model": {"weight": torch.randn(40)}, "config": {"mask": "mgm"}, "task": "pretrain", "loss_sum": 0.5}


def test_every_flipped_byte_of_last_is_noticed_or_changes_nothing(run: RunFolder) -> None:
    """A zip file has bytes that mean nothing: padding, times and attributes."""
    state = _state()
    save_last(run, state)
    content = run.last.read_bytes()
    num_noticed = 0
    for place in random.Random(0).sample(range(len(content)), 400):
        run.last.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            loaded = load_last(run)
        except UserError:
            num_noticed += 1
            continue
        assert loaded is not None
        assert torch.equal(loaded.pop("model")["weight"], state["model"]["weight"])
        assert loaded == {name: value for name, value in state.items() if name != "model"}
    # About a quarter of the bytes of so small a file.
    assert num_noticed > 60


def test_a_flipped_byte_of_a_tensor_in_last_is_noticed(run: RunFolder) -> None:
    state = _state()
    save_last(run, state)
    content = run.last.read_bytes()
    place = content.index(state["model"]["weight"].numpy().tobytes())
    for offset in range(160):
        damaged = bytearray(content)
        damaged[place + offset] ^= 1
        run.last.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_last(run)


@pytest.mark.parametrize("kind", ["text", "cut", "tensor", "list", "foreign", "zip", "folder"])
def test_a_last_that_is_something_else_is_one_line(run: RunFolder, kind: str) -> None:
    save_last(run, _state())
    if kind == "text":
        run.last.write_text("nothing")
    elif kind == "cut":
        run.last.write_bytes(run.last.read_bytes()[:-100])
    elif kind == "zip":
        run.last.write_bytes(b"PK\x05\x06" + bytes(18))
    elif kind == "folder":
        run.last.unlink()
        run.last.mkdir()
    else:
        other = {"tensor": torch.ones(2), "list": [1], "foreign": {"model": {"a": torch.ones(1)}, "epoch": 3}}[kind]
        torch.save(other, run.last)
    with pytest.raises((UserError, IsADirectoryError)) as caught:
        load_state(run)
    # The program turns an OSError that names its file into one line, too.
    assert isinstance(caught.value, UserError) or kind == "folder"
    assert str(run.last) in str(caught.value)


class _FullDisk:
    """A file on a disk on which so many bytes are free."""

    def __init__(self, file: Any, num_free: int) -> None:
        self.file, self.num_free = file, num_free

    def __enter__(self) -> "_FullDisk":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        self.num_free -= len(content)
        if self.num_free < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(content))

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("num_free", [0, 100, 700, 1200])
def test_a_full_disk_while_last_is_saved_is_an_os_error_and_harms_nothing(
    run: RunFolder, num_free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_last(run, _state())
    before = run.last.read_bytes()
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r": _FullDisk(opened(path, mode), num_free) if "w" in mode else opened(path, mode),
    )
    with pytest.raises(OSError, match="No space left") as caught:
        save_last(run, _state())
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(run.last))
    assert run.last.read_bytes() == before
    assert [file.name for file in run.checkpoints.iterdir()] == ["last.pt"]


def test_a_full_disk_while_weights_are_saved_is_an_os_error_and_harms_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own that may write no file of more than 4 KiB: the library in Rust fails by itself."""
    path = run.weights(1)
    save_weights(path, _tensors() | {"c.d": torch.ones(5)}, TOY, {})
    before = path.read_bytes()
    script = """if True:
        import resource, sys
        from pathlib import Path
        import torch
        from mgm_train.checkpoint.tensor_file import save_tensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save_tensors(Path(sys.argv[1]), {"a": torch.zeros(100_000)}, {})
        except OSError as error:
            print(error.errno, error.filename)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{errno.EFBIG} {path}\n"
    assert path.read_bytes() == before
    assert [file.name for file in run.checkpoints.iterdir()] == [path.name]

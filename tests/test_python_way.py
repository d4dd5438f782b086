"""The whole way in Python, from a directory of videos to an accuracy, without the command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mgm_prep
import mgm_shared
import mgm_train
from mgm_train.evaluation.metrics import Scores

CPU: dict[str, Any] = {"num_workers": 0, "device": "cpu"}
VIEWS: dict[str, Any] = {
    "stride": 2,
    "num_temporal_views": 1,
    "num_spatial_views": 1,
    **CPU,
}
TRAINING: dict[str, Any] = {
    "model": "vit_tiny",
    "num_frames": 2,
    "image_px": 32,
    "stride": 2,
    "flip": False,
    "epochs": 2,
    **CPU,
}


class Heard:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None, str]] = []
        self.lines: list[str] = []
        self.num_done = 0

    def start(self, description: str, total: int | None, unit: str) -> None:
        self.steps.append((description, total, unit))

    def advance(self, count: int = 1, **details: object) -> None:
        self.num_done += count

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_from_a_directory_to_an_accuracy(pan_videos: Path, tmp_path: Path, heard: Heard) -> None:
    store_path = tmp_path / "pans.store"
    extracted = mgm_prep.extract(pan_videos, store_path, execution=mgm_prep.Execution(workers=0, progress=heard))
    assert (extracted.done, extracted.failed, heard.num_done) == (8, 0, 16), "eight headers, eight videos"
    assert mgm_prep.verify(store_path).problems == []

    store = mgm_shared.open_store(store_path)
    assert store["train/right/0.mp4"].frames[0:2].shape == (2, 128, 160, 3)

    pretrained = mgm_train.pretrain(
        store_path, tmp_path / "pretrain", mgm_train.PretrainConfig(**TRAINING), progress=heard
    )
    assert pretrained.is_complete
    assert pretrained.num_epochs == 2
    assert any(line.startswith("batch-size is 1: there are 4 training samples") for line in heard.lines)

    settings = TRAINING | {"init": str(pretrained.run), "mixup": 0.0, "cutmix": 0.0}
    finetuned = mgm_train.finetune(store_path, tmp_path / "finetune", mgm_train.FinetuneConfig(**settings))
    tested = mgm_train.evaluate(store_path, finetuned.run, mgm_train.EvaluateConfig(**VIEWS))
    assert tested is not None
    assert isinstance(tested.scores, Scores)
    assert (tested.scores.scored, tested.scores.listed) == (4, 4)
    assert tested.scores.top1 in {0.0, 0.25, 0.5, 0.75, 1.0}

    # Two classes of two training videos each, so that one of each can be held out.
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("label,class\nleft,across\nright,across\nup,along\ndown,along\n")
    grid: dict[str, Any] = {"learning_rates": (1e-3,), "epochs": 2, "split": "test", "class_map": str(pairs)}
    probe_config = mgm_train.ProbeConfig(**VIEWS, **grid, init=str(pretrained.run))
    assert mgm_train.preview_probe(store_path, probe_config).heads == 4
    probed = mgm_train.probe(store_path, tmp_path / "probe", probe_config)
    assert probed is not None
    assert (probed.scores.scored, probed.num_training_videos) == (4, 4)


@pytest.mark.parametrize("package", [mgm_prep, mgm_train, mgm_shared], ids=lambda package: package.__name__)
def test_the_public_interface_is_whole(package: Any) -> None:
    """Every name is there, has a docstring, and a function says what it returns."""
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        item: Callable[..., Any] = getattr(package, name)
        assert (item.__doc__ or "").strip(), name
        if not isinstance(item, type):
            assert "return" in item.__annotations__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["mgm_prep", "mgm_train", "mgm_shared"])
def test_the_import_is_light(name: str) -> None:
    heavy = "{'torch', 'av', 'zarr', 'pandas', 'dask', 'click'}"
    code = f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

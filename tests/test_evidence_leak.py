"""What a model reads of the pixels, and what of the mask alone: a model that is blind reads nothing of them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.config import PretrainConfig
from mgm_train.tasks.pretrain import pretrain

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

from evidence import cli  # noqa: E402
from evidence.leak import read_errors  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_model_that_sees_no_pixels_has_the_same_error_without_them(pan_store: Store, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "vit_tiny", "num_frames": 4, "image_px": 48, "stride": 2, "patch_px": 8}
    hardware: dict[str, Any] = {"num_workers": 0, "device": "cpu", "precision": "fp32"}
    config = PretrainConfig(
        **options,
        **hardware,
        epochs=1,
        warmup_epochs=0,
        batch_size=2,
        target="pixels+trajectory",
        trajectory_norm="clip",
    )
    pretrain(pan_store.address, tmp_path / "run", config)
    seeing = read_errors(tmp_path / "run", Path(pan_store.address))
    assert list(seeing) == ["pixels", "trajectory"]
    one = seeing["pixels"]
    assert len({one.clip, one.grey, one.other_clip}) == 3
    # The unbiased variance of 2 × 8 × 8 pixels makes it 127/128; grey patches have none.
    assert one.zeros == pytest.approx(127 / 128, abs=0.005)
    (file,) = RunFolder(tmp_path / "run").checkpoints.glob("epoch-*.safetensors")
    weights = load_weights(file)
    weights.state["encoder.patch_embed.proj.weight"] = torch.zeros_like(
        weights.state["encoder.patch_embed.proj.weight"]
    )
    save_weights(file, weights.state, weights.model, weights.metadata)
    for name, blind in read_errors(tmp_path / "run", Path(pan_store.address)).items():
        assert blind.clip == blind.grey == blind.other_clip
        assert blind.zeros == seeing[name].zeros
    arguments = ["leak", str(tmp_path / "run"), "--store", pan_store.address]
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert [line.split(" | ")[1] for line in result.output.splitlines()[2:]] == ["pixels", "trajectory"]

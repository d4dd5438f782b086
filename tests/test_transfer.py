"""`--init` decides the model and the clips of a fine-tuning, unless options say otherwise."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from mgm_shared.store import Store
from mgm_train import export
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.cli import main
from mgm_train.model_config import MODEL_SIZES
from mgm_train.models.videomae import VideoMAE, build

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = dataclasses.replace(MODEL_SIZES["vit_tiny"], num_frames=4, image_px=32, patch_px=8)
SHORT = "--stride 2 --num-workers 0 --no-flip --batch-size 4 --epochs 1 --warmup-epochs 0 --repeats 1".split()


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_weights(path, build(lambda: VideoMAE(TINY), seed=0).state_dict(), TINY, {})
    return path


def test_init_needs_no_other_option(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    command = ["finetune", pan_store.path, "--run", tmp_path / "ft", "--init", weights, *SHORT]
    first = _run(*command)
    assert first.exit_code == 0, first.stderr
    found = load_weights(tmp_path / "ft").model
    assert dataclasses.replace(found, name=TINY.name) == TINY
    before = RunFolder(tmp_path / "ft").read_metrics()
    again = _run(*command, "--json")
    assert json.loads(again.stdout)["is_complete"], "the same command continues the run"
    assert RunFolder(tmp_path / "ft").read_metrics() == before


@pytest.mark.parametrize("source", ["transformers", "timm", "safetensors", "official"])
def test_a_model_of_another_program_is_fine_tuned(pan_store: Store, weights: Path, tmp_path: Path, source: str) -> None:
    """One step; then the encoder has moved away from the same numbers as with our own file."""
    if source == "official":
        of_ours = load_weights(weights).state
        state = {name: tensor for name, tensor in of_ours.items() if not name.endswith("qkv.bias")}
        for name, bias in of_ours.items():
            if name.endswith("qkv.bias"):
                stem = name.removesuffix("qkv.bias")
                state[f"{stem}q_bias"], _, state[f"{stem}v_bias"] = bias.chunk(3)
        torch.save(
            {"model": state, "args": argparse.Namespace(num_frames=4, input_size=32)}, tmp_path / "checkpoint.pth"
        )
        init = tmp_path / "checkpoint.pth"
    else:
        init = tmp_path / "exported"
        export(weights, init, source)  # type: ignore[arg-type]
    for name, given in (("ours", weights), ("theirs", init)):
        result = _run("finetune", pan_store.path, "--run", tmp_path / name, "--init", given, *SHORT)
        assert result.exit_code == 0, result.stderr
        assert "74 pretrained tensors used; new: fc_norm, head" in result.stderr
    ours, theirs = (load_weights(tmp_path / name).state for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=0, rtol=0)


def test_clips_of_another_size_are_interpolated(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    asked = ["--num-frames", 8, "--image-px", 48]
    result = _run("finetune", pan_store.path, "--run", tmp_path / "ft", "--init", weights, *SHORT, *asked)
    assert result.exit_code == 0, result.stderr
    assert "positions interpolated from clips of 4×32² px to 8×48² px" in result.stderr
    found = load_weights(tmp_path / "ft").model
    assert (found.num_frames, found.image_px, found.trained_frames, found.trained_px) == (8, 48, 4, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vit_base"], "model is vit_base and not vit_tiny"),
        (["--patch-px", "16"], "patch-px is 16 and not 8"),
        (["--tubelet", "1"], "tubelet is 1 and not 2"),
        (["--attention", "divided"], "attention is divided and not joint"),
        (["--positions", "rope3d", "--patch-px", "16"], "patch-px is 16 and not 8, positions is rope3d and not sinu"),
        (["--num-frames", "5"], "num-frames"),
        (["--image-px", "36"], "image-px"),
    ],
)
@pytest.mark.parametrize("is_file", [False, True])
def test_an_option_that_differs_is_named(
    pan_store: Store, weights: Path, tmp_path: Path, options: list[str], message: str, is_file: bool
) -> None:
    """Given on the command line, or by a recipe."""
    if is_file:
        pairs = zip(options[::2], options[1::2], strict=True)
        lines = ["finetune:", *(f"  {name[2:].replace('-', '_')}: {value}" for name, value in pairs)]
        (tmp_path / "recipe.yaml").write_text("\n".join(lines))
        options = ["--config", str(tmp_path / "recipe.yaml")]
    result = _run("finetune", pan_store.path, "--run", tmp_path / "ft", "--init", weights, *SHORT, *options)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "ft").exists()


def test_the_same_as_the_weights_may_be_given(pan_store: Store, weights: Path, tmp_path: Path) -> None:
    same = ["--model", "vit_tiny", "--num-frames", 4, "--image-px", 32, "--patch-px", 8]
    command = ["finetune", pan_store.path, "--run", tmp_path / "ft", "--init", weights, *SHORT, *same]
    assert _run(*command, "--dry-run").exit_code == 0

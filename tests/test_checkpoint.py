"""Run folders: whole files only, exact round trips, and one line for whatever does not fit together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mgm_shared.errors import UserError
from mgm_train.checkpoint.resume import check_resumable
from mgm_train.checkpoint.run_folder import RunFolder, load_last, save_last
from mgm_train.checkpoint.transfer import fitted, load_encoder
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.config import FinetuneConfig, PretrainConfig
from mgm_train.model_config import ModelConfig
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build

TOY = ModelConfig(
    name="toy",
    width=16,
    depth=2,
    num_heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_num_heads=1,
    num_frames=2,
    image_px=32,
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.start("pretrain", PretrainConfig(), {"store": "store-hash"})
    return folder


@pytest.fixture
def pretrained(run: RunFolder) -> VideoMAE:
    model = build(lambda: VideoMAE(TOY), seed=5)
    save_weights(run.weights(3), model.state_dict(), TOY, {"mgm_epoch": "3"})
    return model


def test_start_writes_settings_and_environment_and_clears_half_files(run: RunFolder) -> None:
    half = run.checkpoints / ".last.pt.123.part"
    half.write_text("half")
    run.start("pretrain", PretrainConfig(), {"store": "store-hash"})
    assert not half.exists()
    settings = yaml.safe_load((run.root / "config.yaml").read_text())
    assert PretrainConfig(**settings["pretrain"]) == PretrainConfig()
    environment = json.loads((run.root / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["store"] == "store-hash"


def test_metrics_lose_what_comes_after_a_step_and_a_torn_line(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": step / 8})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    run.cut_metrics(2)
    assert run.read_metrics() == [{"step": 1, "loss": 0.125}, {"step": 2, "loss": 0.25}]


def test_last_round_trip(run: RunFolder) -> None:
    assert load_last(run) is None
    state: dict[str, Any] = {
        "model": {"weight": torch.randn(3)},
        "step": 7,
        "config": PretrainConfig().to_dict(),
        "loss_sum": 0.1,
    }
    save_last(run, state)
    loaded = load_last(run)
    assert loaded is not None
    assert torch.equal(loaded.pop("model")["weight"], state.pop("model")["weight"])
    assert loaded == state


def test_last_that_is_no_checkpoint_is_one_line(run: RunFolder) -> None:
    run.last.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        load_last(run)


def test_last_does_not_run_pickled_code(run: RunFolder) -> None:
    torch.save({"model": Path("/")}, run.last)
    with pytest.raises(UserError, match="cannot be read"):
        load_last(run)


def _saved_state() -> dict[str, object]:
    return {"task": "pretrain", "position": {"store": "a"}, "config": PretrainConfig().to_dict()}


def test_resuming_refuses_what_matters_and_names_it(run: RunFolder) -> None:
    other = PretrainConfig(mask="tube", base_lr=1e-3)
    with pytest.raises(UserError) as caught:
        check_resumable(run, _saved_state(), "pretrain", other, "b")
    message = str(caught.value)
    for part in ("base-lr was 0.00015 and is now 0.001", "mask was 'mgm' and is now 'tube'", "store was 'a'"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match="task was 'pretrain' and is now 'finetune'"):
        check_resumable(run, _saved_state(), "finetune", FinetuneConfig(), "a")


def test_resuming_allows_what_only_moves_work(run: RunFolder) -> None:
    moved = PretrainConfig(
        num_workers=0, device="cpu", grad_accum_steps=4, log_every_steps=1, grad_checkpointing=True, fsdp=True
    )
    check_resumable(run, _saved_state(), "pretrain", moved, "a")


def test_weights_explain_themselves(run: RunFolder, pretrained: VideoMAE) -> None:
    weights = load_weights(run.root)
    assert weights.path == run.weights(3)
    assert weights.model == TOY
    assert weights.metadata["mgm_epoch"] == "3"
    again = VideoMAE(weights.model)
    again.load_state_dict(weights.state, strict=True)
    assert torch.equal(again.decoder.head.weight, pretrained.decoder.head.weight)


def test_a_run_folder_means_its_latest_weights(run: RunFolder, pretrained: VideoMAE) -> None:
    save_weights(run.weights(20), pretrained.state_dict(), TOY, {})
    assert load_weights(run.root).path == run.weights(20)


def test_load_encoder_uses_the_encoder_and_accounts_for_the_rest(run: RunFolder, pretrained: VideoMAE) -> None:
    model = build(lambda: VideoClassifier(TOY, 4), seed=6)
    head = model.head.weight.detach().clone()
    account = load_encoder(model, load_weights(run.root))
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, pretrained.encoder.state_dict()[name]), name
    assert torch.equal(model.head.weight, head)
    assert set(account.used) | set(account.new) == set(model.state_dict())
    assert set(account.used) | set(account.dropped) == set(pretrained.state_dict())
    assert str(account) == (
        "26 pretrained tensors used; new: fc_norm, head; "
        "not needed: decoder, encoder.norm, encoder_to_decoder, mask_token"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vit_base", "width": 32}, "name toy instead of vit_base, width 16 instead of 32"),
        ({"attention": "divided"}, "attention joint instead of divided"),
    ],
)
def test_another_model_is_one_line_that_names_the_difference(
    run: RunFolder, pretrained: VideoMAE, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fitted(dataclasses.replace(TOY, **change), load_weights(run.root))


def test_a_encoder_for_clips_of_another_size_keeps_the_positions_it_was_trained_with(
    run: RunFolder, pretrained: VideoMAE
) -> None:
    larger = dataclasses.replace(TOY, num_frames=4, image_px=48)
    config = fitted(larger, load_weights(run.root))
    assert (config.trained_frames, config.trained_px) == (2, 32)
    model = VideoClassifier(config, 4)
    account = load_encoder(model, load_weights(run.root))
    assert str(account).endswith("; positions interpolated from clips of 2×32² px to 4×48² px")
    with pytest.raises(ValueError, match="build it with `fitted`"):
        load_encoder(VideoClassifier(larger, 4), load_weights(run.root))
    # The next one takes them from the first, not from what was interpolated; the first size again needs nothing.
    save_weights(run.weights(4), model.state_dict(), config, {})
    again = fitted(dataclasses.replace(TOY, num_frames=6), load_weights(run.root))
    assert (again.trained_frames, again.trained_px) == (2, 32)
    assert fitted(TOY, load_weights(run.root)) == TOY


def test_a_classifier_passes_on_its_pooled_norm_but_not_its_head(run: RunFolder) -> None:
    finetuned = build(lambda: VideoClassifier(TOY, 4), seed=7)
    torch.nn.init.normal_(finetuned.fc_norm.weight)
    save_weights(run.weights(1), finetuned.state_dict(), TOY, {})
    model = build(lambda: VideoClassifier(TOY, 4), seed=8)
    head = model.head.weight.detach().clone()
    account = load_encoder(model, load_weights(run.root))
    assert torch.equal(model.fc_norm.weight, finetuned.fc_norm.weight)
    assert torch.equal(model.head.weight, head)
    assert (account.new, account.dropped) == (("head.bias", "head.weight"),) * 2


def test_a_file_without_the_whole_encoder_is_refused(run: RunFolder, pretrained: VideoMAE) -> None:
    state = pretrained.state_dict()
    del state["encoder.blocks.1.mlp.fc2.bias"]
    metadata = {"mgm_model": json.dumps(dataclasses.asdict(TOY))}
    save_file(state, run.weights(3), metadata=metadata)
    with pytest.raises(UserError, match=r"tensors 1 missing: encoder.blocks.1.mlp.fc2.bias"):
        load_weights(run.root)


def test_what_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file or folder"):
        load_weights(tmp_path / "nowhere")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="no safetensors file"):
        load_weights(tmp_path / "text")
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="which model it holds"):
        load_weights(tmp_path / "foreign.safetensors")

"""Clips that change size during a run: which epoch has which, positions, the learning rate, resuming at any step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from toy import CPU, WIDE_TOY, assert_same_run, losses_of

from mgm_shared.errors import UserError
from mgm_shared.progress import SILENT
from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder, read_config
from mgm_train.checkpoint.weights import load_weights
from mgm_train.cli import main
from mgm_train.clip_schedule import Stage, parse_schedule, stages
from mgm_train.config import FinetuneConfig, PretrainConfig
from mgm_train.models.pos_embed import position_table
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.tasks.pretrain import pretrain_job
from mgm_train.training.loop import Job, train

pytestmark = pytest.mark.usefixtures("one_thread")

CALL: dict[str, Any] = {
    "model": "vit_tiny", "num_frames": 4, "stride": 2, "batch_size": 4, "warmup_epochs": 1, "base_lr": 0.05,
    "num_workers": 0, "device": "cpu", "log_every_steps": 1, "save_every_epochs": 100, "epochs": 4,
}  # fmt: skip


TEXT: dict[str, Any] = {"image_px": "128@0,224@0.8"}


def _config(**settings: Any) -> PretrainConfig:
    """The types of the options are numbers: a schedule in their place is for the command line and for recipes."""
    return PretrainConfig(**settings)


def test_a_schedule_is_values_with_shares() -> None:
    assert parse_schedule("128@0,224@0.8") == [(128, 0.0), (224, 0.8)]
    found = stages(10, num_frames=16, image_px=224, frames_text="8@0,16@0.5", px_text="128@0,160@0.5,224@0.84")
    assert found == [
        Stage(first_epoch=0, num_epochs=5, num_frames=8, image_px=128),
        Stage(first_epoch=5, num_epochs=3, num_frames=16, image_px=160),
        Stage(first_epoch=8, num_epochs=2, num_frames=16, image_px=224),
    ]
    assert stages(7, num_frames=16, image_px=96) == [Stage(first_epoch=0, num_epochs=7, num_frames=16, image_px=96)]


@pytest.mark.parametrize(
    "text",
    ["128@0,224", "@", "128@0,224@1", "128@0.1,224@0.5", "128@0,224@0.5,160@0.5", "128@0,x@0.5", "0@0,224@0.5",
     "128@0,224@nan", "128@0,224@0.5,", "-128@0,224@0.5", "128@0,224@0.001", "128@0,100@0.5", "24@0,224@0.5"],
)  # fmt: skip
def test_a_bad_schedule_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"^(image-px|mask-ratio)") as caught:
        _config(image_px=text, epochs=10)
    assert "\n" not in str(caught.value)


def test_one_schedule_in_all_three_ways(tmp_path: Path) -> None:
    config = _config(image_px="128@0,224@0.8", num_frames="8@0,16@0.5")
    assert (config.image_px, config.image_px_schedule) == (224, "128@0,224@0.8")
    assert (config.num_frames, config.num_frames_schedule) == (16, "8@0,16@0.5")
    assert PretrainConfig(**config.to_dict()) == config
    assert PretrainConfig(image_px_schedule="128@0,224@0.8").image_px == 224
    assert config.replace(base_lr=1e-3).stages == config.stages
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("pretrain:\n  image_px: 128@0,224@0.8\n")
    words = ["pretrain", str(tmp_path), "--run", "x", "--print-config"]
    printed = CliRunner().invoke(main, [*words, "--config", str(recipe)]).output
    typed = CliRunner().invoke(main, [*words, "--image-px", "128@0,224@0.8"]).output
    assert "image_px: 224" in printed
    assert "image_px_schedule: 128@0,224@0.8" in printed
    assert printed == typed
    other = CliRunner().invoke(main, [*words, "--config", str(recipe), "--image-px", "96"]).output
    assert "image_px: 96" in other
    assert "128@0" not in other


def test_only_pretraining_has_schedules() -> None:
    with pytest.raises(UserError, match=r"image-px is '128@0,224@0\.8' but must be a whole number"):
        FinetuneConfig(**TEXT)
    result = CliRunner().invoke(main, ["finetune", "x", "--run", "x", "--image-px", "128@0,224@0.8"])
    assert result.exit_code == 2
    with pytest.raises(UserError, match=r"image-px is 96 but must be the last value of 128@0,224@0\.8"):
        _config(image_px="128@0,224@0.8").replace(image_px=96)


@pytest.mark.parametrize("attention", ["joint", "divided"])
@pytest.mark.parametrize("positions", ["sinusoid", "separable", "rope3d"])
def test_positions_are_interpolated_and_come_back(attention: str, positions: str) -> None:
    config = replace(WIDE_TOY, attention=attention, positions=positions)
    model = build(lambda: VideoMAE(config), seed=0).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    frames_BCTHW = torch.rand(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    mask_BN = torch.tensor([[True, False, True, True], [True, True, False, True]])
    model.fit_clips(2, 32)
    small = replace(config, num_frames=2, image_px=32, trained_frames=4, trained_px=64)
    fresh = build(lambda: VideoMAE(small), seed=1).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(frames_BCTHW, mask_BN), fresh(frames_BCTHW, mask_BN))
    if positions != "rope3d":
        expected_1ND = position_table(small.grid, config.grid, 32, positions)
        assert torch.equal(model.encoder.position_1ND, expected_1ND)
        # Of two neighbours along each axis, the mean: the corner of 1×2×2 is the mean of the corner of 2×4×4.
        corner_D = before["encoder.position_1ND"].view(2, 4, 4, 32)[:, :2, :2].mean((0, 1, 2))
        torch.testing.assert_close(model.encoder.position_1ND[0, 0], corner_D)
    model.fit_clips(4, 64)
    after = dict(model.named_buffers())
    assert before.keys() == after.keys()
    for name, buffer in before.items():
        assert torch.equal(buffer, after[name])
    assert model.config == config, "the weights file describes the clips of the end"


def test_a_compiled_model_takes_the_new_size() -> None:
    model = build(lambda: VideoMAE(WIDE_TOY), seed=0).eval()
    compiled = torch.compile(model, backend="eager", dynamic=False, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for num_frames, image_px, num_masked in ((4, 64, 24), (2, 32, 2), (4, 64, 24)):
        model.fit_clips(num_frames, image_px)
        frames_BCTHW = torch.rand(2, 3, num_frames, image_px, image_px, generator=generator)
        mask_BN = torch.arange(num_frames * image_px**2 // 512).repeat(2, 1) < num_masked
        with torch.no_grad():
            expected_BMP = model(frames_BCTHW, mask_BN, num_masked, 0)
            torch.testing.assert_close(compiled(frames_BCTHW, mask_BN, num_masked, 0), expected_BMP)


def _job(store: Store, run: Path, **changes: Any) -> Job:
    job = pretrain_job(store.path, run, PretrainConfig(**(CALL | changes)), SILENT)
    return replace(job, max_saving_share=float("inf"))


class _Breaks:
    """A data set whose read number `at` fails, as when a disk goes away; it notes the shapes that it gave."""

    def __init__(self, dataset: Any, at: int = -1) -> None:
        self.dataset, self.at, self.num_reads = dataset, at, 0
        self.sizes: dict[int, set[tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        self.num_reads += 1
        if self.num_reads == self.at:
            raise RuntimeError("the disk went away")
        samples = self.dataset[key]
        self.sizes.setdefault(key[0], set()).update(tuple(sample["frames_CTHW"].shape) for sample in samples)
        return samples


SCHEDULE = {"image_px": "32@0,64@0.5", "num_frames": "2@0,4@0.75"}


def test_each_epoch_has_its_size_and_the_rate_is_as_without(pan_store: Store, tmp_path: Path) -> None:
    job = _job(pan_store, tmp_path / "scheduled", **SCHEDULE)
    seen = _Breaks(job.dataset)
    result = train(replace(job, dataset=seen), CPU)
    assert seen.sizes == {0: {(3, 2, 32, 32)}, 1: {(3, 2, 32, 32)}, 2: {(3, 2, 64, 64)}, 3: {(3, 4, 64, 64)}}
    assert result.flops == sum(job.flops_per_clip) * len(job.dataset) // 4 * 4  # type: ignore[arg-type]
    train(_job(pan_store, tmp_path / "plain", image_px=64), CPU)
    rates = [
        [row["lr"] for row in RunFolder(tmp_path / name).read_metrics() if "lr" in row]
        for name in ("scheduled", "plain")
    ]
    assert rates[0] == rates[1]
    weights = load_weights(tmp_path / "scheduled")
    assert (weights.model.image_px, weights.model.num_frames, weights.model.trained_px) == (64, 4, 0)
    assert read_config(tmp_path / "scheduled", "pretrain", PretrainConfig).image_px_schedule == "32@0,64@0.5"


@pytest.mark.parametrize("more", [{}, {"decoder": "cross", "decode_ratio": 0.5, "drop": 0.25, "ema_decay": 0.9}])
def test_a_run_resumes_exactly_on_both_sides_of_a_switch(pan_store: Store, tmp_path: Path, more: Any) -> None:
    settings = {"image_px": "32@0,64@0.5", **more}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(_job(pan_store, whole, **settings), CPU)
    num_steps = len(losses_of(whole))
    steps_per_epoch = num_steps // 4
    # Within the first size, at the switch, and within the second size; a step reads four videos.
    for stop in (1, 2 * steps_per_epoch, 2 * steps_per_epoch + 1):
        job = _job(pan_store, parts, **settings)
        done = len(losses_of(parts)) if parts.exists() else 0
        with pytest.raises(RuntimeError, match="the disk went away"):
            train(replace(job, dataset=_Breaks(job.dataset, at=4 * (stop - done) + 1)), CPU)
        assert len(losses_of(parts)) == stop
    train(_job(pan_store, parts, **settings), CPU)
    assert_same_run(whole, parts)
    with pytest.raises(UserError, match=r"image-px-schedule was .32@0,64@0\.5. and is now"):
        train(_job(pan_store, parts, image_px=64, **more), CPU)

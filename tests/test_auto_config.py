"""Options that nobody set: they fit the number of videos, the model and the memory; what was set is never changed."""

import math
import re
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from toy import MovingStripes, pretrain_job, toy_config

from mgm_shared.config import Config
from mgm_shared.errors import UserError
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import find_weights
from mgm_train.config import DetectConfig, FinetuneConfig, PretrainConfig, TrainConfig
from mgm_train.data.loader import Plan
from mgm_train.model_config import model_config
from mgm_train.runtime.distributed import Distributed
from mgm_train.training.auto_config import Machine, choose_options, dropped_line
from mgm_train.training.loop import train
from mgm_train.training.throughput import time_left

CPU = Machine(is_gpu=False, world_size=1, memory_bytes=16 * 2**30)
EIGHT_GPUS = Machine(is_gpu=True, world_size=8, memory_bytes=80 * 2**30)


def choose(config: TrainConfig, num_videos: int, machine: Machine = CPU, **recorded: object) -> Any:
    shape = model_config(config.model, num_frames=config.num_frames, image_px=config.image_px)
    return choose_options(config, shape, num_videos, machine, recorded)


def effective_rate(config: TrainConfig) -> float:
    return config.base_lr * config.batch_size / 256


@pytest.mark.parametrize(
    "config", [PretrainConfig(), FinetuneConfig(), DetectConfig()], ids=["pretrain", "finetune", "detect"]
)
def test_the_papers_options_on_the_papers_data_stay(config: TrainConfig) -> None:
    """As many samples as Something-Something v2 has videos, on eight GPUs of 80 GB; AVA has more key frames."""
    chosen, lines = choose(config, 168_913, EIGHT_GPUS)
    assert chosen.replace(grad_accum_steps=1) == config
    assert not [line for line in lines if "grad-accum-steps" not in line]


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize("num_videos", [1, 2, 3, 5, 14, 60, 300, 1000])
def test_small_data_sets_get_steps_and_a_rate(kind: type[TrainConfig], num_videos: int) -> None:
    chosen, lines = choose(kind(model="vit_tiny"), num_videos)
    plan = Plan.of(chosen, num_videos)
    assert plan.steps_per_epoch >= min(4, num_videos)
    assert plan.num_steps >= min(2000, num_videos * chosen.epochs)
    assert effective_rate(chosen) == pytest.approx(1e-3)
    is_default = chosen.batch_size == kind.model_fields["batch_size"].default
    said = f"batch-size is {chosen.batch_size}: there are {num_videos} training samples"
    assert any(said in line for line in lines) != is_default
    assert not any(line.startswith("warning: the learning rate") for line in lines)


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_mixup_gets_pairs(repeats: int) -> None:
    for num_videos in (2, 5, 14, 100):
        chosen, _ = choose(FinetuneConfig(model="vit_tiny", repeats=repeats), num_videos)
        assert chosen.batch_size // chosen.grad_accum_steps * repeats % 2 == 0
    chosen, _ = choose(FinetuneConfig(model="vit_tiny", repeats=1, mixup=0.0, cutmix=0.0), 2)
    assert chosen.batch_size == 1


def test_what_was_given_is_never_changed() -> None:
    given: dict[str, Any] = {
        "batch_size": 7,
        "warmup_epochs": 20,
        "base_lr": 1e-6,
        "min_lr": 0.0,
        "grad_accum_steps": 7,
        "epochs": 30,
    }
    config = PretrainConfig(model="vit_tiny", **given)
    chosen, lines = choose(config, 14)
    assert chosen == config
    assert "warning: the learning rate is only 2.7e-08" in lines[0]
    assert "set --base-lr 0.04" in lines[0]
    assert "warning: 60 steps are too few to learn much; set --epochs 250 or more" in lines[1]


def test_what_is_suggested_removes_the_warnings() -> None:
    config = PretrainConfig(model="vit_tiny", batch_size=7, warmup_epochs=5, base_lr=0.04, epochs=500)
    assert choose(config, 14)[1] == []


@pytest.mark.parametrize(("epochs", "expected"), [(800, 40), (200, 40), (160, 40), (100, 10), (30, 3), (1, 0)])
def test_warmup_is_at_most_a_quarter(epochs: int, expected: int) -> None:
    chosen, _ = choose(PretrainConfig(epochs=epochs), 100_000, EIGHT_GPUS)
    assert chosen.warmup_epochs == expected


def test_a_resumed_run_keeps_what_it_chose() -> None:
    config = PretrainConfig(model="vit_tiny")
    first, _ = choose(config, 60)
    again, lines = choose(config, 60, Machine(is_gpu=True, world_size=4, memory_bytes=2**34), **first.to_dict())
    assert (again.batch_size, again.base_lr, again.warmup_epochs) == (
        first.batch_size,
        first.base_lr,
        first.warmup_epochs,
    )
    assert "as at the start of this run" in lines[0]


def test_accumulation_follows_memory_and_divides_the_batch() -> None:
    for gib in (1, 4, 16, 80):
        machine = Machine(is_gpu=True, world_size=2, memory_bytes=gib * 2**30)
        chosen, _ = choose(PretrainConfig(model="vit_large"), 100_000, machine)
        assert chosen.batch_size % (2 * chosen.grad_accum_steps) == 0
    small, large = (
        choose(PretrainConfig(), 100_000, Machine(is_gpu=True, world_size=1, memory_bytes=gib * 2**30))[
            0
        ].grad_accum_steps
        for gib in (12, 80)
    )
    assert small > large > 1


def test_processes_share_the_batch() -> None:
    for num_videos in (40, 64, 100, 1000):
        chosen, _ = choose(FinetuneConfig(), num_videos, EIGHT_GPUS)
        assert chosen.batch_size % 8 == 0


def test_a_large_model_on_a_cpu_is_warned_of() -> None:
    assert any("use --model vit_tiny" in line for line in choose(PretrainConfig(), 10_000)[1])
    assert not any("on a CPU" in line for line in choose(PretrainConfig(), 10_000, EIGHT_GPUS)[1])


def test_dropped_videos_are_said() -> None:
    plan = Plan(num_videos=15, batch_size=4, grad_accum_steps=1, repeats=1, epochs=1, seed=0)
    assert dropped_line(plan).startswith("each epoch leaves out 3 of 15 videos")
    assert math.isclose(plan.steps_per_epoch, 3)
    assert dropped_line(Plan(num_videos=16, batch_size=4, grad_accum_steps=1, repeats=1, epochs=1, seed=0)) == ""


def test_every_chosen_option_is_one_of_the_configuration() -> None:
    assert {"batch_size", "warmup_epochs", "base_lr", "grad_accum_steps"} <= set(TrainConfig.option_names())
    assert issubclass(TrainConfig, Config)


def test_a_run_says_after_its_first_step_how_long_it_will_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait for the first batch counts neither there nor in the first row of metrics.jsonl."""

    class SlowToStart(MovingStripes):
        def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any]]:
            time.sleep(1.5 if self.num_reads == 0 else 0)
            return super().__getitem__(key)

    job = pretrain_job(tmp_path, toy_config(log_every_steps=5), SlowToStart(), flops_per_clip=None)
    train(job, Distributed(device=torch.device("cpu")))
    lines = capsys.readouterr().err.splitlines()
    pattern = r"step 1/10 \| (\d+\.\d) clips/s \| about (\d+) s left \| started in (\d\.\d) s"
    found = re.fullmatch(pattern, lines[1])
    assert found, lines[1]
    clips_per_s, left_s, started_s = map(float, found.groups())
    assert 1.5 <= started_s < 3
    assert clips_per_s > 4 / 1.5, "faster than with the start-up"
    assert left_s < 9 * 1.5
    assert lines[2].startswith("step 5/10 | ")
    row = RunFolder(tmp_path).read_metrics()[0]
    assert row["clips_per_s"] > 5 * 4 / 1.5
    assert row["data_wait_ms"] * 5 < 1500


def test_a_compiled_run_measures_its_second_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = pretrain_job(tmp_path, toy_config(log_every_steps=10, compile=True))
    with mock.patch("torch.compile", lambda model, **options: model), mock.patch.object(nn.Module, "compile"):
        train(job, Distributed(device=torch.device("cpu")))
    # torch's compiler may say something of its own.
    lines = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"[IWE]\d{4} ", line)]
    assert re.fullmatch(r"step 1/10 took \d+\.\d s, compiling the model included; --no-compile starts faster", lines[1])
    assert re.fullmatch(r"step 2/10 \| \d+\.\d clips/s \| about \d+ s left", lines[2])


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (600, "10 min"), (9000, "2.5 h"), (259_200, "3.0 days")])
def test_time_left_has_a_unit_for_people(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_an_unfinished_run_has_no_weights_yet(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"")
    with pytest.raises(UserError, match="is unfinished and has no weights yet; go on with `mgm-train"):
        find_weights(tmp_path)

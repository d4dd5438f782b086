"""The loop on clips in memory: golden curves, stopping and going on, the learning rate by hand.

`MGM_WRITE_GOLDEN=1 pytest tests/test_loop.py` writes the golden curves anew.
"""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import (
    CPU,
    GOLDEN_TOLERANCE,
    TOY,
    MovingStripes,
    assert_same_run,
    finetune_job,
    golden_file,
    golden_losses,
    losses_of,
    needs_cuda,
    pretrain_job,
    run_toy,
    toy_config,
)

from mgm_shared.errors import UserError
from mgm_shared.signals import StopRequest
from mgm_train.checkpoint.run_folder import RunFolder, load_last
from mgm_train.checkpoint.transfer import load_encoder
from mgm_train.checkpoint.weights import load_weights
from mgm_train.config import PretrainConfig
from mgm_train.data.loader import Plan, StepKeys, collate_counted
from mgm_train.models.videomae import VideoClassifier
from mgm_train.runtime.distributed import (
    Distributed,
    autocast_dtype,
    init_distributed,
    is_compiled,
    precision_remark,
)
from mgm_train.runtime.signals import is_stop_agreed, signals_put_off
from mgm_train.training import loop
from mgm_train.training.loop import Job, TrainResult, train
from mgm_train.training.losses import PretrainObjective
from mgm_train.training.optim import learning_rate, planned_rate
from mgm_train.training.train_state import Learner

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_ten_steps_follow_the_golden_curve(tmp_path: Path, task: str) -> None:
    job = pretrain_job(tmp_path) if task == "pretrain" else finetune_job(tmp_path, epochs=5)
    outcome = train(job, CPU)
    losses = losses_of(tmp_path)
    if os.environ.get("MGM_WRITE_GOLDEN"):
        golden_file(task).write_text("".join(f"{step} {loss:.6f}\n" for step, loss in enumerate(losses, 1)))
    assert losses == pytest.approx(golden_losses(task), abs=GOLDEN_TOLERANCE)
    assert outcome == TrainResult(
        run=tmp_path,
        is_main=True,
        is_complete=True,
        num_steps=10,
        num_epochs=5,
        first_loss=losses[0],
        last_loss=losses[-1],
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_it_learns(tmp_path: Path, seed: int) -> None:
    """With weights and an order that the golden curve has not seen."""
    outcome = train(pretrain_job(tmp_path, toy_config(seed=seed, epochs=10)), CPU)
    assert outcome.first_loss is not None
    assert outcome.last_loss is not None
    assert outcome.last_loss < 0.8 * outcome.first_loss


class _Waits(TorchDispatchMode):
    """Counts the operations whose result has a size or a value that Python must know: they wait for a GPU."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has not typed it
        self.number, self.is_on = 0, False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += any(name in str(function) for name in self.names)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_no_step_waits_for_the_device(tmp_path: Path, task: str) -> None:
    """Neither forward nor backward, clipping, AdamW, the average or the meter; a log line may."""
    settings: dict[str, Any] = {
        "batch_size": 2,
        "epochs": 1,
        "warmup_epochs": 0,
        "log_every_steps": 3,
        "clip_grad": 0.1,
    }
    settings["ema_decay"] = 0.9
    job = pretrain_job(tmp_path, toy_config(**settings)) if task == "pretrain" else finetune_job(tmp_path, **settings)
    num_in_steps: list[int] = []

    class Watched(MovingStripes):
        def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any]]:
            # The step before is over; what the reader does with the clips does no harm, for they are not on the device.
            if waits.is_on:
                num_in_steps.append(waits.number)
            waits.is_on = False
            return super().__getitem__(key)

    def objective(model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
        waits.number, waits.is_on = 0, True
        return job.objective(model, batch, seed)

    dataset = Watched(job.config.repeats)
    with _Waits() as waits:
        train(Job(**(vars(job) | {"objective": objective, "dataset": dataset})), CPU)
    assert num_in_steps == [0, 0, 2], "only the third step is logged: its loss and norm are read"


def test_files_of_a_run(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path, metadata={"labels": "[]"}), CPU)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        "checkpoints/epoch-0002.safetensors",
        "checkpoints/epoch-0004.safetensors",
        "checkpoints/epoch-0005.safetensors",
        "checkpoints/last.pt",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
    ]
    row = RunFolder(tmp_path).read_metrics()[4]
    assert (row["step"], row["epoch"], row["num_clips"]) == (5, 3, 20)
    assert row["clips_per_s"] > 0
    assert 0 <= row["data_wait"] <= 1
    assert row["grad_norm"] > 0
    weights = load_weights(tmp_path)
    assert weights.metadata["labels"] == "[]"
    assert weights.metadata["mgm_epoch"] == "5"
    load_encoder(VideoClassifier(TOY, 2), load_weights(tmp_path))


@pytest.mark.parametrize("stop_in_step", [3, 4])
def test_stopping_and_going_on_equals_one_run_bit_for_bit(tmp_path: Path, stop_in_step: int, capsys: Any) -> None:
    """The third step is the first of an epoch, the fourth its last."""
    train(pretrain_job(tmp_path / "whole"), CPU)
    stopped = train(pretrain_job(tmp_path / "parts", dataset=MovingStripes(signal_at=4 * stop_in_step)), CPU)
    assert not stopped.is_complete
    assert stopped.num_steps == stop_in_step
    assert "run the same command again to continue" in capsys.readouterr().err
    dataset = MovingStripes()
    assert train(pretrain_job(tmp_path / "parts", dataset=dataset), CPU).is_complete
    assert dataset.num_reads == 4 * (10 - stop_in_step), "nothing that came before is read again"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_finetuning_with_dropout_and_mixing_goes_on_bit_for_bit(tmp_path: Path) -> None:
    train(finetune_job(tmp_path / "whole"), CPU)
    dataset = MovingStripes(num_clips=2, signal_at=9)
    assert train(finetune_job(tmp_path / "parts", dataset), CPU).num_steps == 3
    torch.rand(7)  # the global random state of the second process differs
    assert train(finetune_job(tmp_path / "parts"), CPU).is_complete
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("is_mixed", [True, False], ids=["mixup", "drop path and dropout"])
def test_each_process_and_step_draws_its_own(tmp_path: Path, is_mixed: bool) -> None:
    """On one and the same batch, so that nothing else differs."""
    job = finetune_job(tmp_path) if is_mixed else finetune_job(tmp_path, mixup=0.0, cutmix=0.0)
    job.model.train(not is_mixed)
    batch = collate_counted([MovingStripes(2)[(0, index)] for index in range(4)])
    losses = []
    for rank, step in [(0, 0), (0, 0), (1, 0), (0, 1)]:
        trainer = loop._Trainer(job, Distributed(device=CPU.device, rank=rank))
        trainer.learner = Learner(job.model, job.config, trainer.distributed, None, None)
        trainer.step = step
        trainer._one_micro_step(batch, 0)
        losses.append(trainer.meter.loss())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_log_lines_over_a_stop_hold_the_same_mean(tmp_path: Path) -> None:
    config = toy_config(log_every_steps=5)
    train(pretrain_job(tmp_path / "whole", config), CPU)
    train(pretrain_job(tmp_path / "parts", config, MovingStripes(signal_at=12)), CPU)
    train(pretrain_job(tmp_path / "parts", config), CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(pretrain_job(tmp_path / "each"), CPU)
    each = losses_of(tmp_path / "each")
    assert losses_of(tmp_path / "whole") == pytest.approx([sum(each[:5]) / 5, sum(each[5:]) / 5], abs=1e-6)


def test_a_crash_inside_an_epoch_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With last.pt saved at every log line, a run that dies between two epochs' ends goes on bit for bit."""
    train(pretrain_job(tmp_path / "whole"), CPU)
    append, num_rows = RunFolder.append_metrics, 0

    def dies(run: RunFolder, row: Any) -> None:
        nonlocal num_rows
        num_rows += 1
        if num_rows == 4:
            raise MemoryError("as if killed")
        append(run, row)

    monkeypatch.setattr(RunFolder, "append_metrics", dies)
    with pytest.raises(MemoryError):
        train(pretrain_job(tmp_path / "broken", save_last_every_s=0.0), CPU)
    assert (load_last(RunFolder(tmp_path / "broken")) or {})["position"]["samples_seen"] == 4 * 3
    train(pretrain_job(tmp_path / "broken"), CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_killed_run_goes_on_with_nothing_twice(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path / "whole"), CPU)
    assert run_toy(tmp_path / "parts", kill_at=22) == [-signal.SIGKILL]
    last = load_last(RunFolder(tmp_path / "parts"))
    assert last is not None
    assert last["position"]["samples_seen"] == 4 * 4
    assert len(losses_of(tmp_path / "parts")) == 5, "the fifth step was logged and is lost"
    assert train(pretrain_job(tmp_path / "parts"), CPU).is_complete
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path), CPU)
    written = RunFolder(tmp_path).last.stat().st_mtime_ns
    dataset = MovingStripes()
    assert train(pretrain_job(tmp_path, dataset=dataset), CPU).is_complete
    assert dataset.num_reads == 0
    assert RunFolder(tmp_path).last.stat().st_mtime_ns == written
    assert len(losses_of(tmp_path)) == 10


def test_other_settings_or_data_do_not_go_on(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path), CPU)
    with pytest.raises(UserError, match=r"mask-ratio was 0\.75 and is now 0\.9"):
        train(pretrain_job(tmp_path, toy_config(mask_ratio=0.9)), CPU)
    with pytest.raises(UserError, match="store was '' and is now 'other'"):
        train(pretrain_job(tmp_path, store="other"), CPU)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_change_nothing(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path / "none", toy_config(epochs=3)), CPU)
    train(pretrain_job(tmp_path / "two", toy_config(epochs=3, num_workers=2)), CPU)
    assert losses_of(tmp_path / "none") == losses_of(tmp_path / "two")


def test_accumulation_changes_only_the_rounding(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path / "whole"), CPU)
    train(pretrain_job(tmp_path / "parts", toy_config(grad_accum_steps=2)), CPU)
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-4)
    # AdamW does not see a factor on all gradients; the norm does.
    norms = [RunFolder(tmp_path / name).read_metrics()[0]["grad_norm"] for name in ("whole", "parts")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    class Exploding(PretrainObjective):
        def __call__(self, model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
            loss = super().__call__(model, batch, seed)
            return loss * float("nan") if int(batch["index_B"].min()) < 0 else loss

    class Poisoned(MovingStripes):
        def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any]]:
            return [clip | {"index": -1 if key[0] == 3 else 0} for clip in super().__getitem__(key)]

    job = pretrain_job(tmp_path, toy_config(log_every_steps=100), Poisoned())
    job = Job(**(vars(job) | {"objective": Exploding()}))
    with pytest.raises(UserError, match="the loss is nan at step 8"):
        train(job, CPU)
    last = load_last(RunFolder(tmp_path))
    assert last is not None
    assert last["position"]["samples_seen"] == 4 * 6
    assert all(bool(torch.isfinite(tensor).all()) for tensor in last["model"].values())


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path / "free"), CPU)
    train(pretrain_job(tmp_path / "clipped", toy_config(clip_grad=1e-6, weight_decay=0.0)), CPU)
    norms = [[row["grad_norm"] for row in RunFolder(tmp_path / name).read_metrics()] for name in ("free", "clipped")]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-4), "the norm is that before clipping"
    assert losses_of(tmp_path / "free")[1:] != losses_of(tmp_path / "clipped")[1:]


def test_on_epoch_end_joins_the_metrics(tmp_path: Path) -> None:
    def score(epoch: int, model: torch.nn.Module) -> dict[str, float]:
        model.eval()
        return {"top1": epoch / 10}

    train(pretrain_job(tmp_path, on_epoch_end=score), CPU)
    rows = [row for row in RunFolder(tmp_path).read_metrics() if "top1" in row]
    assert [(row["step"], row["epoch"], row["top1"]) for row in rows] == [
        (2 * epoch, epoch, epoch / 10) for epoch in range(1, 6)
    ]


def test_learning_rate_by_hand() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, peak=1.0, floor=0.2, num_warmup=4, num_steps=8)

    assert [rate(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    # floor + 0.8 · (1 + cos(π·k/4)) / 2 for k = 1 … 4
    assert [rate(step) for step in range(4, 8)] == pytest.approx([0.882843, 0.6, 0.317157, 0.2], abs=1e-6)
    assert learning_rate(0, peak=1.0, floor=0.0, num_warmup=0, num_steps=2) == pytest.approx(0.5)
    assert learning_rate(5, peak=1.0, floor=0.0, num_warmup=6, num_steps=6) == 1.0


def test_effective_learning_rate_is_base_times_batch_over_256() -> None:
    config = PretrainConfig(batch_size=512, epochs=10, warmup_epochs=1, repeats=2)
    plan = Plan.of(config, num_videos=1024)
    assert plan.num_steps == 20
    assert planned_rate(1, config, plan) == pytest.approx(3e-4)
    assert planned_rate(19, config, plan) == pytest.approx(2e-5)


def test_processes_share_one_order() -> None:
    plan = Plan.of(toy_config(batch_size=4, grad_accum_steps=2, epochs=3), num_videos=9)
    whole = [key for keys in StepKeys(Plan.of(toy_config(epochs=3), 9), 0, CPU) for key in keys]
    places = [Distributed(device=CPU.device, rank=rank, world_size=2) for rank in (0, 1)]
    shares = [list(StepKeys(plan, 0, rank)) for rank in places]
    joined = [key for parts in zip(*shares, strict=True) for keys in parts for key in keys]
    assert joined == whole
    assert len(set(whole)) == len(whole) == 24, "8 of 9 videos an epoch, each once"
    assert [epoch for epoch, _ in whole] == [0] * 8 + [1] * 8 + [2] * 8
    assert [index for _, index in whole[:8]] != [index for _, index in whole[8:16]]


@pytest.mark.parametrize("first_step", [0, 1, 2, 5])
def test_keys_from_any_step_are_the_rest(first_step: int) -> None:
    plan = Plan.of(toy_config(epochs=3), num_videos=9)
    whole = list(StepKeys(plan, 0, CPU))
    rest = StepKeys(plan, first_step, CPU)
    assert list(rest) == whole[first_step:]
    assert len(rest) == len(whole) - first_step


def test_plans_that_cannot_be() -> None:
    with pytest.raises(UserError, match="9 videos to train on, but batch-size is 10"):
        Plan.of(toy_config(batch_size=10), num_videos=9)
    three = Distributed(device=CPU.device, world_size=3)
    with pytest.raises(UserError, match="multiple of 3"):
        StepKeys(Plan.of(toy_config(), 9), 0, three)


def test_clips_that_hide_different_numbers_are_refused() -> None:
    clips = MovingStripes(num_clips=2)[(0, 0)]
    clips[1]["mask_N"] = torch.ones(8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[6, 8\]"):
        collate_counted([clips])
    for num_masked in (0, 8):
        for clip in clips:
            clip["mask_N"] = torch.arange(8) < num_masked
        with pytest.raises(ValueError, match=f"hide {num_masked} of 8 tokens"):
            collate_counted([clips])


def test_precision_and_device_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("auto", torch.device("cpu")) is None
    assert autocast_dtype("bf16", torch.device("cpu")) is torch.bfloat16
    assert autocast_dtype("fp32", torch.device("cuda")) is None


@pytest.mark.parametrize("is_emulated", [True, False])
def test_a_gpu_that_emulates_bfloat16_computes_in_float16(monkeypatch: pytest.MonkeyPatch, is_emulated: bool) -> None:
    """With torch told that there is a GPU, of Turing (7.5) or Ampere (8.0), on which a bfloat16 tensor can be made."""
    properties = SimpleNamespace(major=7 if is_emulated else 8, minor=5 if is_emulated else 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda")
    assert torch.cuda.is_bf16_supported(), "as torch counts by default"
    assert autocast_dtype("auto", gpu) is (torch.float16 if is_emulated else torch.bfloat16)
    assert autocast_dtype("bf16", gpu) is torch.bfloat16
    assert ("computing in float16" in precision_remark("auto", gpu)) == is_emulated
    assert is_compiled("auto", "auto")
    assert not is_compiled("auto", "cpu")
    if is_emulated:
        properties.major, properties.minor = 6, 1
        assert autocast_dtype("auto", gpu) is None, "Pascal has no tensor cores"
        assert precision_remark("auto", gpu) == "Tesla T4 has no bfloat16 arithmetic: computing in float32"
        assert not is_compiled("auto", "auto")
    assert ("--precision fp16" in precision_remark("bf16", gpu)) == is_emulated
    assert precision_remark("fp32", gpu) == precision_remark("bf16", torch.device("cpu")) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not is_compiled("auto", "auto")
    assert is_compiled(True, "cpu")
    with init_distributed("auto") as distributed:
        assert (distributed.device.type, distributed.is_main, distributed.world_size) == ("cpu", True, 1)
    with pytest.raises(UserError, match="no GPU"), init_distributed("cuda"):
        pass


def test_bfloat16_on_the_cpu_when_asked(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path / "bf16", toy_config(precision="bf16")), CPU)
    train(pretrain_job(tmp_path / "fp32"), CPU)
    assert losses_of(tmp_path / "bf16") != losses_of(tmp_path / "fp32")
    assert losses_of(tmp_path / "bf16") == pytest.approx(losses_of(tmp_path / "fp32"), abs=0.05)


def test_second_ctrl_c_ends_at_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert is_stop_agreed(stop, CPU, is_meeting=False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_readers_start_comes_after_that_and_only_here() -> None:
    handler, blocked = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, set())
    children = []
    with pytest.raises(KeyboardInterrupt), signals_put_off():  # noqa: PT012
        children.append(subprocess.Popen(["sleep", "60"]))
        signal.raise_signal(signal.SIGINT)
        children[0].send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        children[0].wait(0.3)
    children[0].kill()
    children[0].wait()
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == blocked


@needs_cuda
@pytest.mark.parametrize("options", [{"compile": False}, {}, {"compile_mode": "reduce-overhead"}], ids=str)
def test_gpu_follows_the_golden_curve(tmp_path: Path, options: dict[str, Any]) -> None:
    with init_distributed("cuda") as distributed:
        config = toy_config(device="cuda", precision="auto", **{"compile": True} | options)
        job = pretrain_job(tmp_path, config)
        train(Job(**(vars(job) | {"objective": PretrainObjective.of(config)})), distributed)
    assert losses_of(tmp_path) == pytest.approx(golden_losses("pretrain"), abs=0.05)
    assert RunFolder(tmp_path).read_metrics()[-1]["gpu_memory_gib"] > 0


@needs_cuda
@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_no_step_waits_for_the_gpu(tmp_path: Path, task: str) -> None:
    """torch itself says where a GPU is waited for: an error from the third step to the seventh of eight."""
    settings: dict[str, Any] = {
        "device": "cuda",
        "batch_size": 1,
        "epochs": 1,
        "warmup_epochs": 0,
        "log_every_steps": 100,
    }
    settings |= {"clip_grad": 0.1, "ema_decay": 0.9, "precision": "auto"}
    job = pretrain_job(tmp_path, toy_config(**settings)) if task == "pretrain" else finetune_job(tmp_path, **settings)
    num_calls = 0

    def objective(model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        torch.cuda.set_sync_debug_mode("error" if 3 <= num_calls < 8 else "default")
        return job.objective(model, batch, seed)

    try:
        with init_distributed("cuda") as distributed:
            train(Job(**(vars(job) | {"objective": objective})), distributed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert num_calls == 8

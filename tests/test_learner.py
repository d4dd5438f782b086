"""Copies, shares and averages of a model: two processes against one, and each kind of run going on as another."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from toy import (
    CPU,
    GOLDEN_TOLERANCE,
    MovingStripes,
    assert_same_run,
    golden_losses,
    losses_of,
    pretrain_job,
    run_processes,
    run_toy,
    toy_config,
)

from mgm_shared.errors import UserError
from mgm_train.checkpoint.run_folder import RunFolder, load_last
from mgm_train.checkpoint.weights import load_weights
from mgm_train.data.loader import collate_counted
from mgm_train.runtime.distributed import init_distributed
from mgm_train.training.loop import train
from mgm_train.training.train_state import Learner

pytestmark = pytest.mark.usefixtures("one_thread")


KINDS = pytest.mark.parametrize("is_sharded", [False, True], ids=["copies", "shares"])


@KINDS
def test_two_processes_equal_one_bit_for_bit(tmp_path: Path, is_sharded: bool) -> None:
    """One process that adds up two halves does the same arithmetic as two processes: halves are exact."""
    train(pretrain_job(tmp_path / "one", toy_config(grad_accum_steps=2, ema_decay=0.9)), CPU)
    assert run_toy(tmp_path / "two", 2, fsdp=is_sharded, ema_decay=0.9) == [0, 0]
    assert (tmp_path / "two.log").read_text().count("step 10/10") == 1, "one process prints"
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert losses_of(tmp_path / "two") == pytest.approx(golden_losses("pretrain"), abs=GOLDEN_TOLERANCE)
    one, two = (load_weights(tmp_path / name).state for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=0, rtol=0)


@KINDS
def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path: Path, is_sharded: bool) -> None:
    run, settings = tmp_path / "parts", {"fsdp": is_sharded, "ema_decay": 0.9}
    train(pretrain_job(tmp_path / "whole", toy_config(grad_accum_steps=2, ema_decay=0.9)), CPU)
    assert 0 not in run_toy(run, 2, kill_at=9, **settings)
    seen = (load_last(RunFolder(run)) or {})["position"]["samples_seen"]
    assert seen == 16, "two epochs of eight videos; each process had read eight of its own"
    assert run_toy(run, 1, kill_at=9, **settings | {"grad_accum_steps": 2}) == [-signal.SIGKILL]
    assert run_toy(run, 2, **settings) == [0, 0]
    assert_same_run(tmp_path / "whole", run)


@KINDS
def test_other_orders_of_summing_differ_by_rounding_only(tmp_path: Path, is_sharded: bool) -> None:
    """Two processes of two parts each; the norm of shares is a sum over processes."""
    train(pretrain_job(tmp_path / "one", toy_config(clip_grad=0.05)), CPU)
    assert run_toy(
        tmp_path / "two", 2, grad_accum_steps=2, clip_grad=0.05, fsdp=is_sharded, grad_checkpointing=True
    ) == [0, 0]
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-4)
    norms = [[row["grad_norm"] for row in RunFolder(tmp_path / name).read_metrics()] for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)


@pytest.mark.parametrize("ema_decay", [0.75, 0.9999])
def test_the_average_by_hand(tmp_path: Path, ema_decay: float) -> None:
    """The initial weights have no part in it: without warm-up, 99.9 % of them would be left of 0.9999."""
    weights = []
    job = pretrain_job(tmp_path, toy_config(ema_decay=ema_decay, log_every_steps=100))
    name = "decoder.head.weight"

    def note(epoch: int, scored: torch.nn.Module) -> dict[str, float]:
        weights.append(scored.state_dict()[name].clone())
        return {}

    stepped = []
    objective = job.objective

    def watch(model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
        stepped.append(model.state_dict()[name].clone())
        return objective(model, batch, seed)

    train(type(job)(**(vars(job) | {"objective": watch, "on_epoch_end": note})), CPU)
    stepped.append(job.model.state_dict()[name])
    average = torch.full_like(stepped[0], 1e6)
    for step, weight in enumerate(stepped[1:], 1):
        # 0, 0.37, 0.52, 0.60, 0.66, 0.70, 0.73, 0.75, 0.77, 0.78
        decay = min(ema_decay, 1 - step ** (-2 / 3))
        average = decay * average + (1 - decay) * weight
        if step % 2 == 0:
            torch.testing.assert_close(weights[step // 2 - 1], average)
    saved = load_weights(tmp_path)
    torch.testing.assert_close(saved.state[name], average)
    assert saved.metadata["mgm_ema_decay"] == str(ema_decay)
    assert not torch.allclose(average, stepped[-1], atol=1e-4)


def _note_buffers(out: Path) -> None:
    with init_distributed("cpu") as distributed:
        job = pretrain_job(out)
        learner = Learner(job.model, job.config, distributed, None, None)
        batch = collate_counted([MovingStripes()[(0, index)] for index in range(2)])

        def run_twice() -> None:
            for _ in range(2):
                learner.forward_backward(lambda model: job.objective(model, batch, 0), 0)

        # In the first iterations DDP also agrees on the order of its buckets.
        run_twice()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run_twice()
        names = [event.name for event in profiled.events()]
    counts = {kind: sum(f"c10d::{kind}" in name for name in names) for kind in ("allreduce_", "broadcast_")}
    out.with_suffix(f".{distributed.rank}").write_text(f"{counts['allreduce_']} {counts['broadcast_']}")


def test_processes_exchange_gradients_and_no_constant_tables(tmp_path: Path) -> None:
    assert run_processes(2, _note_buffers, tmp_path / "counts") == [0, 0]
    for rank in range(2):
        num_reduced, num_broadcast = map(int, (tmp_path / f"counts.{rank}").read_text().split())
        assert num_reduced >= 2
        assert num_broadcast == 0


def test_float16_with_a_scaled_loss_learns_the_same_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = {"precision": "fp16", "ema_decay": 0.9}
    train(pretrain_job(tmp_path / "whole", toy_config(**settings)), CPU)
    assert losses_of(tmp_path / "whole") == pytest.approx(golden_losses("pretrain"), abs=0.02)
    assert losses_of(tmp_path / "whole") != pytest.approx(golden_losses("pretrain"), abs=1e-6)
    scaler = (load_last(RunFolder(tmp_path / "whole")) or {})["scaler"]
    assert scaler["scale"] >= 1
    assert scaler["_growth_tracker"] == 10, "no step was left out"
    assert run_toy(tmp_path / "parts", 1, kill_at=9, **settings) == [-signal.SIGKILL]
    assert run_toy(tmp_path / "parts", 1, **settings) == [0]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_is_halved(tmp_path: Path) -> None:
    job = pretrain_job(tmp_path, toy_config(precision="fp16"))
    learner = Learner(job.model, job.config, CPU, None, None)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    scale = learner.scaler.get_scale()
    learner.forward_backward(lambda model: next(model.parameters()).sum() * torch.inf, 0)
    learner.step(1e-3, 1, is_norm_wanted=False)
    torch.testing.assert_close(dict(job.model.state_dict()), before, atol=0, rtol=0)
    assert learner.scaler.get_scale() == scale / 2
    assert learner.is_finite()


def _note_dtypes(out: Path) -> None:
    with init_distributed("cpu") as distributed:
        job = pretrain_job(out, toy_config(fsdp=True, precision="bf16", ema_decay=0.9))
        learner = Learner(job.model, job.config, distributed, None, None)
        batch = collate_counted([MovingStripes()[(0, index)] for index in range(2)])
        inner: Any = job.model.encoder.blocks[0].norm1
        seen: list[str] = []
        inner.register_forward_hook(lambda norm, *_: seen.append(str(norm.weight.dtype)))
        learner.forward_backward(lambda model: job.objective(model, batch, 0), 0)
        learner.step(1e-3, 1, is_norm_wanted=True)
        stored = {str(parameter.dtype) for parameter in (*job.model.parameters(), *learner.scored_model.parameters())}
    out.with_suffix(f".{distributed.rank}").write_text(" ".join([*seen, *stored]))


def test_shares_are_gathered_in_bfloat16_and_kept_in_float32(tmp_path: Path) -> None:
    assert run_processes(2, _note_dtypes, tmp_path / "dtypes") == [0, 0]
    for rank in range(2):
        assert (tmp_path / f"dtypes.{rank}").read_text() == "torch.bfloat16 torch.float32"


def test_shares_in_bfloat16_learn_what_copies_learn(tmp_path: Path) -> None:
    for is_sharded in (False, True):
        assert run_toy(tmp_path / str(is_sharded), 2, fsdp=is_sharded, precision="bf16") == [0, 0]
    copies, shares = losses_of(tmp_path / "False"), losses_of(tmp_path / "True")
    assert shares == pytest.approx(copies, abs=0.02)


def test_cuda_graphs_are_told_of_each_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`reduce-overhead` reuses the memory of the last pass; PyTorch must hear that a new one begins."""
    modes: list[str] = []
    passes: list[int] = []

    def fake(model: Any, *, mode: str = "", **options: Any) -> Any:
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: passes.append(1))
    for compile_mode in ("default", "reduce-overhead"):
        config = toy_config(grad_accum_steps=2, compile=True, compile_mode=compile_mode)
        train(pretrain_job(tmp_path / compile_mode, config), CPU)
    assert [mode for mode in modes if mode] == ["default", "reduce-overhead"]
    assert len(passes) == 10 * 2
    assert_same_run(tmp_path / "default", tmp_path / "reduce-overhead")
    with pytest.raises(UserError, match="compile-mode is 'reduce-overhead' but must be default with fsdp"):
        toy_config(fsdp=True, compile_mode="reduce-overhead")

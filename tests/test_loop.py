"""The loop on clips in memory: a golden curve, stopping and going on, several processes, the learning rate by hand.

Run as a program (`python test_loop.py RUN [SETTING=VALUE …]`) it trains the same toy, for the tests that kill a process
or start two. `MGM_WRITE_GOLDEN=1 pytest tests/test_loop.py` writes the golden curve anew.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mgm_shared.errors import UserError
from mgm_train import loop
from mgm_train.batches import Plan, StepKeys, collate_counted
from mgm_train.checkpoint import RunFolder, load_last, load_trunk, load_weights
from mgm_train.config import FinetuneConfig, ModelConfig, PretrainConfig
from mgm_train.interrupt import StopRequest
from mgm_train.loop import Job, Outcome, train
from mgm_train.model import VideoClassifier, VideoMAE, build
from mgm_train.objective import FinetuneObjective, PretrainObjective
from mgm_train.ranks import Ranks, autocast_dtype, join_ranks
from mgm_train.schedule import learning_rate, planned_rate

GOLDEN = Path(__file__).parent / "golden" / "pretrain_losses.txt"
# Losses are about 1; processors and BLAS versions differ by far less than this, a changed objective by far more.
GOLDEN_TOLERANCE = 2e-4

TOY = ModelConfig(
    name="toy",
    width=32,
    depth=2,
    num_heads=2,
    decoder_width=16,
    decoder_depth=1,
    decoder_num_heads=2,
    num_frames=4,
    image_px=32,
)
CPU = Ranks(device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums on one thread always have the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class MovingStripes:
    """Eight videos of stripes that move at their own speed; a clip and its mask depend on (epoch, index) alone.

    At the read number `signal_at` it sends the process `signal_number`.
    """

    num_clips: int = 1
    signal_at: int = -1
    signal_number: int = signal.SIGTERM
    is_poisoned: bool = False
    num_reads: int = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any]]:
        epoch, index = key
        self.num_reads += 1
        if self.num_reads == self.signal_at:
            os.kill(os.getpid(), self.signal_number)
        return [self._clip(epoch, index, repeat) for repeat in range(self.num_clips)]

    def _clip(self, epoch: int, index: int, repeat: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(epoch * 1000 + index * 10 + repeat)
        place_HW = torch.arange(32)[:, None] + torch.arange(32)
        frames_THW = torch.stack([torch.sin((place_HW + t * (index - 4)) / 3) for t in range(4)])
        frames_CTHW = (frames_THW * 100 + 128).to(torch.uint8).expand(3, -1, -1, -1)
        mask_N = torch.zeros(8, dtype=torch.bool)
        mask_N[torch.randperm(8, generator=generator)[:6]] = True
        return {"frames_CTHW": frames_CTHW, "mask_N": mask_N, "label": index % 2, "index": index}


def _config(**changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "batch_size": 4,
        "epochs": 5,
        "warmup_epochs": 1,
        "base_lr": 0.5,
        "num_workers": 0,
        "precision": "fp32",
        "device": "cpu",
        "log_every_steps": 1,
        "save_every_epochs": 2,
    }
    return PretrainConfig(**(settings | changes))


def _job(run: Path, config: PretrainConfig | None = None, dataset: MovingStripes | None = None, **more: Any) -> Job:
    config = config or _config()
    return Job(
        task="pretrain",
        config=config,
        model=build(lambda: VideoMAE(TOY), config.seed),
        objective=PretrainObjective(),
        dataset=dataset or MovingStripes(config.repeats),
        run=RunFolder(run),
        **more,
    )


def _finetune_job(run: Path, dataset: MovingStripes | None = None, **changes: Any) -> Job:
    settings: dict[str, Any] = {"batch_size": 4, "epochs": 3, "warmup_epochs": 1, "repeats": 2, "drop_path": 0.3}
    settings |= {"num_workers": 0, "device": "cpu", "log_every_steps": 1, "fc_dropout": 0.5, "base_lr": 0.1}
    config = FinetuneConfig(**(settings | changes))
    return Job(
        task="finetune",
        config=config,
        model=build(lambda: VideoClassifier(TOY, 2, drop_path=0.3, fc_dropout=0.5), config.seed),
        objective=FinetuneObjective.of(config, num_classes=2),
        dataset=dataset or MovingStripes(config.repeats),
        run=RunFolder(run),
        layer_decay=config.layer_decay,
    )


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics() if "loss" in row]


def _assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit: losses, weights, optimiser."""
    assert _losses(first) == _losses(second)
    for name in ("model", "optimizer", "step", "loss_sum"):
        one, two = ((load_last(RunFolder(run)) or {})[name] for run in (first, second))
        torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_ten_steps_follow_the_golden_curve(tmp_path: Path) -> None:
    outcome = train(_job(tmp_path), CPU)
    losses = _losses(tmp_path)
    if os.environ.get("MGM_WRITE_GOLDEN"):
        GOLDEN.write_text("".join(f"{step} {loss:.6f}\n" for step, loss in enumerate(losses, 1)))
    golden = [float(line.split()[1]) for line in GOLDEN.read_text().splitlines()]
    assert losses == pytest.approx(golden, abs=GOLDEN_TOLERANCE)
    assert outcome == Outcome(is_complete=True, num_steps=10, num_epochs=5, first_loss=losses[0], last_loss=losses[-1])
    assert losses[-1] < 0.9 * losses[0], "it learns"


def test_files_of_a_run(tmp_path: Path) -> None:
    train(_job(tmp_path, metadata={"labels": "[]"}), CPU)
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
    load_trunk(VideoClassifier(TOY, 2), TOY, tmp_path)


@pytest.mark.parametrize("stop_in_step", [3, 4])
def test_stopping_and_going_on_equals_one_run_bit_for_bit(tmp_path: Path, stop_in_step: int, capsys: Any) -> None:
    """The third step is the first of an epoch, the fourth its last."""
    train(_job(tmp_path / "whole"), CPU)
    stopped = train(_job(tmp_path / "parts", dataset=MovingStripes(signal_at=4 * stop_in_step)), CPU)
    assert not stopped.is_complete
    assert stopped.num_steps == stop_in_step
    assert "the same command goes on from there" in capsys.readouterr().err
    dataset = MovingStripes()
    assert train(_job(tmp_path / "parts", dataset=dataset), CPU).is_complete
    assert dataset.num_reads == 4 * (10 - stop_in_step), "nothing that came before is read again"
    _assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_finetuning_with_dropout_and_mixing_goes_on_bit_for_bit(tmp_path: Path) -> None:
    train(_finetune_job(tmp_path / "whole"), CPU)
    dataset = MovingStripes(num_clips=2, signal_at=9)
    assert train(_finetune_job(tmp_path / "parts", dataset), CPU).num_steps == 3
    torch.rand(7)  # the global random state of the second process differs
    assert train(_finetune_job(tmp_path / "parts"), CPU).is_complete
    _assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_log_lines_over_a_stop_hold_the_same_mean(tmp_path: Path) -> None:
    config = _config(log_every_steps=5)
    train(_job(tmp_path / "whole", config), CPU)
    train(_job(tmp_path / "parts", config, MovingStripes(signal_at=12)), CPU)
    train(_job(tmp_path / "parts", config), CPU)
    _assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(_job(tmp_path / "each"), CPU)
    each = _losses(tmp_path / "each")
    assert _losses(tmp_path / "whole") == pytest.approx([sum(each[:5]) / 5, sum(each[5:]) / 5], abs=1e-6)


def test_a_crash_inside_an_epoch_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With last.pt saved at every log line, a run that dies between two epochs' ends goes on bit for bit."""
    train(_job(tmp_path / "whole"), CPU)
    monkeypatch.setattr(loop, "SAVE_LAST_EVERY_S", 0.0)
    append, num_rows = RunFolder.append_metrics, 0

    def dies(run: RunFolder, row: Any) -> None:
        nonlocal num_rows
        num_rows += 1
        if num_rows == 4:
            raise MemoryError("as if killed")
        append(run, row)

    monkeypatch.setattr(RunFolder, "append_metrics", dies)
    with pytest.raises(MemoryError):
        train(_job(tmp_path / "broken"), CPU)
    assert (load_last(RunFolder(tmp_path / "broken")) or {})["step"] == 3
    train(_job(tmp_path / "broken"), CPU)
    _assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_killed_run_goes_on_with_nothing_twice(tmp_path: Path) -> None:
    train(_job(tmp_path / "whole"), CPU)
    killed = _run_program([sys.executable, __file__, str(tmp_path / "parts"), "kill_at=22"])
    assert killed.returncode == -signal.SIGKILL
    last = load_last(RunFolder(tmp_path / "parts"))
    assert last is not None
    assert last["step"] == 4
    assert len(_losses(tmp_path / "parts")) == 5, "the fifth step was logged and is lost"
    assert train(_job(tmp_path / "parts"), CPU).is_complete
    _assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    train(_job(tmp_path), CPU)
    written = RunFolder(tmp_path).last.stat().st_mtime_ns
    dataset = MovingStripes()
    assert train(_job(tmp_path, dataset=dataset), CPU).is_complete
    assert dataset.num_reads == 0
    assert RunFolder(tmp_path).last.stat().st_mtime_ns == written
    assert len(_losses(tmp_path)) == 10


def test_other_settings_or_data_do_not_go_on(tmp_path: Path) -> None:
    train(_job(tmp_path), CPU)
    with pytest.raises(UserError, match=r"mask-ratio was 0\.75 and is now 0\.9"):
        train(_job(tmp_path, _config(mask_ratio=0.9)), CPU)
    with pytest.raises(UserError, match="store was '' and is now 'other'"):
        train(_job(tmp_path, store="other"), CPU)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_change_nothing(tmp_path: Path) -> None:
    train(_job(tmp_path / "none", _config(epochs=3)), CPU)
    train(_job(tmp_path / "two", _config(epochs=3, num_workers=2)), CPU)
    assert _losses(tmp_path / "none") == _losses(tmp_path / "two")


def test_accumulation_changes_only_the_rounding(tmp_path: Path) -> None:
    train(_job(tmp_path / "whole"), CPU)
    train(_job(tmp_path / "parts", _config(accumulate=2)), CPU)
    assert _losses(tmp_path / "parts") == pytest.approx(_losses(tmp_path / "whole"), abs=1e-4)
    # AdamW does not see a factor on all gradients; the norm does.
    norms = [RunFolder(tmp_path / name).read_metrics()[0]["grad_norm"] for name in ("whole", "parts")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    train(_job(tmp_path / "one"), CPU)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = _run_program([*torchrun, __file__, str(tmp_path / "two"), "accumulate=2"])
    assert finished.returncode == 0, finished.stderr
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), abs=1e-4)
    one, two = (load_weights(tmp_path / name).state for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-3, rtol=0)
    assert finished.stderr.count("step 10/10") == 1, "one process prints"


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    class Exploding(PretrainObjective):
        def __call__(self, model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
            loss = super().__call__(model, batch, seed)
            return loss * float("nan") if int(batch["index_B"].min()) < 0 else loss

    class Poisoned(MovingStripes):
        def __getitem__(self, key: tuple[int, int]) -> list[dict[str, Any]]:
            return [clip | {"index": -1 if key[0] == 3 else 0} for clip in super().__getitem__(key)]

    job = _job(tmp_path, _config(log_every_steps=100), Poisoned())
    job = Job(**(vars(job) | {"objective": Exploding()}))
    with pytest.raises(UserError, match="the loss is nan at step 8"):
        train(job, CPU)
    last = load_last(RunFolder(tmp_path))
    assert last is not None
    assert last["step"] == 6
    assert all(bool(torch.isfinite(tensor).all()) for tensor in last["model"].values())


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    train(_job(tmp_path / "free"), CPU)
    train(_job(tmp_path / "clipped", _config(clip_grad=1e-6, weight_decay=0.0)), CPU)
    norms = [[row["grad_norm"] for row in RunFolder(tmp_path / name).read_metrics()] for name in ("free", "clipped")]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-4), "the norm is that before clipping"
    assert _losses(tmp_path / "free")[1:] != _losses(tmp_path / "clipped")[1:]


def test_on_epoch_end_joins_the_metrics(tmp_path: Path) -> None:
    def score(epoch: int, model: torch.nn.Module) -> dict[str, float]:
        model.eval()
        return {"top1": epoch / 10}

    train(_job(tmp_path, on_epoch_end=score), CPU)
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
    plan = Plan.of(_config(batch_size=4, accumulate=2, epochs=3), num_videos=9)
    whole = [key for keys in StepKeys(Plan.of(_config(epochs=3), 9), 0, CPU) for key in keys]
    ranks = [Ranks(device=CPU.device, rank=rank, num_ranks=2) for rank in (0, 1)]
    shares = [list(StepKeys(plan, 0, rank)) for rank in ranks]
    joined = [key for parts in zip(*shares, strict=True) for keys in parts for key in keys]
    assert joined == whole
    assert len(set(whole)) == len(whole) == 24, "8 of 9 videos an epoch, each once"
    assert [epoch for epoch, _ in whole] == [0] * 8 + [1] * 8 + [2] * 8
    assert [index for _, index in whole[:8]] != [index for _, index in whole[8:16]]


@pytest.mark.parametrize("first_step", [0, 1, 2, 5])
def test_keys_from_any_step_are_the_rest(first_step: int) -> None:
    plan = Plan.of(_config(epochs=3), num_videos=9)
    whole = list(StepKeys(plan, 0, CPU))
    rest = StepKeys(plan, first_step, CPU)
    assert list(rest) == whole[first_step:]
    assert len(rest) == len(whole) - first_step


def test_plans_that_cannot_be() -> None:
    with pytest.raises(UserError, match="9 videos to train on, but batch-size is 10"):
        Plan.of(_config(batch_size=10), num_videos=9)
    three = Ranks(device=CPU.device, num_ranks=3)
    with pytest.raises(UserError, match="multiple of 3"):
        StepKeys(Plan.of(_config(), 9), 0, three)


def test_clips_that_hide_different_numbers_are_refused() -> None:
    clips = MovingStripes(num_clips=2)[(0, 0)]
    clips[1]["mask_N"] = torch.ones(8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[6, 8\]"):
        collate_counted([clips])


def test_precision_and_device_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("auto", torch.device("cpu")) is None
    assert autocast_dtype("bf16", torch.device("cpu")) is torch.bfloat16
    assert autocast_dtype("fp32", torch.device("cuda")) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with join_ranks("auto") as ranks:
        assert (ranks.device.type, ranks.is_main, ranks.num_ranks) == ("cpu", True, 1)
    with pytest.raises(UserError, match="no GPU"), join_ranks("cuda"):
        pass


def test_bfloat16_on_the_cpu_when_asked(tmp_path: Path) -> None:
    train(_job(tmp_path / "bf16", _config(precision="bf16")), CPU)
    train(_job(tmp_path / "fp32"), CPU)
    assert _losses(tmp_path / "bf16") != _losses(tmp_path / "fp32")
    assert _losses(tmp_path / "bf16") == pytest.approx(_losses(tmp_path / "fp32"), abs=0.05)


def test_second_ctrl_c_ends_at_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert stop.is_agreed(CPU, is_meeting=False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available() and not os.environ.get("FAIL_WITHOUT_CUDA"), reason="there is no GPU")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_gpu_follows_the_golden_curve(tmp_path: Path, is_compiled: bool) -> None:
    with join_ranks("cuda") as ranks:
        config = _config(device="cuda", precision="auto", compile=is_compiled)
        train(_job(tmp_path, config), ranks)
    golden = [float(line.split()[1]) for line in GOLDEN.read_text().splitlines()]
    assert _losses(tmp_path) == pytest.approx(golden, abs=0.05)


def _run_program(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def _main(run: str, *settings: str) -> None:
    values = {name: int(value) for name, value in (setting.split("=") for setting in settings)}
    dataset = MovingStripes(signal_at=values.pop("kill_at", -1), signal_number=signal.SIGKILL)
    torch.set_num_threads(1)
    with join_ranks("cpu") as ranks:
        train(_job(Path(run), _config(**values), dataset), ranks)


if __name__ == "__main__":
    _main(*sys.argv[1:])

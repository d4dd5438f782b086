"""A model and eight videos so small that a run takes a second; a clip and its mask depend on (epoch, index) alone."""

import hashlib
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from mgm_shared.store import open_store
from mgm_train.checkpoint.run_folder import RunFolder, load_last
from mgm_train.config import FinetuneConfig, PretrainConfig
from mgm_train.data import loader as batches
from mgm_train.model_config import ModelConfig
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build
from mgm_train.runtime.distributed import Distributed, init_distributed
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.training.loop import Job, train
from mgm_train.training.losses import FinetuneObjective, PretrainObjective
from mgm_train.training.targets.choose import pretrain_shape

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
CPU = Distributed(device=torch.device("cpu"))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# A job that speaks on stderr, and saves after every epoch, however short an epoch is.
SAVING_OFTEN: dict[str, Any] = {"say": say, "max_saving_share": math.inf}


WIDE_TOY = ModelConfig(
    name="wide_toy",
    width=32,
    depth=1,
    num_heads=2,
    decoder_width=16,
    decoder_depth=1,
    decoder_num_heads=2,
    num_frames=4,
    image_px=64,
)


# Losses are about 1; processors and BLAS versions differ by far less than this, a changed objective by far more.
GOLDEN_TOLERANCE = 2e-4


def needs_cuda(test: Any) -> Any:
    is_skipped = not torch.cuda.is_available() and not os.environ.get("FAIL_WITHOUT_CUDA")
    return pytest.mark.needs_cuda(pytest.mark.skipif(is_skipped, reason="there is no GPU")(test))


def golden_file(task: str) -> Path:
    return Path(__file__).parent / "golden" / f"{task}_losses.txt"


def golden_losses(task: str) -> list[float]:
    """The losses of the toy's first ten steps, as written down once."""
    return [float(line.split()[1]) for line in golden_file(task).read_text().splitlines()]


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
        rng = np.random.default_rng((epoch, index, repeat))
        place_HW = torch.arange(32)[:, None] + torch.arange(32)
        frames_THW = torch.stack([torch.sin((place_HW + t * (index - 4)) / 3) for t in range(4)])
        frames_CTHW = (frames_THW * 100 + 128).to(torch.uint8).expand(3, -1, -1, -1)
        mask_N = torch.zeros(8, dtype=torch.bool)
        mask_N[rng.permutation(8)[:6]] = True
        return {"frames_CTHW": frames_CTHW, "mask_N": mask_N, "label": index % 2, "index": index}


def toy_config(**changes: Any) -> PretrainConfig:
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


def toy_shape(config: PretrainConfig) -> ModelConfig:
    """The toy with the outputs that the targets of a configuration need."""
    shape = pretrain_shape(config)
    names = ("outputs", "motion_outputs", "motion_decoder_depth")
    return replace(TOY, **{name: getattr(shape, name) for name in names})


def pretrain_job(
    run: Path, config: PretrainConfig | None = None, dataset: MovingStripes | None = None, **more: Any
) -> Job:
    config = config or toy_config()
    return Job(
        task="pretrain",
        config=config,
        model=_steady(build(lambda: VideoMAE(toy_shape(config)), config.seed)),
        objective=PretrainObjective.of(config),
        dataset=dataset or MovingStripes(config.repeats),
        run=RunFolder(run),
        **(SAVING_OFTEN | more),
    )


def finetune_job(run: Path, dataset: MovingStripes | None = None, **changes: Any) -> Job:
    settings: dict[str, Any] = {"batch_size": 4, "epochs": 3, "warmup_epochs": 1, "repeats": 2, "drop_path": 0.3}
    settings |= {"num_workers": 0, "device": "cpu", "log_every_steps": 1, "fc_dropout": 0.5, "base_lr": 0.1}
    config = FinetuneConfig(**(settings | changes))
    return Job(
        task="finetune",
        config=config,
        model=_steady(build(lambda: VideoClassifier(TOY, 2, drop_path=0.3, fc_dropout=0.5), config.seed)),
        objective=FinetuneObjective.of(config, num_classes=2),
        dataset=dataset or MovingStripes(config.repeats),
        run=RunFolder(run),
        layer_decay=config.layer_decay,
        **SAVING_OFTEN,
    )


def _steady(model: Any) -> Any:
    """The model with weights that are the same in all versions of torch: its truncated normal changed."""
    rng = np.random.default_rng(0)
    drawn = model.mask_token if isinstance(model, VideoMAE) else model.head.weight
    drawn.data.copy_(torch.from_numpy(0.02 * rng.standard_normal(drawn.shape)))
    return model


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics() if "loss" in row]


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit: losses, weights, optimiser, and the running average where there is one."""
    assert losses_of(first) == losses_of(second)
    one, two = (load_last(RunFolder(run)) or {} for run in (first, second))
    assert one["position"] == two["position"]
    assert ("ema" in one) == ("ema" in two) == bool(one["config"]["ema_decay"])
    for name in {"model", "optimizer", "loss_sum", "ema"} & one.keys():
        torch.testing.assert_close(one[name], two[name], atol=0, rtol=0)


def run_toy(run: Path, num_processes: int = 1, **settings: Any) -> list[int | None]:
    """Train the toy in processes of its own; their exit codes.

    `kill_at`: the read in which each kills itself. What they print is in RUN.log.
    """
    return run_processes(num_processes, _train_toy, run, settings)


def run_processes(num_processes: int, function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """`function(*arguments)` in processes that believe torchrun had started them; their exit codes."""
    port = _free_port()
    environments = [{"RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port} for rank in range(num_processes)]
    processes = [process_server().Process(target=_as_rank, args=(rank, function, arguments)) for rank in environments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=100)
    return [process.exitcode for process in processes]


def _free_port() -> int:
    """A free port below those that the system gives to connections, so that nothing takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _as_rank(rank: dict[str, int], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {name: str(value) for name, value in rank.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    function(*arguments)


@cache
def process_server() -> ForkServerContext:
    """Starts processes that have loaded torch and this module already: by forking one that did it once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy"])
    # Python 3.11's fork server does not take over the path of its parent, and then silently loads nothing.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def _train_toy(run: Path, settings: dict[str, Any]) -> None:
    sys.stderr = run.with_suffix(".log").open("a")
    dataset = MovingStripes(signal_at=settings.pop("kill_at", -1), signal_number=signal.SIGKILL)
    with init_distributed("cpu") as distributed:
        train(pretrain_job(run, toy_config(**settings), dataset), distributed)


def train_on_store(run: Path, store: Path, num_workers: int) -> None:
    """24 steps of one video each; a checkpoint every third step and after every epoch, which has four.

    RUN.steps has a line for each step taken: its seed, and what it was given to read and the loss it found.
    """
    config = PretrainConfig(
        batch_size=1, epochs=6, warmup_epochs=1, num_frames=4, stride=2, image_px=64, num_workers=num_workers,
        worker_start="fork", device="cpu", log_every_steps=3, save_every_epochs=100, base_lr=0.1, ema_decay=0.9,
    )  # fmt: skip
    torch.set_num_threads(1)
    setattr(batches, "num_usable_cores", lambda: 3)  # noqa: B010
    sys.stderr = run.with_suffix(".log").open("a")
    dataset = pretrain_dataset(open_store(store), config)
    with run.with_suffix(".steps").open("a") as notes, init_distributed("cpu") as distributed:

        def objective(model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
            loss = PretrainObjective()(model, batch, seed)
            given = batch["frames_BCTHW"].numpy().tobytes() + batch["mask_BN"].numpy().tobytes()
            seen = [batch["index_B"].tolist(), hashlib.sha256(given).hexdigest(), loss.item()]
            notes.write(json.dumps([seed, seen]) + "\n")
            notes.flush()
            return loss

        model = build(lambda: VideoMAE(WIDE_TOY), 0)
        job = Job(
            task="pretrain", config=config, model=model, objective=objective, dataset=dataset, run=RunFolder(run),
            save_last_every_s=0.0, **SAVING_OFTEN,
        )  # fmt: skip
        train(job, distributed)

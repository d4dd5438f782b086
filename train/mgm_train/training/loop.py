"""The training loop of both tasks: forward, backward, schedule, step, log, save.

What is random in a step, dropout, drop path, and the share and box of Mixup and CutMix, is a function of (seed, step,
micro_step, process): a run that was stopped goes on as if it had not been, and each process draws its own. With another
number of processes or parts these are drawn anew; clips, crops and masks are not, for they are functions of (seed,
epoch, video, repeat). Nothing in a step waits for the GPU.

A *step* is one update of the weights. It accumulates the gradients of `grad_accum_steps` micro-steps. An *epoch* is one
pass over the videos.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mgm_shared.errors import UserError
from mgm_shared.lock import CheckLock, one_writer
from mgm_shared.progress import SILENT
from mgm_shared.signals import StopRequest
from mgm_train.checkpoint.resume import check_resumable, load_state
from mgm_train.checkpoint.run_folder import RunFolder, save_last
from mgm_train.checkpoint.weights import save_weights
from mgm_train.config import TrainConfig
from mgm_train.data.augmentation.augment import noise_levels
from mgm_train.data.augmentation.device_augment import change_batch
from mgm_train.data.labels import noun_of
from mgm_train.data.loader import KeyedDataset, Plan, ToDevice, make_loader
from mgm_train.data.readers import reading
from mgm_train.data.workers import clip_bytes, count_workers
from mgm_train.models.action_detector import TrainedModel
from mgm_train.models.flops import Peak, peak
from mgm_train.runtime.distributed import Distributed, autocast_dtype
from mgm_train.runtime.signals import is_stop_agreed
from mgm_train.training.auto_config import dropped_line
from mgm_train.training.loggers import Loggers, Picture, check_loggers
from mgm_train.training.losses import Objective
from mgm_train.training.optim import planned_rate
from mgm_train.training.throughput import Meter, step_line, time_left
from mgm_train.training.train_state import Learner
from mgm_train.training.unreadable import UnreadableVideos


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and where it goes.

    `store` names the data (a hash), so that a run does not go on with other data; `store_path` is where it lies, for
    reports. `inputs` has, by the name of the option, the digest of the file that it names. `metadata` goes into the
    weights files. `flops_per_clip` is what `flops.py` counts, for MFU; a list has a number for each epoch.
    `on_epoch_end(epoch, model)` runs on every process after each epoch, counted from 1; what it returns joins
    metrics.jsonl. With `fsdp` all must call the model equally often. `draw(weights file)` makes the pictures that
    loggers get, whenever weights are kept.
    """

    task: str
    config: TrainConfig
    model: TrainedModel
    objective: Objective
    dataset: KeyedDataset
    run: RunFolder
    store: str = ""
    store_path: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    layer_decay: float | None = None
    flops_per_clip: float | Sequence[float] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    on_epoch_end: Callable[[int, nn.Module], Mapping[str, float]] | None = None
    draw: Callable[[Path], Mapping[str, Picture]] | None = None
    say: Callable[[str], None] = SILENT.say
    save_last_every_s: float = 600.0
    """Longest time between two writes of last.pt: an epoch may take hours, and a killed run loses no more than this."""
    max_saving_share: float = 0.05
    """At the end of an epoch, which may take seconds, last.pt is written unless writing takes more of the time."""

    @property
    def noun(self) -> str:
        """What messages call the samples: videos, segments, or what the dataset says, such as key frames."""
        return getattr(self.dataset, "noun", "") or noun_of(getattr(self.dataset, "store", None), 2)


def plan_of(job: Job) -> Plan:
    """The plan of a job. UserError if there are too few videos or images."""
    return Plan.of(job.config, len(job.dataset), job.noun, getattr(job.dataset, "num_images", 0))


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended. The losses are the first and the last in metrics.jsonl; only the main process knows them."""

    run: Path
    is_main: bool
    """Whether this is the result on the main process, the only one without torchrun."""
    is_complete: bool
    num_steps: int
    num_epochs: int
    first_loss: float | None
    last_loss: float | None
    flops: float | None = None
    """Floating-point operations of the whole training, by `models.flops`; recomputed activations count once."""


def train(job: Job, distributed: Distributed) -> TrainResult:
    """Train to the end, from last.pt if the run folder has one. Ctrl-C and SIGTERM save and leave.

    UserError for a run folder begun with other settings, too few videos, too many unreadable ones, or a loss that is no
    number.
    """
    return _Trainer(job, distributed).run()


class _Trainer:
    def __init__(self, job: Job, distributed: Distributed) -> None:
        self.job, self.distributed, self.config = job, distributed, job.config
        self.plan = plan_of(job)
        self.step = 0
        self.meter = Meter(distributed)
        self.to_device = ToDevice(distributed.device)
        self.stop = StopRequest()
        self.saved_s, self.saving_s = time.perf_counter(), 0.0
        self.loggers = Loggers()

    def run(self) -> TrainResult:
        with self._holding_folder() as self.check_lock:
            return self._run()

    @contextmanager
    def _holding_folder(self) -> Iterator[CheckLock]:
        """Hold the run folder for this run, on the main process; UserError on all of them when another run has it."""
        with ExitStack() as stack:
            holding = one_writer(self.job.run.root, self.job.say)
            yield self.distributed.on_main(lambda: stack.enter_context(holding)) or (lambda: None)

    def _run(self) -> TrainResult:
        run, job = self.job.run, self.job
        check_loggers(self.config.loggers)
        state = load_state(run)
        check_resumable(run, state, job.task, self.config, job.store, job.inputs)
        if state is not None:
            self.step = self.plan.step_at(state["position"])
            self.meter.restore(state)
        known = state["unreadable"] if state is not None else {}
        # All of them: the store is gone.
        num_allowed = min(self.config.max_unreadable_videos, self.plan.num_videos - 1)
        self.unreadable = UnreadableVideos(self.distributed, num_allowed, known)
        self._open_folder()
        if self.step < self.plan.num_steps:
            self.learner = Learner(self.job.model, self.config, self.distributed, self.job.layer_decay, state)
            try:
                self._run_steps()
            finally:
                self.loggers.close()
        return self._outcome()

    def _open_folder(self) -> None:
        # No process may read last.pt after another has gone on and replaced it.
        self.distributed.wait()
        self.peak = self._peak()
        if not self.distributed.is_main:
            return
        about = {
            "store": self.job.store,
            "store_path": self.job.store_path,
            "inputs": self.job.inputs,
            "peak_flops": vars(self.peak),
        }
        self.job.run.start(self.job.task, self.config, about)
        self.job.run.cut_metrics(self.step)
        self._say(f"continuing after step {self.step} of {self.plan.num_steps}" if self.step else self._describe())
        if dropped := dropped_line(self.plan):
            self._say(dropped)
        if self.step < self.plan.num_steps:
            options = self.config.to_dict()
            self.loggers = Loggers.open(self.config.loggers, self.job.run, self.job.task, options, self.step)

    def _peak(self) -> Peak:
        return peak(
            self.distributed.device, autocast_dtype(self.config.precision, self.distributed.device) or torch.float32
        )

    def _describe(self) -> str:
        num_weights = sum(parameter.numel() for parameter in self.job.model.parameters())
        samples = f"{self.plan.num_videos} {self.plan.noun}"
        return (
            f"{self.job.model.config.name}: {num_weights / 1e6:.1f} M weights · {samples} · "
            f"{self.plan.num_steps} steps of {self.plan.clips_per_step} clips · {self.distributed.device.type} × "
            f"{self.distributed.world_size} · learning rate {self.config.base_lr * self.config.batch_size / 256:.2e}"
        )

    def _run_steps(self) -> None:
        self.job.model.train()
        num_workers = self._num_workers()
        loader = make_loader(
            self.job.dataset, self.plan, self.step, self.distributed, num_workers, self.config.worker_start
        )
        first_step = self.saved_step = self.step
        with self.stop.listening(), reading(loader) as batches:
            while self.step < self.plan.num_steps:
                start_s = time.perf_counter()
                self._one_step(batches)
                if self.step - first_step in (1, 2):
                    self.distributed.wait_for_device()
                    self._say_early(time.perf_counter() - start_s, is_first=self.step == first_step + 1)
                is_epoch_end = self.step % self.plan.steps_per_epoch == 0
                if self._is_logged(self.step):
                    self._log()
                if is_epoch_end:
                    self._end_epoch(self.step // self.plan.steps_per_epoch)
                is_meeting = is_epoch_end or self._is_logged(self.step)
                must_stop = is_stop_agreed(self.stop, self.distributed, is_meeting) and self.step < self.plan.num_steps
                if must_stop or (is_meeting and self._is_save_due(is_epoch_end)):
                    self._save_last()
                if must_stop:
                    self._say(f"stopped after step {self.step} and saved; run the same command again to continue")
                    return

    def _say_early(self, step_s: float, is_first: bool) -> None:
        """A sign of life after the first step, long before the first line of metrics may come.

        The wait for the first batch, in which the workers start, is not counted. A first step that compiles the model
        says nothing of the others, so the second one is measured.
        """
        compiles = self.learner.is_compiled
        start_up_s = self.meter.exclude_start_up() if is_first else 0.0
        if is_first == compiles:
            if compiles:
                took = f"step {self.step}/{self.plan.num_steps} took {step_s:.1f} s, compiling the model included"
                self._say(f"{took}; --no-compile starts faster")
            return
        own_s = max(step_s - start_up_s, 1e-9)
        left = time_left((self.plan.num_steps - self.step) * own_s)
        speed = f"{self.plan.clips_per_step / own_s:.1f} clips/s | about {left} left"
        started = f" | started in {start_up_s:.1f} s" if is_first else ""
        self._say(f"step {self.step}/{self.plan.num_steps} | {speed}{started}")

    def _num_workers(self) -> int:
        """The number of data loading workers, whose batches fit into shared memory."""
        config, plan = self.config, self.plan
        num_clips = plan.clips_per_step // (plan.grad_accum_steps * self.distributed.world_size)
        batch_bytes = num_clips * max(clip_bytes(*size) for size in config.clip_sizes)
        workers = count_workers(config.num_workers, batch_bytes, self.distributed.device)
        if workers.remark:
            self._say(workers.remark)
        return workers.number

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every_steps == 0 or step == self.plan.num_steps

    def _is_save_due(self, is_epoch_end: bool) -> bool:
        """Whether last.pt is old, by the main process's clock, or the run is over; all processes ask together."""
        old_s = self.job.save_last_every_s
        if is_epoch_end:
            old_s = min(old_s, self.saving_s / self.job.max_saving_share)
        is_old = self.distributed.is_main and time.perf_counter() - self.saved_s >= old_s
        return self.step == self.plan.num_steps or self.distributed.any(is_old)

    def _one_step(self, batches: Iterator[dict[str, Any]]) -> None:
        for micro_step in range(self.config.grad_accum_steps):
            start_s = time.perf_counter()
            with self._saving_on_error(is_between_steps=micro_step == 0):
                batch = next(batches)
            self.meter.data_wait_s += time.perf_counter() - start_s
            self.unreadable.note(batch)
            self._one_micro_step(change_batch(self.to_device(batch), noise_levels), micro_step)
        rate = planned_rate(self.step, self.config, self.plan)
        epoch = self.step // self.plan.steps_per_epoch
        self.step += 1
        self.learner.step(rate, self.step, is_norm_wanted=self._is_logged(self.step))
        self.meter.add_step(self.plan.clips_per_step, self._flops_per_clip(epoch))

    @contextmanager
    def _saving_on_error(self, is_between_steps: bool) -> Iterator[None]:
        """An error in this block, between two steps, loses no step. Several processes would have to save together."""
        try:
            yield
        except Exception:
            if is_between_steps and self.distributed.world_size == 1 and self.step > self.saved_step:
                self._save_last()
                self._say(f"saved after step {self.step}; run the same command again to continue")
            raise

    def _one_micro_step(self, batch: dict[str, Any], micro_step: int) -> None:
        seed = _draw_seed(self.config.seed, self.step, micro_step, self.distributed.rank)
        # Dropout and drop path take no generator: they read the global one.
        torch.manual_seed(seed)
        # Images keep the positions of the clips, and take those of slice 0.
        if not self.plan.is_of_images(self.step):
            num_frames, image_px = batch["frames_BCTHW"].shape[2:4]
            self.learner.fit_clips(num_frames, image_px)
        loss = self.learner.forward_backward(lambda model: self.job.objective(model, batch, seed), micro_step)
        self.meter.add_loss(loss, getattr(self.job.objective, "parts", {}))

    def _checked_loss(self) -> float:
        """Mean loss since the last line. UserError if it is no number, before anything is overwritten."""
        loss = self.meter.loss()
        if self.meter.num_micro_steps and not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.step}; the checkpoints are as they were. Take a lower base-lr, or "
                "clip-grad 1, and a new run folder"
            )
        return loss

    def _check_finite(self) -> None:
        """UserError, before anything is scored or overwritten, where the loss or the weights are not finite.

        A loss is that of the weights before an update, so the last update of all shows in the weights alone.
        """
        self._checked_loss()
        if not self.learner.is_finite():
            raise UserError(
                f"the weights are not finite after step {self.step}; the checkpoints are as they were. Take a lower "
                "base-lr, or clip-grad 1, and a new run folder"
            )

    def _report_unreadable(self) -> None:
        for video_id, reason in self.unreadable.gather().items():
            if self.distributed.is_main:
                self.job.run.append_metrics({"step": self.step, "unreadable": video_id, "reason": reason})
            self._say(f"video {video_id!r} cannot be read and is left out: {reason}")

    def _log(self) -> None:
        self._report_unreadable()
        norm = self.learner.grad_norm
        row = {
            "step": self.step,
            "epoch": (self.step - 1) // self.plan.steps_per_epoch + 1,
            "loss": self._checked_loss(),
            **self.meter.parts(),
            "lr": planned_rate(self.step - 1, self.config, self.plan),
            "grad_norm": float(norm) if norm is not None else math.nan,
            "num_clips": self.step * self.plan.clips_per_step,
            "num_unreadable": len(self.unreadable.reason_of),
            **self.meter.speed(self.peak.flops_per_s),
        }
        if self.distributed.is_main:
            self.job.run.append_metrics(row)
            self.loggers.row(row)
            num_clips_left = (self.plan.num_steps - self.step) * self.plan.clips_per_step
            self._say(step_line(row, self.plan.num_steps, num_clips_left / row["clips_per_s"]))
        self.meter = Meter(self.distributed)

    def _end_epoch(self, epoch: int) -> None:
        start_s = time.perf_counter()
        if self.job.on_epoch_end is not None:
            self._check_finite()
            scores = self.job.on_epoch_end(epoch, self.learner.scored_model)
            self.job.model.train()
            if self.distributed.is_main and scores:
                row = {"step": self.step, "epoch": epoch, **scores}
                self.job.run.append_metrics(row)
                self.loggers.row(row)
        if epoch % self.config.save_every_epochs == 0 or epoch == self.config.epochs:
            self._save_weights(epoch)
        self.meter.pause(time.perf_counter() - start_s)

    def _save_weights(self, epoch: int) -> None:
        self._check_finite()
        weights = self.learner.weights()
        metadata = {"mgm_task": self.job.task, "mgm_epoch": str(epoch), **self.job.metadata}
        if self.config.ema_decay:
            metadata["mgm_ema_decay"] = str(self.config.ema_decay)
        if self.distributed.is_main:
            self.check_lock()
            save_weights(self.job.run.weights(epoch), weights, self.job.model.config, metadata)
            self._log_pictures(epoch)

    def _log_pictures(self, epoch: int) -> None:
        if self.loggers.loggers and self.job.draw is not None:
            try:
                pictures = self.job.draw(self.job.run.weights(epoch))
            except (UserError, OSError) as error:
                # A training does not end because of a picture.
                self._say(f"no pictures were logged: {error}")
                return
            self.loggers.pictures(self.step, pictures)

    def _save_last(self) -> None:
        self._check_finite()
        self._report_unreadable()
        start_s = time.perf_counter()
        state = {
            "task": self.job.task,
            "config": self.config.to_dict(),
            "position": {**self.plan.position(self.step), "store": self.job.store},
            "inputs": dict(self.job.inputs),
            "unreadable": self.unreadable.reason_of,
            **self.learner.state(),
            **self.meter.state(),
        }
        if self.distributed.is_main:
            self.check_lock()
            save_last(self.job.run, state)
        self.saved_s, self.saved_step = time.perf_counter(), self.step
        self.saving_s = self.saved_s - start_s
        self.meter.pause(self.saving_s)

    def _flops(self) -> float | None:
        """Operations of all steps so far; None where nobody counted those of a clip."""
        if self.job.flops_per_clip is None:
            return None
        num_epochs, num_steps = divmod(self.step, self.plan.steps_per_epoch)
        whole = sum(self._flops_per_clip(epoch) or 0 for epoch in range(num_epochs)) * self.plan.steps_per_epoch
        part = num_steps * (self._flops_per_clip(num_epochs) or 0) if num_steps else 0
        return self.plan.clips_per_step * (whole + part)

    def _flops_per_clip(self, epoch: int) -> float | None:
        flops = self.job.flops_per_clip
        return flops[epoch] if isinstance(flops, Sequence) else flops

    def _say(self, text: str) -> None:
        if self.distributed.is_main:
            self.job.say(text)

    def _outcome(self) -> TrainResult:
        rows = self.job.run.read_metrics() if self.distributed.is_main else []
        losses = [row["loss"] for row in rows if "loss" in row] or [None]
        return TrainResult(
            run=self.job.run.root,
            is_main=self.distributed.is_main,
            is_complete=self.step == self.plan.num_steps,
            num_steps=self.step,
            num_epochs=self.step // self.plan.steps_per_epoch,
            first_loss=losses[0],
            last_loss=losses[-1],
            flops=self._flops(),
        )


def _draw_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

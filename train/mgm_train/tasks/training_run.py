"""What pretraining and fine-tuning share: prepare the processes and the run folder, train, or only look ahead."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgm_shared.cli import move_aside
from mgm_shared.lock import one_writer
from mgm_shared.progress import Progress
from mgm_shared.samples import Samples
from mgm_train.checkpoint.run_folder import recorded_options
from mgm_train.evaluation.multiview import EpochTest
from mgm_train.runtime.distributed import Distributed, init_distributed, precision_remark
from mgm_train.tasks.device_work import with_decoding
from mgm_train.training.auto_config import Machine, choose_options
from mgm_train.training.loop import Job, TrainResult, plan_of, train

MakeEpochTest = Callable[[Distributed], EpochTest]


@dataclass(frozen=True, kw_only=True)
class TrainPreview:
    """What a training would do, without doing it."""

    task: str
    videos: int
    """Samples: videos, segments, or key frames."""
    steps: int
    weights: int
    """Number of weights of the model."""
    settings: dict[str, Any]


def preview_job(job: Job) -> TrainPreview:
    """Count the videos, steps and weights of a job. UserError when there are too few videos."""
    plan = plan_of(job)
    num_weights = sum(parameter.numel() for parameter in job.model.parameters())
    return TrainPreview(
        task=job.task,
        videos=plan.num_videos,
        steps=plan.num_steps,
        weights=num_weights,
        settings=job.config.to_dict(),
    )


def with_chosen_options(job: Job, progress: Progress, *, force: bool = False) -> Job:
    """The job with the options that nobody set chosen for its videos and this machine; each choice is reported."""
    recorded = {} if force else recorded_options(job.run.root, job.task)
    config, lines = choose_options(job.config, job.model.config, len(job.dataset), Machine.of(job.config), recorded)
    # A batch that is larger than the data set is an error, and the choices that depend on it are then of no use.
    plan_of(replace(job, config=config))
    for line in lines:
        progress.say(line)
    return replace(job, config=config)


def run_job(job: Job, progress: Progress, *, force: bool, test: MakeEpochTest | None = None) -> TrainResult:
    """Train a job to its end on this process or on those that torchrun started, from its last checkpoint if it has one.

    Args:
        job: What to train.
        progress: Hears the lines of the run, on the main process.
        force: Move an existing run folder aside and start over.
        test: Makes a test between epochs, for a job that wants one.
    """
    with init_distributed(job.config.device) as distributed:
        restart(job.run.root, force, distributed, progress)
        say_precision(job.config.precision, distributed, progress)
        job = with_decoding(job, distributed, progress)
        if test is not None:
            job = replace(job, on_epoch_end=test(distributed))
        return train(replace(job, say=progress.say), distributed)


def say_precision(precision: str, distributed: Distributed, progress: Progress) -> None:
    """Report on the main process where a GPU does not compute in bfloat16."""
    if distributed.is_main and (remark := precision_remark(precision, distributed.device)):
        progress.say(remark)


def say_samples(samples: Samples, progress: Progress) -> None:
    """Report that segments are read, and not whole videos."""
    if samples.is_segments:
        progress.say(f"the samples are {samples.describe()}; --samples videos reads whole videos")


def restart(folder: Path, force: bool, distributed: Distributed, progress: Progress) -> None:
    """Move a run folder aside when `force` is given, on the main process, while the others wait.

    UserError when another command writes to it.
    """

    def move() -> None:
        with one_writer(folder, progress.say) if folder.is_dir() else nullcontext():
            if aside := move_aside(folder):
                progress.say(f"moved the old {folder} to {aside}")

    if force:
        distributed.on_main(move)
    distributed.wait()

"""What the GPU does for the data of a training: decode frames, alone or beside the workers, and augment clips."""

from dataclasses import replace

import torch

from mgm_shared.errors import UserError
from mgm_shared.progress import Progress
from mgm_train.checkpoint.run_folder import recorded_options
from mgm_train.config import FinetuneConfig, TrainConfig
from mgm_train.data.clips import ClipDataset
from mgm_train.data.decode_share import measure_decoding
from mgm_train.data.device_decoding import check_device_decoding
from mgm_train.data.scheduled import ScheduledDataset
from mgm_train.data.workers import count_workers
from mgm_train.runtime.distributed import Distributed
from mgm_train.training.loop import Job


def check_device_augmentation(config: FinetuneConfig) -> None:
    """UserError where clips are to be augmented on a GPU that is not there."""
    if config.augment_on == "cuda" and not torch.cuda.is_available():
        raise UserError("augment-on is cuda but torch sees no GPU; set augment-on to cpu or auto")


def with_decoding(job: Job, distributed: Distributed, progress: Progress) -> Job:
    """The job with a data set that leaves to the GPU what `decode_on` asks for; all processes must call it together.

    The share of `hybrid` is measured on the main process, unless it was given or an earlier start of the run has it.

    UserError without a GPU, without nvJPEG, and for a store whose frames are not JPEG.
    """
    config, dataset = job.config, job.dataset
    if not config.decodes_on_device:
        return job
    parts = [
        part
        for part in (dataset.datasets if isinstance(dataset, ScheduledDataset) else [dataset])
        if isinstance(part, ClipDataset)
    ]
    if not parts:
        raise UserError(
            f"decode-on {config.decode_on} is for pretrain and finetune; set it to cpu or auto for {job.task}"
        )
    check_device_decoding(distributed.device)
    codec = parts[-1].store.video_at(0).frame_codec
    if codec != "jpeg":
        raise UserError(f"decode-on {config.decode_on} needs JPEG frames, but this store has {codec}; set it to cpu")
    # Measured on the clips of the end of the run, which are most of its time.
    share = 1.0 if config.decode_on == "cuda" else _share(job, parts[-1], distributed, progress)
    for part in parts:
        part.device_share = share
    return job if config.decode_on == "cuda" else replace(job, config=config.replace(decode_share=share))


def _share(job: Job, dataset: ClipDataset, distributed: Distributed, progress: Progress) -> float:
    if job.config.decode_share != "auto":
        return job.config.decode_share
    recorded = recorded_options(job.run.root, job.task).get("decode_share")
    if isinstance(recorded, float | int):
        return float(recorded)
    measured = distributed.on_main(lambda: _measured(job.config, dataset, distributed, progress))
    # In hundredths, for which whole numbers are sent: the same share on all processes.
    hundredths = torch.tensor(round(100 * (measured or 0.0)), device=distributed.device)
    return int(distributed.sum(hundredths)) / 100


def _measured(config: TrainConfig, dataset: ClipDataset, distributed: Distributed, progress: Progress) -> float:
    num_workers = count_workers(config.num_workers, 0, distributed.device).number
    rates = measure_decoding(dataset, distributed.device)
    share = rates.share(num_workers)
    progress.say(
        f"decode-share is {share}: a sample takes {1e3 * rates.decoded_s:.1f} ms of one of {num_workers} data loading "
        f"processes, {1e3 * rates.read_s:.1f} ms where it only reads, and {1e3 * rates.on_device_s:.1f} ms of the GPU"
    )
    return share

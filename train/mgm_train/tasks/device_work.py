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
    if config.decodes_on_device and isinstance(dataset, ScheduledDataset):
        # Measured on the clips of the end of the run, which are most of its time.
        decoding = with_decoding(replace(job, dataset=dataset.datasets[-1]), distributed, progress)
        for one in dataset.datasets:
            one.device_share = dataset.datasets[-1].device_share
        return replace(decoding, dataset=dataset)
    if not config.decodes_on_device:
        return job
    if not isinstance(dataset, ClipDataset):
        raise UserError(
            f"decode-on {config.decode_on} is for pretrain and finetune; set it to cpu or auto for {job.task}"
        )
    check_device_decoding(distributed.device)
    codec = dataset.store.video_at(0).frame_codec
    if codec != "jpeg":
        raise UserError(f"decode-on {config.decode_on} needs JPEG frames, but this store has {codec}; set it to cpu")
    if config.decode_on == "cuda":
        dataset.device_share = 1.0
        return job
    share = _share(job, dataset, distributed, progress)
    dataset.device_share = share
    return replace(job, config=config.replace(decode_share=share))


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

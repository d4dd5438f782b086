"""Distribute videos over steps and processes, and build the loader that reads them.

The order of an epoch is a function of (seed, epoch), the same on every process. A step takes the next `batch_size`
videos, each process reads only its own slice, and a resumed run starts at any step without reading earlier videos.
The key of a sample is (epoch, index), so workers live as long as the run and are told nothing when an epoch ends. A
sample is a list of clips of one video (see `clips.py`), which are adjacent in a batch.

Axes: B clips · N tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mgm_shared.cores import num_usable_cores
from mgm_shared.errors import UserError
from mgm_train.config import TrainConfig
from mgm_train.data.clips import Sample, collate
from mgm_train.data.device_decoding import JPEG_BYTES, decode_batch
from mgm_train.data.packed_batch import Allocate, Packing, fresh
from mgm_train.data.readers import start_reader
from mgm_train.runtime.distributed import Distributed

Key = tuple[int, int]


class KeyedDataset(Protocol):
    """Anything with a length and `dataset[(epoch, index)]`, such as a `torch.utils.data.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key, /) -> list[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of samples, steps and clips of a run, and the order of its samples.

    A sample is a video, a segment or a key frame; `noun` is what messages call the samples. With `num_images` every
    second step is one of images: an epoch, one pass over the videos, has twice the steps, and passes over the images as
    often as they last, in an order of their own that goes on from epoch to epoch.
    """

    num_videos: int
    batch_size: int
    grad_accum_steps: int
    repeats: int
    epochs: int
    seed: int
    noun: str = "videos"
    num_images: int = 0

    @classmethod
    def of(cls, config: TrainConfig, num_videos: int, noun: str = "videos", num_images: int = 0) -> "Plan":
        """The plan of a configuration. UserError if there are fewer samples, or images, than a step needs."""
        if num_videos < config.batch_size:
            raise UserError(
                f"there are {num_videos} {noun} to train on, but batch-size is {config.batch_size}; lower batch-size"
            )
        if 0 < num_images < config.batch_size:
            raise UserError(f"there are {num_images} images, but batch-size is {config.batch_size}; lower batch-size")
        names = ("batch_size", "grad_accum_steps", "repeats", "epochs", "seed")
        own = {name: getattr(config, name) for name in names}
        return cls(num_videos=num_videos, noun=noun, num_images=num_images, **own)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch. The last videos of an epoch, fewer than a step needs, are left out."""
        return self.num_videos // self.batch_size * (2 if self.num_images else 1)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def clips_per_step(self) -> int:
        return self.batch_size * self.repeats

    def position(self, step: int) -> dict[str, int]:
        """The position in the data after `step` steps, valid for any number of processes and workers."""
        return {"epoch": step // self.steps_per_epoch, "samples_seen": step * self.batch_size, "seed": self.seed}

    def step_at(self, position: Mapping[str, Any]) -> int:
        """The number of steps at a position that `position` returned."""
        return int(position["samples_seen"]) // self.batch_size

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The videos of an epoch, shuffled, int64."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_videos)

    def is_of_images(self, step: int) -> bool:
        """Whether a step, counted from the start of the run, is one of images."""
        return self.num_images > 0 and step % 2 == 1

    def image_keys(self, step: int) -> list[Key]:
        """The (pass, index) of the images of a step; the indices of images follow those of the videos."""
        image_pass, step_of_pass = divmod(step // 2, self.num_images // self.batch_size)
        order = _image_order(self.seed, image_pass, self.num_images)
        first = step_of_pass * self.batch_size
        indices = self.num_videos + order[first : first + self.batch_size]
        return [(image_pass, index) for index in indices.tolist()]


@lru_cache(maxsize=2)
def _image_order(seed: int, image_pass: int, num_images: int) -> NDArray[np.int64]:
    """The images of a pass, shuffled; kept for the many steps of a pass."""
    # The third number tells it from the orders of the videos.
    return np.random.default_rng([seed, image_pass, 1]).permutation(num_images)


class StepKeys(Sampler[list[Key]]):
    """The keys of this process's samples: `grad_accum_steps` lists for each step from `first_step` on."""

    def __init__(self, plan: Plan, first_step: int, distributed: Distributed) -> None:
        if plan.batch_size % (plan.grad_accum_steps * distributed.world_size):
            raise UserError(
                f"batch-size {plan.batch_size} does not divide among {distributed.world_size} processes × "
                f"{plan.grad_accum_steps} accumulation steps; make it a multiple of "
                f"{plan.grad_accum_steps * distributed.world_size}"
            )
        self.plan = plan
        self.first_step = first_step
        self.distributed = distributed

    def __len__(self) -> int:
        return (self.plan.num_steps - self.first_step) * self.plan.grad_accum_steps

    def __iter__(self) -> Iterator[list[Key]]:
        plan = self.plan
        first_epoch, first_step_of_epoch = divmod(self.first_step, plan.steps_per_epoch)
        for epoch in range(first_epoch, plan.epochs):
            order = plan.order(epoch)
            for step in range(first_step_of_epoch, plan.steps_per_epoch):
                whole_step = epoch * plan.steps_per_epoch + step
                if plan.is_of_images(whole_step):
                    yield from self._micro_steps(plan.image_keys(whole_step))
                    continue
                first = (step // 2 if plan.num_images else step) * plan.batch_size
                yield from self._micro_steps([(epoch, k) for k in order[first : first + plan.batch_size].tolist()])
            first_step_of_epoch = 0

    def _micro_steps(self, keys: list[Key]) -> Iterator[list[Key]]:
        """This process's share of the keys of a step, a list for each micro-step."""
        share = self.plan.batch_size // (self.plan.grad_accum_steps * self.distributed.world_size)
        for micro_step in range(self.plan.grad_accum_steps):
            first = (micro_step * self.distributed.world_size + self.distributed.rank) * share
            yield keys[first : first + share]


def collate_counted(videos: list[list[Sample]], allocate: Allocate = fresh) -> dict[str, Any]:
    """`clips.collate` with `num_masked` and `num_left_out`, the numbers of masked and of left out tokens per clip.

    ValueError if clips differ in them, or if no token of a clip is masked, or none is visible.
    """
    batch: dict[str, Any] = collate(videos, allocate)
    if "mask_BN" in batch:
        mask_BN = batch["mask_BN"]
        num_masked, num_left_out = _count_of(mask_BN > 0), _count_of(mask_BN < 0)
        if num_masked == 0 or num_masked + num_left_out == mask_BN.shape[1]:
            raise ValueError(f"the masks hide {num_masked} of {mask_BN.shape[1]} tokens of each clip")
        batch |= {"num_masked": num_masked, "num_left_out": num_left_out}
    return batch


def _count_of(is_role_BN: Tensor) -> int:
    """The number of True tokens of each clip. ValueError if the clips differ in it."""
    num_B = is_role_BN.sum(1)
    if bool((num_B != num_B[0]).any()):
        raise ValueError(f"the clips of a batch hide different numbers of tokens: {num_B.tolist()}")
    return int(num_B[0])


class ToDevice:
    """Move batches to the device and decode there what is encoded. A GPU computes on the batch before meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on the device."""
        if self.stream is None:
            return decode_batch(batch, self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            batch = decode_batch({name: self._moved(name, value) for name, value in batch.items()}, self.device)
        computing.wait_stream(self.stream)
        for tensor in (value for value in batch.values() if isinstance(value, Tensor)):
            # The memory belongs to the copying stream. It must not be reused before the computing stream is done with
            # it.
            tensor.record_stream(computing)
        return batch

    def _moved(self, name: str, value: Any) -> Any:
        # nvJPEG reads the bytes on the CPU.
        is_moved = isinstance(value, Tensor) and name != JPEG_BYTES
        return value.to(self.device, non_blocking=True) if is_moved else value


def start_method(num_workers: int, worker_start: str) -> str | None:
    """The `multiprocessing_context` for DataLoader; None lets Python choose, or if there are no workers."""
    return worker_start if num_workers and worker_start != "auto" else None


def make_loader(
    dataset: KeyedDataset,
    plan: Plan,
    first_step: int,
    distributed: Distributed,
    num_workers: int,
    worker_start: str = "auto",
) -> DataLoader[Any]:
    """A loader of this process's batches from `first_step` to the end of the run, with at most one worker per CPU.

    `worker_start` is fork, spawn, forkserver, or auto, the default of this Python.
    """
    num_workers = min(num_workers, num_usable_cores())
    is_pinned = distributed.device.type == "cuda"
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=StepKeys(plan, first_step, distributed),
        num_workers=num_workers,
        multiprocessing_context=start_method(num_workers, worker_start),
        collate_fn=Packing(collate_counted, is_pinned),
        pin_memory=is_pinned,
        worker_init_fn=start_reader,
    )

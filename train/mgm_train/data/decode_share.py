"""Which share of the samples the GPU decodes when it shares that work with the data loading processes.

Both sides work at the same time. They are done together when a sample takes them equally long: with W processes, of
which each takes c seconds to decode a sample and r seconds to read one that the GPU decodes, and g seconds of the GPU,

    ((1 − share) · c + share · r) / W = share · g,  so  share = c / (W · g + c − r).

The measured share is kept for the whole run: which samples the GPU decodes decides over their pixels, if only a little.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from mgm_train.data.clips import ClipDataset, collate
from mgm_train.data.device_decoding import decode_batch

NUM_SAMPLES, NUM_ROUNDS = 16, 3


@dataclass(frozen=True, kw_only=True)
class DecodeRates:
    """Seconds that a sample takes: of a process that decodes it, of one that only reads it, of the GPU."""

    decoded_s: float
    read_s: float
    on_device_s: float

    def share(self, num_workers: int) -> float:
        """The share of the samples for the GPU, 0 to 1 in hundredths; without processes, the main process is one."""
        spare_s = max(1, num_workers) * self.on_device_s + self.decoded_s - self.read_s
        return round(min(1.0, self.decoded_s / spare_s), 2) if spare_s > 0 else 1.0


def measure_decoding(dataset: ClipDataset, device: torch.device) -> DecodeRates:
    """Read and decode a few samples on both sides, in this process."""
    on_cpu, on_device = (_with_share(dataset, share) for share in (0.0, 1.0))
    keys = [(0, index % len(dataset)) for index in range(NUM_SAMPLES)]
    batch = collate([on_device[key] for key in keys])

    def decode() -> None:
        decode_batch(batch, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return DecodeRates(
        decoded_s=_seconds(lambda: [on_cpu[key] for key in keys]) / len(keys),
        read_s=_seconds(lambda: [on_device[key] for key in keys]) / len(keys),
        on_device_s=_seconds(decode) / len(keys),
    )


def _with_share(dataset: ClipDataset, share: float) -> ClipDataset:
    other = copy.copy(dataset)
    other.device_share = share
    return other


def _seconds(work: Callable[[], object]) -> float:
    """The median time of some rounds; the first one loads, compiles and warms up, and does not count."""
    times_s = []
    for _ in range(NUM_ROUNDS + 1):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return median(times_s[1:])

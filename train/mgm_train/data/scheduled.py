"""Clips whose size changes during a run: a data set for each stage, chosen by the epoch of the key.

A worker that prepares batches ahead reads the first clips of the next stage while the last ones of this stage are still
trained on. Since the epoch is in the key, nobody has to tell it, and a resumed run reads the same clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from mgm_shared.samples import SampleSource
from mgm_train.clip_schedule import Stage
from mgm_train.data.clips import PretrainDataset, Sample


@dataclass(eq=False)
class ScheduledDataset(Dataset[list[Sample]]):
    """Pretraining clips, indexed by (epoch, index), from the data set of the stage that the epoch belongs to."""

    stages: Sequence[Stage]
    datasets: Sequence[PretrainDataset]

    @property
    def store(self) -> SampleSource:
        """What the clips are read from."""
        return self.datasets[0].store

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        num_started = sum(stage.first_epoch <= key[0] for stage in self.stages)
        return self.datasets[num_started - 1][key]

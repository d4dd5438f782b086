"""Clips whose size changes during a run: a data set for each stage, chosen by the epoch of the key.

A worker that prepares batches ahead reads the first clips of the next stage while the last ones of this stage are still
trained on. Since the epoch is in the key, nobody has to tell it, and a resumed run reads the same clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from mgm_shared.samples import SampleSource
from mgm_train.clip_schedule import Stage
from mgm_train.data.augment import PretrainAugment
from mgm_train.data.clips import PretrainDataset, Sample


@dataclass(eq=False)
class ScheduledDataset(Dataset[list[Sample]]):
    """Pretraining clips, indexed by (epoch, index), of the size that the stage of the epoch has."""

    stages: Sequence[Stage]
    datasets: Sequence[PretrainDataset]

    @classmethod
    def of(cls, dataset: PretrainDataset, stages: Sequence[Stage], *, flip: bool) -> "ScheduledDataset":
        """The clips of `dataset` in the sizes of the stages."""
        datasets = [
            replace(dataset, num_frames=stage.num_frames, augment=PretrainAugment(size_px=stage.image_px, flip=flip))
            for stage in stages
        ]
        return cls(stages, datasets)

    @property
    def store(self) -> SampleSource:
        """What the clips are read from."""
        return self.datasets[0].store

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        started = sum(stage.first_epoch <= key[0] for stage in self.stages)
        return self.datasets[started - 1][key]

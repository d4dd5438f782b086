"""Images as a second source of pretraining, in batches of their own between those of the clips (OmniMAE).

An image is one frame, repeated to the length of a tubelet, so it has the tokens of one slice. Its positions are those
of slice 0 of a clip.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mgm_shared.samples import SampleSource
from mgm_train.data.clips import PretrainDataset, Sample


@dataclass(eq=False)
class ImageDataset(PretrainDataset):
    """Images with a mask, indexed by (pass, index): clips of `num_frames` times the same frame.

    Of a video with several frames, one is drawn.
    """

    def _dense_indices(self, num_frames_in_video: int, rng: Generator) -> NDArray[np.int64]:
        return np.full(self.num_frames, rng.integers(num_frames_in_video), np.int64)


@dataclass(eq=False)
class WithImages(Dataset[list[Sample]]):
    """Clips and images. An index below `len()` is that of a video, one behind it that of an image.

    `loader.Plan` says which batches are of images.
    """

    clips: PretrainDataset
    images: ImageDataset

    @property
    def store(self) -> SampleSource:
        """What the clips are read from."""
        return self.clips.store

    @property
    def num_images(self) -> int:
        return len(self.images)

    def __len__(self) -> int:
        """The number of videos: an epoch is one pass over these."""
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> list[Sample]:
        epoch, index = key
        if index < len(self.clips):
            return self.clips[key]
        samples = self.images[epoch, index - len(self.clips)]
        return [{**sample, "index": index} for sample in samples]

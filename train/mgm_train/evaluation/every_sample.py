"""The views of all samples of a store (videos or segments), with or without labels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.index import codes
from mgm_shared.samples import Samples
from mgm_train.config import EmbedConfig
from mgm_train.data.labels import read_class_map, split_rows
from mgm_train.evaluation.multiview import ViewDataset
from mgm_train.model_config import ModelConfig

ALL = "all"


class EverySample(ViewDataset):
    """The views of the samples of a split, or of all; labels are names, and a sample may have none.

    `label_of_row` and `split_of_row` have the label and the split of each sample, None where it has none.
    """

    def __init__(self, store: Samples, model: ModelConfig, config: EmbedConfig) -> None:
        self.store, self.samples, self.model, self.config = store, store, model, config
        rows = np.arange(len(store)) if config.split == ALL else split_rows(store, config.split)
        labels = _names(store, "label", rows)
        if config.class_map:
            class_map = read_class_map(Path(config.class_map))
            labels = [class_map.get(label or "") for label in labels]
            rows = rows[np.array([label is not None for label in labels], bool)]
            labels = [label for label in labels if label is not None]
        if not len(rows):
            raise UserError(
                f"{store.path} has no {store.noun} to embed" + (", of the class map" if config.class_map else "")
            )
        self.rows, self.label_of_row, self.split_of_row = rows, labels, _names(store, "split", rows)
        # There are no classes. Rows in their place tell the caches of other choices of videos apart.
        self.labels = rows.astype(np.int64)

    @property
    def sample_ids(self) -> list[str]:
        """The id of each sample."""
        found: list[str] = self.samples.table["sample_id"].take(self.rows).to_pylist()
        return found

    @property
    def video_ids(self) -> list[str]:
        """The video of each sample."""
        found: list[str] = self.samples.table["video_id"].take(self.rows).to_pylist()
        return found

    @property
    def is_training(self) -> NDArray[np.bool_]:
        """Which samples are for training: those so marked, or those without a split where none is."""
        mark = "train" if "train" in self.split_of_row else None
        return np.array([split == mark for split in self.split_of_row], bool)


def _names(store: Samples, column: str, rows: NDArray[np.int64]) -> list[str | None]:
    code_of_row, names = codes(store.table, column)
    return [names[code] for code in code_of_row[rows].tolist()]

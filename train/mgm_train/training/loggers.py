"""Loggers beside metrics.jsonl: TensorBoard and Weights & Biases get the same numbers, and pictures.

Both come with the extra `log` and are imported only when they are asked for. Weights & Biases works offline unless
WANDB_MODE says otherwise: `wandb sync RUN/wandb/offline-run-…` uploads a run later.

Axes: H,W pixels · C = RGB.
"""

import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.files import replace_text
from mgm_train.checkpoint.run_folder import RunFolder

Picture = NDArray[np.uint8]
# Columns of metrics.jsonl that are no curves.
NOT_LOGGED = {"step", "num_unreadable"}


class Logger(Protocol):
    """Where numbers and pictures of a run go."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers after a step."""

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Log pictures (H, W, 3) after a step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUN`."""

    def __init__(self, run: RunFolder, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Rows after the step from which a run continues are written again, so TensorBoard hides the old ones.
        writer: Any = SummaryWriter(str(run.root / "tensorboard"), purge_step=step + 1 if step else None)
        self.writer = writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        for name, picture_HWC in pictures.items():
            self.writer.add_image(name, picture_HWC, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in RUN/wandb; its id is kept, so that a resumed run continues it."""

    def __init__(self, run: RunFolder, task: str, options: Mapping[str, Any]) -> None:
        # Read when the package is imported: a report of an error would be a connection.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        id_file = run.root / "wandb" / "id.txt"
        known = id_file.read_text().strip() if id_file.exists() else None
        self.wandb, self.run = wandb, wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mgm"),
            name=run.root.name,
            id=known,
            resume="allow" if known else None,
            dir=str(run.root),
            config={"task": task, **options},
            mode=_mode(),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )  # fmt: skip
        id_file.parent.mkdir(exist_ok=True)
        replace_text(id_file, f"{self.run.id}\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        images = {name: self.wandb.Image(picture_HWC) for name, picture_HWC in pictures.items()}
        self.run.log(images, step=step)

    def close(self) -> None:
        self.run.finish()


def _mode() -> Any:
    return os.environ.get("WANDB_MODE", "offline")


def check_loggers(names: Sequence[str]) -> None:
    """UserError where the package of a logger is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"log {name} needs the package {name}: pip install '.[log]' in a checkout of mgm")


class Loggers:
    """All loggers of a run; none of them by default."""

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.loggers = list(loggers)

    @classmethod
    def open(
        cls, names: Sequence[str], run: RunFolder, task: str, options: Mapping[str, Any], step: int = 0
    ) -> "Loggers":
        """Open the loggers of these names; the run continues after `step`."""
        made: list[Logger] = []
        for name in names:
            made.append(TensorBoard(run, step) if name == "tensorboard" else WeightsAndBiases(run, task, options))
        return cls(made)

    def row(self, row: Mapping[str, object]) -> None:
        """Log the numbers of a row of metrics.jsonl."""
        step = row["step"]
        assert isinstance(step, int)
        values = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and math.isfinite(value) and name not in NOT_LOGGED
        }
        for logger in self.loggers:
            logger.scalars(step, values)

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Log pictures."""
        for logger in self.loggers:
            logger.pictures(step, pictures)

    def close(self) -> None:
        """Close all loggers."""
        for logger in self.loggers:
            logger.close()

"""Which key frames a test of an action detector reads, and how: as its training, unless options say otherwise."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mgm_shared.config import flag
from mgm_shared.errors import UserError
from mgm_shared.store import Store
from mgm_train.checkpoint.weights import Weights
from mgm_train.config import DetectConfig, EvaluateConfig
from mgm_train.detection.annotations import ActionClasses, Annotations
from mgm_train.detection.box_tables import BoxTable
from mgm_train.detection.clip_frames import ClipReader
from mgm_train.detection.datasets import ScoredFrames, WholeClips
from mgm_train.detection.key_frames import KeyFrames, rows_of
from mgm_train.detection.proposals import read_proposals
from mgm_train.model_config import ModelConfig
from mgm_train.models.action_detector import ActionDetector

METADATA_KEY = "mgm_detection"
# What `mgm-train evaluate` may set anew.
OPTIONS = ("annotations", "proposals", "min_person_score", "stride")


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """The options of a training that its tests share. Its weights files record them."""

    annotations: str
    proposals: str
    min_person_score: float
    stride: int
    clip_fps: float
    crop_scale: float

    @classmethod
    def of(cls, config: DetectConfig) -> "DetectionSettings":
        """The settings of a training."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})

    @classmethod
    def of_weights(cls, weights: Weights, config: EvaluateConfig) -> tuple["DetectionSettings", list[str]]:
        """The settings that weights record, with the options that were set in `config`; and lines to print.

        UserError if the weights are those of another version.
        """
        try:
            settings = cls(**json.loads(weights.metadata[METADATA_KEY]))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{weights.path} holds no action detector of this version of mgm-train") from None
        changes = {name: getattr(config, name) for name in OPTIONS if name in config.model_fields_set}
        taken = [name for name in OPTIONS if name not in changes and getattr(settings, name) != getattr(config, name)]
        lines = [f"{flag(name)} is {getattr(settings, name)}, as in the training" for name in taken]
        return replace(settings, **changes), lines

    @property
    def metadata(self) -> dict[str, str]:
        """For the metadata of the weights."""
        return {METADATA_KEY: json.dumps(asdict(self))}

    def reader(self, store: Store, num_frames: int) -> ClipReader:
        """Reads clips as these settings say."""
        return ClipReader(store, num_frames, self.stride, self.clip_fps)

    def labels_of(self, store: Store, split: str, say: Callable[[str], None]) -> tuple[KeyFrames, dict[str, int]]:
        """The labelled key frames of a split, and the row of the store of each video; those that are missing are said.

        UserError when the store has none of the videos.
        """
        if not self.annotations:
            raise UserError("give the folder of the annotation files with --annotations")
        annotations = Annotations(folder=Path(self.annotations))
        labelled = KeyFrames.of(annotations.labels(split), len(annotations.classes))
        names = sorted(set(labelled.name_F.tolist()))
        row_of = rows_of(store, names)
        if not row_of:
            raise UserError(f"{store.path} has none of the {len(names)} videos that {annotations.folder} labels")
        if missing := [name for name in names if name not in row_of]:
            some = ", ".join(missing[:5]) + ("…" if len(missing) > 5 else "")
            say(f"warning: {store.path} lacks {len(missing)} of {len(names)} videos of split {split!r}: {some}")
        return labelled, row_of


def open_test(
    store: Store, settings: DetectionSettings, model: ModelConfig, split: str, say: Callable[[str], None]
) -> tuple[WholeClips, ActionClasses]:
    """The key frames of a split with their labels and proposals, and the classes.

    UserError for a file that is missing or wrong.
    """
    labelled, row_of = settings.labels_of(store, split, say)
    annotations = Annotations(folder=Path(settings.annotations))
    classes = annotations.classes
    proposals = _proposals(settings, say)
    frames = ScoredFrames.of(labelled, KeyFrames.of(proposals, len(classes)), row_of, annotations.excluded(split))
    say(
        f"{split}: {len(frames.moments)} key frames with {len(frames.labelled.box_B4)} labelled boxes and "
        f"{len(frames.proposals.box_B4)} proposals; {frames.num_excluded} key frames are excluded"
    )
    short_px = round(model.image_px / settings.crop_scale)
    reader = settings.reader(store, model.num_frames)
    return WholeClips(reader=reader, frames=frames, short_px=short_px, patch_px=model.patch_px), classes


def _proposals(settings: DetectionSettings, say: Callable[[str], None]) -> BoxTable:
    """The proposals; a table without rows where no file was given."""
    if not settings.proposals:
        say("no proposals were given: only the labelled boxes are tested")
        return BoxTable.of(Path(), [], np.zeros(0), np.zeros((0, 4)))
    file = Path(settings.proposals)
    found = read_proposals(file, settings.min_person_score, [Path(settings.annotations)])
    say(found.description)
    return found.boxes


def is_detector(weights: Weights) -> bool:
    """Whether a weights file holds an action detector."""
    return METADATA_KEY in weights.metadata


def detector(weights: Weights) -> ActionDetector:
    """Build the action detector of a weights file."""
    model = ActionDetector(weights.model, len(weights.classes))
    model.load_state_dict(weights.state, strict=True)
    return model


def open_detector_test(
    store: Store, weights: Weights, config: EvaluateConfig, say: Callable[[str], None]
) -> tuple[EvaluateConfig, WholeClips, ActionClasses]:
    """The test of a weights file: its options, its key frames and its classes.

    UserError for files that are missing or wrong, or when the classes are not those of the training.
    """
    settings, lines = DetectionSettings.of_weights(weights, config)
    if "split" not in config.model_fields_set:
        config = config.replace(split="val")
    for line in lines:
        say(line)
    dataset, classes = open_test(store, settings, weights.model, config.split, say)
    if classes.names != weights.classes:
        raise UserError(f"the action lists of {settings.annotations} have other classes than the training had")
    return config, dataset, classes

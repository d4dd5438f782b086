"""Test an action detector: scores of all boxes of the key frames of a split, mAP, and the files that show them.

The score of an action in a proposal is its probability times the detector's confidence in the person; no action is left
out, and nothing is suppressed (VideoMAE, AlphAction). The labelled boxes are tested too, as if a perfect detector had
proposed them, which separates the classifier's mistakes from the detector's.

Axes: B clips · C colours · T frames · H,W pixels · R boxes of a clip · K classes.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mgm_shared.progress import SILENT, Progress
from mgm_train.config import ViewConfig
from mgm_train.data.readers import reading
from mgm_train.detection.annotations import ActionClasses
from mgm_train.detection.box_tables import moment_text
from mgm_train.detection.datasets import ScoredFrames, WholeClip, WholeClips, collate_tests
from mgm_train.detection.frame_map import DetectedBoxes, LabelledBoxes, average_precisions, mean_average_precision
from mgm_train.evaluation.metrics import diverged, write_csv
from mgm_train.evaluation.multiview import make_test_loader
from mgm_train.runtime.distributed import Distributed, autocast_dtype


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """The result of a test. mAP is a fraction; `mean_ap` is None where no proposals were given."""

    mean_ap: float | None
    labelled_boxes_mean_ap: float
    """mAP with the labelled boxes as proposals."""
    scored: int
    """Key frames whose boxes were scored."""
    listed: int
    excluded: int
    without_proposals: int
    """Key frames with labels and without a proposal: their labels count as missed."""
    num_proposals: int
    num_labelled_boxes: int
    average_precision: dict[str, tuple[float | None, float]] = field(default_factory=dict)
    """Class → its average precision, with the proposals and with the labelled boxes."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key frame or video → reason why it could not be scored."""

    @property
    def numbers(self) -> dict[str, float]:
        """What to follow during a training."""
        proposed = {} if self.mean_ap is None else {"mean_ap": self.mean_ap}
        counts = {"scored": self.scored, "listed": self.listed}
        return {**proposed, "labelled_boxes_mean_ap": self.labelled_boxes_mean_ap, **counts}

    def __str__(self) -> str:
        proposed = "" if self.mean_ap is None else f"mAP {self.mean_ap:.2%}, "
        labelled = f"mAP with labelled boxes {self.labelled_boxes_mean_ap:.2%}"
        return f"{proposed}{labelled} | {self.scored} of {self.listed} key frames"


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Scores of all proposals and of all labelled boxes, rows as in `ScoredFrames`; NaN where they were not scored."""

    proposal_BK: NDArray[np.float32]
    labelled_BK: NDArray[np.float32]
    unreadable: dict[str, str]


def score_key_frames(
    model: nn.Module,
    dataset: WholeClips,
    config: ViewConfig,
    num_classes: int,
    distributed: Distributed,
    progress: Progress = SILENT,
) -> Detections:
    """Score all boxes. The key frames are shared among the processes, which all return the same.

    UserError on all processes if the model's output for a key frame is not finite.
    """
    frames = dataset.frames
    own = range(distributed.rank, len(dataset), distributed.world_size)
    scores: dict[int, NDArray[np.float32]] = {}
    unreadable: dict[str, str] = {}
    not_finite: list[str] = []
    with closing(_over_clips(model, dataset, own, config, distributed, progress)) as clips:
        for clip, logits_RK in clips:
            name, time_ms = frames.moments[clip.place]
            if logits_RK is None:
                unreadable[f"{name},{moment_text(time_ms)}"] = clip.reason
            elif not logits_RK.isfinite().all():
                not_finite.append(name)
                break
            else:
                scores[clip.place] = logits_RK.sigmoid().numpy()
    gathered = distributed.gather((scores, unreadable, not_finite))
    scores = {place: score_RK for part, _, _ in gathered for place, score_RK in part.items()}
    unreadable = {key: reason for _, part, _ in gathered for key, reason in part.items()}
    not_finite = [name for _, _, part in gathered for name in part]
    if not_finite:
        raise diverged(min(not_finite))
    return _detections(frames, scores, num_classes, dict(sorted(unreadable.items())) | frames.missing)


def _detections(
    frames: ScoredFrames, scores: dict[int, NDArray[np.float32]], num_classes: int, unreadable: dict[str, str]
) -> Detections:
    proposal_BK = np.full((len(frames.proposals.box_B4), num_classes), np.nan, np.float32)
    labelled_BK = np.full((len(frames.labelled.box_B4), num_classes), np.nan, np.float32)
    for place, score_RK in scores.items():
        of_proposals, of_labels = frames.slices(place)
        num_proposals = of_proposals.stop - of_proposals.start
        proposal_BK[of_proposals], labelled_BK[of_labels] = score_RK[:num_proposals], score_RK[num_proposals:]
    proposal_BK *= frames.proposals.score_B[:, None].astype(np.float32)
    return Detections(proposal_BK=proposal_BK, labelled_BK=labelled_BK, unreadable=unreadable)


def _over_clips(
    model: nn.Module,
    dataset: WholeClips,
    own: Sequence[int],
    config: ViewConfig,
    distributed: Distributed,
    progress: Progress,
) -> Generator[Any]:
    """Yield each clip with its logits (R, K), float32 on the CPU; None for one that cannot be read."""
    heard = progress if distributed.is_main else SILENT
    loader = make_test_loader(dataset, own, config, collate_tests, dataset.max_clip_bytes, distributed.device, heard)
    heard.start(f"testing {config.split}", len(own), "key frame")
    num_unreadable = 0
    with reading(loader) as batches:
        for batch in batches:
            clips: list[WholeClip] = batch["clips"]
            yield from _scored(model, clips, config.precision, distributed.device)
            num_unreadable += sum(clip.frames_CTHW is None for clip in clips)
            heard.advance(len(clips), unreadable=num_unreadable)


def _scored(
    model: nn.Module, clips: list[WholeClip], precision: str, device: torch.device
) -> Iterator[tuple[WholeClip, Tensor | None]]:
    """Clips of one size go through the model together, so that no clip is padded for another one's sake."""
    groups: dict[tuple[int, ...], list[WholeClip]] = {}
    for clip in clips:
        if clip.frames_CTHW is None:
            yield clip, None
        else:
            groups.setdefault(tuple(clip.frames_CTHW.shape), []).append(clip)
    for group in groups.values():
        frames_BCTHW = torch.stack([clip.frames_CTHW for clip in group if clip.frames_CTHW is not None])
        logits = _logits(model, frames_BCTHW, [clip.box_R4 for clip in group], precision, device)
        yield from zip(group, logits, strict=True)


def logits_of_clips(model: nn.Module, clips: list[WholeClip]) -> list[Tensor]:
    """The logits (R, K) of readable clips, in float32 on the CPU."""
    of_place = {clip.place: logits_RK for clip, logits_RK in _scored(model, clips, "fp32", torch.device("cpu"))}
    return [logits_RK for clip in clips if (logits_RK := of_place[clip.place]) is not None]


@torch.inference_mode()
def _logits(
    model: nn.Module, frames_BCTHW: Tensor, boxes: list[NDArray[np.float32]], precision: str, device: torch.device
) -> Sequence[Tensor]:
    number_R = np.repeat(np.arange(len(boxes)), [len(box_R4) for box_R4 in boxes])
    box_R5 = torch.from_numpy(np.column_stack([number_R, np.concatenate(boxes)]).astype(np.float32))
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits_RK = model(frames_BCTHW.to(device), box_R5.to(device)).float()
    of_clips: Sequence[Tensor] = logits_RK.cpu().split([len(box_R4) for box_R4 in boxes])
    return of_clips


def summarise(frames: ScoredFrames, detections: Detections, classes: ActionClasses) -> DetectionScores:
    """mAP over the scored classes, with the proposals and with the labelled boxes."""
    labelled, proposals = frames.labelled, frames.proposals
    number_of = {moment: place for place, moment in enumerate(frames.moments)}
    frame_of_labels, frame_of_proposals = (
        np.repeat([number_of[moment] for moment in part.moments], part.num_boxes_F).astype(np.int64)
        for part in (labelled, proposals)
    )
    truth = LabelledBoxes(frame_G=frame_of_labels, box_G4=labelled.box_B4, is_action_GK=labelled.is_action_BK)
    columns = [number - 1 for number in classes.scored]
    of_labels = DetectedBoxes(frame_D=frame_of_labels, box_D4=labelled.box_B4, score_DK=detections.labelled_BK)
    upper = average_precisions(truth, of_labels, columns)
    precisions: dict[int, float] = {}
    if len(proposals):
        found = DetectedBoxes(frame_D=frame_of_proposals, box_D4=proposals.box_B4, score_DK=detections.proposal_BK)
        precisions = average_precisions(truth, found, columns)
    names = {k: classes.names[k] for k in upper}
    return DetectionScores(
        mean_ap=mean_average_precision(precisions) if len(proposals) else None,
        labelled_boxes_mean_ap=mean_average_precision(upper),
        scored=len(frames.readable) - len(detections.unreadable.keys() - frames.missing.keys()),
        listed=len(frames.moments),
        excluded=frames.num_excluded,
        without_proposals=len(set(labelled.moments) - set(proposals.moments)),
        num_proposals=len(proposals.box_B4),
        num_labelled_boxes=len(labelled.box_B4),
        average_precision={names[k]: (precisions.get(k), upper[k]) for k in upper},
        unreadable=detections.unreadable,
    )


def write_detection_reports(
    folder: Path, split: str, frames: ScoredFrames, detections: Detections, scores: DetectionScores
) -> dict[str, Path]:
    """Write AP by class, and the detections in the form of the AVA challenge; their paths by content."""
    classes = [["class", "average_precision", "with_labelled_boxes"]]
    classes += [[name, _share(ap), _share(upper)] for name, (ap, upper) in scores.average_precision.items()]
    files = {"classes": folder / f"classes-{split}.csv"}
    write_csv(files["classes"], classes)
    if len(frames.proposals):
        files["detections"] = folder / f"detections-{split}.csv"
        write_csv(files["detections"], _challenge_rows(frames, detections))
    return files


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _challenge_rows(frames: ScoredFrames, detections: Detections) -> Iterator[list[object]]:
    """`video,time,x1,y1,x2,y2,action,score`, a row for each box and class, without a header."""
    for f, (name, time_ms) in enumerate(frames.proposals.moments):
        of_frame = frames.proposals.boxes_of(f)
        rows = zip(frames.proposals.box_B4[of_frame].clip(0, 1), detections.proposal_BK[of_frame], strict=True)
        for box_4, score_K in rows:
            start = [name, moment_text(time_ms), *(f"{side:.5f}" for side in box_4.tolist())]
            yield from ([*start, k, f"{score:.5f}"] for k, score in enumerate(score_K.tolist(), 1) if score == score)

"""The key frames of a table of boxes, in arrays: a key frame, its distinct boxes, and the actions or score of each.

Axes: F key frames · B boxes of all key frames, in their order · K classes · 4 = left, top, right, bottom, as shares of
the picture.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.store import Store
from mgm_train.detection.box_tables import BoxTable, Moment, moment_text


@dataclass(frozen=True)
class KeyFrames:
    """Key frames, ordered by video name and time. Frame f has the boxes first_F[f] … first_F[f + 1] − 1."""

    name_F: NDArray[np.object_]
    time_ms_F: NDArray[np.int64]
    first_F: NDArray[np.int64]
    """One longer than there are key frames."""
    box_B4: NDArray[np.float64]
    is_action_BK: NDArray[np.bool_]
    score_B: NDArray[np.float64]

    @classmethod
    def of(cls, table: BoxTable, num_classes: int) -> "KeyFrames":
        """Group the rows of a table. Equal boxes of a key frame become one, with all their actions and the best score.

        The result does not depend on the order of the rows. Boxes without an area are left out, their key frames not.
        """
        names, code_R = np.unique(table.name_B.astype(np.str_), return_inverse=True)
        moment_R2 = np.stack([code_R, table.time_ms_B], axis=1)
        moment_F2, moment_of_R = np.unique(moment_R2, axis=0, return_inverse=True)
        has_area_R = (table.box_B4[:, 0] < table.box_B4[:, 2]) & (table.box_B4[:, 1] < table.box_B4[:, 3])
        place_R5 = np.column_stack([moment_of_R.reshape(-1), table.box_B4])[has_area_R]
        place_B5, box_of_R = np.unique(place_R5, axis=0, return_inverse=True)
        box_of_R, class_R = box_of_R.reshape(-1), table.class_B[has_area_R]
        is_action_BK = np.zeros((len(place_B5), num_classes), np.bool_)
        is_action_BK[box_of_R[class_R > 0], class_R[class_R > 0] - 1] = True
        score_B = np.zeros(len(place_B5))
        np.maximum.at(score_B, box_of_R, table.score_B[has_area_R])
        return cls(
            name_F=names[moment_F2[:, 0]].astype(object),
            time_ms_F=moment_F2[:, 1],
            first_F=np.searchsorted(place_B5[:, 0], np.arange(len(moment_F2) + 1)),
            box_B4=place_B5[:, 1:],
            is_action_BK=is_action_BK,
            score_B=score_B,
        )

    def __len__(self) -> int:
        return len(self.name_F)

    def boxes_of(self, frame: int) -> slice:
        """Where the boxes of a key frame lie."""
        return slice(int(self.first_F[frame]), int(self.first_F[frame + 1]))

    @property
    def num_boxes_F(self) -> NDArray[np.int64]:
        return np.diff(self.first_F)

    @cached_property
    def moments(self) -> list[Moment]:
        """Video name and time in ms of each key frame."""
        return list(zip(self.name_F.tolist(), self.time_ms_F.tolist(), strict=True))

    def where(self, is_kept_F: NDArray[np.bool_]) -> "KeyFrames":
        """The key frames where `is_kept_F` is true, with their boxes."""
        is_kept_B = np.repeat(is_kept_F, self.num_boxes_F)
        first_F = np.concatenate([[0], np.cumsum(self.num_boxes_F[is_kept_F])]).astype(np.int64)
        of_frames = (self.name_F[is_kept_F], self.time_ms_F[is_kept_F], first_F)
        return KeyFrames(*of_frames, self.box_B4[is_kept_B], self.is_action_BK[is_kept_B], self.score_B[is_kept_B])

    def without(self, moments: set[Moment]) -> "KeyFrames":
        """The key frames that are not among `moments`."""
        return self.where(np.array([moment not in moments for moment in self.moments], np.bool_))


def frame_id(moment: Moment) -> str:
    """A key frame in words, as in the keys of proposals: `video,0902`."""
    return f"{moment[0]},{moment_text(moment[1])}"


def rows_of(store: Store, names: Iterable[str]) -> dict[str, int]:
    """The row of `store.table` for each video name of the files that the store has.

    A name is that of a video's file without its folder and suffix, or its whole id. UserError when two videos of the
    store have the name.
    """
    ids = store.table["video_id"].to_pylist()
    row_of = {video_id: row for row, video_id in enumerate(ids)}
    stems = [PurePosixPath(video_id).stem for video_id in ids]
    count_of_stem = Counter(stems)
    row_of_stem = dict(zip(stems, range(len(stems)), strict=True))
    found: dict[str, int] = {}
    for name in sorted(set(names)):
        if name in row_of:
            found[name] = row_of[name]
        elif count_of_stem[name] > 1:
            raise UserError(f"{store.path} has {count_of_stem[name]} videos named {name!r}; the boxes say no more")
        elif name in row_of_stem:
            found[name] = row_of_stem[name]
    return found

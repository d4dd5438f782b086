"""Where the points of the masked tokens go: the target of M3Video (MME) and of TrackMAE, from codec vectors.

M3Video follows the points of a token for L stored frames and predicts the displacement in each; its points are those of
optical flow. TrackMAE predicts the displacement to the next slice, of points that a tracker follows. Here the stored
motion vectors carry the points; see `data/trajectories.py`.

Axes: B clips · N tokens · M masked tokens · t slices · L displacements of a point · Y,X cells of the clip · h,w tokens
of a slice · p points of a token · 2 = (dx, dy) px · P = 2·L·p values of a token · K sets of the points of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mgm_shared.geometry import TokenGrid
from mgm_shared.store import Video
from mgm_train.config import PretrainConfig
from mgm_train.data.clips import ReadTarget, vectors
from mgm_train.data.trajectories import Trajectories, consecutive_stops, next_slice_stops, trajectories
from mgm_train.data.views import View
from mgm_train.models.videomae import pick
from mgm_train.training.targets.target import Target

# M3Video's unit of displacements, and the most that it lets a point move in a frame.
UNIT_PX = 20.0
# Added to the std within a token, in pixels: codecs round vectors to a quarter of a pixel, so less is no motion. The
# sources add 1e-6, with which the rounding of a token that moves as a whole would be scaled up to a std of 1.
TOKEN_STD_PX = 1 / 4
# The least root mean square of a clip by which it is divided, in pixels.
CLIP_RMS_PX = 1.0


@dataclass(frozen=True, kw_only=True)
class ReadTrajectory:
    """Reads the trajectories of a clip from the vectors of every stored frame, (N, P).

    `num_steps` displacements of one stored frame each are followed, or with 0 one displacement to the next slice. The
    values of a token are in the order component, displacement, row of cells, column.
    """

    grid: TokenGrid
    num_steps: int = 0
    norm: str = "patch"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, P)."""
        return self.grid.num_tokens, 2 * max(1, self.num_steps) * self.grid.patch.cells_per_side**2

    def __call__(self, video: Video, indices_T: NDArray[np.int64], view: View) -> NDArray[np.float32]:
        """The normalised displacements of all tokens; NaN where they are not valid. OSError for damaged data."""
        found = self.displacements(video, indices_T, view)
        values_NP: NDArray[np.float32] = self.normalised(self.in_tokens(found)).reshape(self.shape)
        return values_NP

    def displacements(self, video: Video, indices_T: NDArray[np.int64], view: View) -> Trajectories:
        """The displacements of the points of a clip in its pixels, at most `UNIT_PX` a stored frame, as in M3Video."""
        start_t, slice_frames = indices_T[:: self.grid.patch.frames], self.grid.patch.frames
        if self.num_steps:
            stop_tL = consecutive_stops(indices_T, slice_frames, self.num_steps)
        else:
            stop_tL = next_slice_stops(indices_T, slice_frames)
        first, last = int(start_t[0]), min(int(stop_tL.max()), video.num_frames - 1)
        motion_SYX2 = vectors(video, slice(first, last + 1))
        found = trajectories(motion_SYX2, start_t - first, stop_tL - first, view)
        found = found.steps() if self.num_steps else found
        frames_tL = np.diff(stop_tL, axis=1, prepend=start_t[:, None]).clip(0)
        limit_tL111 = (UNIT_PX * frames_tL).astype(np.float32)[..., None, None, None]
        return replace(found, moved_tLYX2=found.moved_tLYX2.clip(-limit_tL111, limit_tL111))

    def in_tokens(self, found: Trajectories) -> NDArray[np.float32]:
        """The displacements by token, (t, h, w, 2, L, p); NaN where they are not valid."""
        side = self.grid.patch.cells_per_side
        moved_tLYX2 = np.where(found.is_valid_tLYX[..., None], found.moved_tLYX2, np.float32(np.nan))
        num_slices, num_steps = moved_tLYX2.shape[:2]
        split = moved_tLYX2.reshape(num_slices, num_steps, self.grid.h, side, self.grid.w, side, 2)
        ordered = split.transpose(0, 2, 4, 6, 1, 3, 5)
        return np.ascontiguousarray(ordered).reshape(*ordered.shape[:5], side * side)

    def normalised(self, moved_thw2Lp: NDArray[np.float32]) -> NDArray[np.float32]:
        """Displacements by token as the norm has them.

        patch: less their mean over the points of the token, divided by their std (PatchStd of M3Video) and a quarter of
            a pixel; a token that moves as a whole becomes 0. If a point's displacement is unknown, the token has none.
        clip: divided by their root mean square over the clip, at least 1 px.
        none: in units of 20 px, as in M3Video without PatchStd.
        """
        if self.norm == "patch":
            # The points on the first axis: numpy adds rows ten times as fast as it adds four neighbours.
            moved_pK = np.ascontiguousarray(moved_thw2Lp.reshape(-1, moved_thw2Lp.shape[-1]).T)
            scale_K = moved_pK.std(0, ddof=1) + np.float32(TOKEN_STD_PX)
            standard_Kp: NDArray[np.float32] = ((moved_pK - moved_pK.mean(0)) / scale_K).T
            return standard_Kp.reshape(moved_thw2Lp.shape)
        if self.norm == "clip":
            known = moved_thw2Lp[~np.isnan(moved_thw2Lp)]
            rms_px = np.sqrt((known**2).mean()) if len(known) else 0
            return moved_thw2Lp / np.float32(max(rms_px, CLIP_RMS_PX))
        return moved_thw2Lp / np.float32(UNIT_PX)


@dataclass(frozen=True, kw_only=True)
class Trajectory(Target):
    """The displacements of the points of a token, computed in the data loading workers."""

    name: ClassVar[str] = "trajectory"
    inputs: ClassVar[tuple[str, ...]] = ("trajectory_BNP",)
    read: ReadTrajectory

    @classmethod
    def of(cls, config: PretrainConfig) -> "Trajectory":
        """The target of a configuration."""
        return cls(
            read=ReadTrajectory(grid=config.grid, num_steps=config.trajectory_steps, norm=config.trajectory_norm)
        )

    @property
    def width(self) -> int:
        return self.read.shape[1]

    @property
    def reader(self) -> ReadTarget:
        return self.read

    def values(self, batch: Mapping[str, Tensor], masked_BM: Tensor) -> tuple[Tensor, Tensor]:
        values_BMP = pick(batch["trajectory_BNP"], masked_BM)
        return values_BMP, ~values_BMP.isnan()

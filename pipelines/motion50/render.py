"""Render one episode: pictures and, for each frame, boxes of what moves.

Axes: T frames · H,W pixels · C = RGB · Q coordinates of the simulator · 4 = left, top, width, height in px.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import mujoco
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from motion50 import camera as cameras
from motion50.camera import FOVY_DEG, CameraPath, background_shift, draw_camera
from motion50.look import Look, apply_look
from motion50.stage import SHOWN_GROUPS, Stage, build_stage

# Pictures are rendered this much larger and averaged, so that edges against the background are smooth.
SUPERSAMPLE = 2
MAX_VIEWS, MIN_OBJECT_SHARE, MIN_CHANGED_SHARE, MAX_ROBOT_SHARE = 24, 0.012, 0.3, 0.55
# Identities in the box files; the distractor's boxes have confidence 0.
OBJECT, HAND, DISTRACTOR = 1, 2, 3
Boxes = list[dict[int, tuple[float, float, float, float]]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A rendered clip, played as the expert moved."""

    frames_THWC: NDArray[np.uint8]
    boxes_T: Boxes
    path: CameraPath
    shift_T2: NDArray[np.float64]


@lru_cache(maxsize=32)
def get_studio(xml_path: str, size_px: int) -> "Studio":
    """The studio of a scene; a process keeps it, since building one takes about half a second."""
    return Studio(build_stage(xml_path), size_px)


class Studio:
    """A stage with its renderer."""

    def __init__(self, stage: Stage, size_px: int) -> None:
        self.stage, self.size_px = stage, size_px
        side = size_px * SUPERSAMPLE
        stage.model.vis.global_.offwidth = max(stage.model.vis.global_.offwidth, side)
        stage.model.vis.global_.offheight = max(stage.model.vis.global_.offheight, side)
        stage.model.vis.global_.fovy = FOVY_DEG
        self.data = mujoco.MjData(stage.model)
        self.renderer = mujoco.Renderer(stage.model, side, side)
        self.camera = mujoco.MjvCamera()
        self.option = mujoco.MjvOption()
        self.option.geomgroup[:] = [group in SHOWN_GROUPS for group in range(6)]
        self.option.sitegroup[:] = 0

    def pose(self, qpos_Q: NDArray[np.float64]) -> None:
        """Put the bodies where a state says."""
        self.data.qpos[:] = qpos_Q
        mujoco.mj_normalizeQuat(self.stage.model, self.data.qpos)
        mujoco.mj_kinematics(self.stage.model, self.data)
        mujoco.mj_comPos(self.stage.model, self.data)
        mujoco.mj_camlight(self.stage.model, self.data)

    def geoms(self, path: CameraPath, frame: int) -> NDArray[np.int32]:
        """The geom seen at each pixel, (H, W) of the supersampled picture; -1 for none."""
        self.renderer.enable_segmentation_rendering()
        self.renderer.update_scene(self.data, cameras.pose(path, frame, self.camera), self.option)
        seen_HW2 = self.renderer.render()
        self.renderer.disable_segmentation_rendering()
        return np.where(seen_HW2[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), seen_HW2[..., 0], -1)

    def picture(self, path: CameraPath, frame: int) -> NDArray[np.uint8]:
        """The rendered colours, supersampled."""
        self.renderer.update_scene(self.data, cameras.pose(path, frame, self.camera), self.option)
        return np.asarray(self.renderer.render())

    def moving_geoms(self, qpos_TQ: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64], float]:
        """Geoms of the object that moves, the centre (3,) of the places they take and the radius of these in metres."""
        model, places, turns = self.stage.model, [], []
        for qpos_Q in qpos_TQ[[0, len(qpos_TQ) // 2, -1]]:
            self.pose(qpos_Q)
            places.append(self.data.geom_xpos.copy())
            turns.append(self.data.geom_xmat.copy())
        moved = np.ptp(places, axis=0).max(1) + np.ptp(turns, axis=0).max(1)
        found = [
            geom
            for geom in range(model.ngeom)
            if moved[geom] > 5e-3
            and geom not in self.stage.robot_geoms
            and geom not in self.stage.distractor_geoms
            and model.geom_group[geom] in SHOWN_GROUPS
            and model.geom_matid[geom] >= 0
        ]
        where = np.concatenate([place[found] for place in places])
        centre_3 = (where.min(0) + where.max(0)) / 2
        reach = np.linalg.norm(where - centre_3, axis=1) + 0.5 * np.tile(model.geom_rbound[found], len(places))
        return found, centre_3, float(np.clip(reach.max(), 0.09, 0.5))

    def find_view(
        self, qpos_TQ: NDArray[np.float64], moving: list[int], frame_of: tuple[Any, float], rng: Generator
    ) -> CameraPath:
        """A camera path from which the object's movement is seen; the best of those tried when none is good."""
        best: CameraPath | None = None
        best_score = -1.0
        ends = (0, len(qpos_TQ) // 2, len(qpos_TQ) - 1)
        robot = list(self.stage.robot_geoms)
        for _ in range(MAX_VIEWS):
            path = draw_camera(*frame_of, len(qpos_TQ), rng)
            masks, robots = [], []
            for frame in ends:
                self.pose(qpos_TQ[frame])
                seen_HW = self.geoms(path, frame)
                masks.append(np.isin(seen_HW, moving))
                robots.append(np.isin(seen_HW, robot).mean())
            visible = min(mask.mean() for mask in masks)
            changed = (masks[0] ^ masks[-1]).sum() / max(1, (masks[0] | masks[-1]).sum())
            terms = (visible / MIN_OBJECT_SHARE, changed / MIN_CHANGED_SHARE, MAX_ROBOT_SHARE / max(max(robots), 1e-6))
            score = min(1.0, *terms)
            if score > best_score:
                best, best_score = path, score
            if score >= 1:
                break
        assert best is not None
        return best

    def film(
        self, qpos_TQ: NDArray[np.float64], moving: list[int], path: CameraPath, look: Look, rng: Generator
    ) -> Clip:
        """Render every frame."""
        apply_look(self.stage, self.renderer, look)
        place_T7 = distractor_path(path, rng)
        shift_T2 = background_shift(path, self.size_px)
        hand, distractor = list(self.stage.hand_geoms), list(self.stage.distractor_geoms)
        frames, boxes_T = [], []
        for frame, qpos_Q in enumerate(qpos_TQ):
            self.data.mocap_pos[-1], self.data.mocap_quat[-1] = place_T7[frame, :3], place_T7[frame, 3:]
            self.pose(qpos_Q)
            picture_HWC, seen_HW = self.picture(path, frame), self.geoms(path, frame)
            frames.append(compose(picture_HWC, seen_HW < 0, look.background_THWC[frame], shift_T2[frame]))
            masks = {OBJECT: moving, HAND: hand, DISTRACTOR: distractor}
            found = {identity: box_of(np.isin(seen_HW, geoms)) for identity, geoms in masks.items()}
            boxes_T.append({identity: box for identity, box in found.items() if box is not None})
        return Clip(frames_THWC=np.stack(frames), boxes_T=boxes_T, path=path, shift_T2=shift_T2)


def distractor_path(path: CameraPath, rng: Generator) -> NDArray[np.float64]:
    """Place and quaternion of the distractor in each frame, (T, 7): a curve beside the centre of the picture."""
    position_3, forward_3, right_3, up_3 = cameras.axes(path, 0)
    num_frames, half = len(path.distance_T), np.tan(np.deg2rad(FOVY_DEG / 2))
    time_T = np.linspace(0, 1, num_frames)
    depth = path.distance_T[0] * rng.uniform(0.55, 0.95)
    side, height = rng.choice([-1, 1]) * rng.uniform(0.5, 0.9), rng.uniform(-0.6, 0.9)
    rates, phases, sizes = rng.uniform(0.4, 1.2, 2), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.15, 0.4, 2)
    wave_2T = sizes[:, None] * np.sin(2 * np.pi * rates[:, None] * time_T + phases[:, None])
    across_T, upward_T = side + wave_2T[0], height + wave_2T[1]
    place_T3 = position_3 + depth * (forward_3 + half * (across_T[:, None] * right_3 + upward_T[:, None] * up_3))
    axis_3 = rng.normal(size=3)
    axis_3 /= np.linalg.norm(axis_3)
    angle_T = rng.uniform(-3, 3) * time_T + rng.uniform(0, 2 * np.pi)
    return np.column_stack([place_T3, np.cos(angle_T / 2), np.sin(angle_T / 2)[:, None] * axis_3])


def compose(
    picture_HWC: NDArray[np.uint8], is_empty_HW: NDArray[np.bool_], background_HWC: NDArray[np.uint8], shift_2: Any
) -> NDArray[np.uint8]:
    """The final picture: where the rendering shows nothing, the background, moved by `shift_2` px; averaged to size."""
    side = picture_HWC.shape[0] // SUPERSAMPLE
    margin = (background_HWC.shape[0] - side) / 2
    move = np.array([[1, 0, shift_2[0] - margin], [0, 1, shift_2[1] - margin]])
    behind_HWC = cv2.warpAffine(background_HWC, move, (side, side), borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    blocks = (side, SUPERSAMPLE, side, SUPERSAMPLE)
    is_solid_HW1 = ~is_empty_HW[..., None]
    solid_HWC = (picture_HWC * is_solid_HW1).astype(np.float32).reshape(*blocks, 3).mean((1, 3))
    share_HW1 = is_solid_HW1.astype(np.float32).reshape(*blocks, 1).mean((1, 3))
    composed_HWC: NDArray[np.uint8] = np.rint(solid_HWC + (1 - share_HW1) * behind_HWC).clip(0, 255).astype(np.uint8)
    return composed_HWC


def box_of(mask_HW: NDArray[np.bool_]) -> tuple[float, float, float, float] | None:
    """The box round a supersampled mask in px of the final picture; None when fewer than 8 pixels are seen."""
    if mask_HW.sum() < 8 * SUPERSAMPLE**2:
        return None
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    corners = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    left, top, width, height = (float(value) / SUPERSAMPLE for value in corners)
    return left, top, width, height

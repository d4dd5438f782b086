"""The camera's path: free viewpoint, slow orbit, zoom and shake, drawn by seed; and what it does to the far background.

Axes: T frames · 3 = x, y, z in metres · angles in degrees, as MuJoCo's free camera counts them.
"""

from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

FOVY_DEG = 45.0
MIN_DISTANCE_M, MAX_DISTANCE_M = 0.35, 1.8
STILL_SHARE = 0.25
# The robot stands at y = 0 and looks along +y, azimuth 90; the camera stands on its side of the table.
AZIMUTH_SPREAD_DEG, ELEVATION_DEG = (12.0, 80.0), (-50.0, -10.0)


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Poses of MuJoCo's free camera."""

    lookat_T3: NDArray[np.float64]
    distance_T: NDArray[np.float64]
    azimuth_T: NDArray[np.float64]
    elevation_T: NDArray[np.float64]

    def rows(self) -> list[list[float]]:
        """x, y, z of the point looked at, distance, azimuth, elevation of each frame."""
        columns = (*self.lookat_T3.T, self.distance_T, self.azimuth_T, self.elevation_T)
        return [[round(float(value), 5) for value in row] for row in np.stack(columns, axis=1)]

    def reversed(self) -> "CameraPath":
        """The path in the opposite direction."""
        return replace(
            self,
            lookat_T3=self.lookat_T3[::-1],
            distance_T=self.distance_T[::-1],
            azimuth_T=self.azimuth_T[::-1],
            elevation_T=self.elevation_T[::-1],
        )


def _shake(num_frames: int, rng: Generator) -> NDArray[np.float64]:
    """A smooth random curve of unit size, (T,)."""
    time_T = np.linspace(0, 1, num_frames)
    rates, phases, sizes = rng.uniform(0.5, 4, 4), rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.3, 1, 4)
    curves = sizes[:, None] * np.sin(2 * np.pi * rates[:, None] * time_T + phases[:, None])
    curve_T: NDArray[np.float64] = curves.sum(0) / np.sqrt((sizes**2).sum())
    return curve_T


def draw_camera(centre_3: NDArray[np.float64], radius_m: float, num_frames: int, rng: Generator) -> CameraPath:
    """A path that looks at `centre_3` from a distance at which `radius_m` fills a good part of the picture."""
    is_still = rng.random() < STILL_SHARE
    size = 0.0 if is_still else rng.uniform(0.3, 1)
    time_T = np.linspace(-0.5, 0.5, num_frames)
    azimuth = 90 + rng.choice([-1, 1]) * rng.uniform(*AZIMUTH_SPREAD_DEG)
    filling_m = radius_m / np.tan(np.deg2rad(FOVY_DEG / 2))
    distance = np.clip(filling_m * rng.uniform(1.2, 2.2), MIN_DISTANCE_M, MAX_DISTANCE_M)
    orbit_deg, lift_deg = rng.uniform(-16, 16), rng.uniform(-6, 6)
    zoom = rng.uniform(-0.1, 0.1)
    offset_3 = rng.uniform(-0.2, 0.2, 3) * radius_m
    shake_3T = np.stack([_shake(num_frames, rng) for _ in range(3)])
    return CameraPath(
        lookat_T3=centre_3 + offset_3 + size * 0.012 * distance * shake_3T[2][:, None] * (1, 0, 1),
        distance_T=distance * (1 + size * zoom * time_T),
        azimuth_T=azimuth + size * (orbit_deg * time_T + 0.8 * shake_3T[0]),
        elevation_T=rng.uniform(*ELEVATION_DEG) + size * (lift_deg * time_T + 0.8 * shake_3T[1]),
    )


def pose(path: CameraPath, frame: int, camera: Any) -> Any:
    """Set a mujoco.MjvCamera to one frame's pose."""
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = path.lookat_T3[frame]
    camera.distance, camera.azimuth = path.distance_T[frame], path.azimuth_T[frame]
    camera.elevation = path.elevation_T[frame]
    return camera


def axes(path: CameraPath, frame: int) -> tuple[NDArray[np.float64], ...]:
    """The camera's position, and its unit vectors forward, right and up, each (3,)."""
    azimuth, elevation = np.deg2rad(path.azimuth_T[frame]), np.deg2rad(path.elevation_T[frame])
    forward_3 = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right_3 = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    position_3 = path.lookat_T3[frame] - path.distance_T[frame] * forward_3
    return position_3, forward_3, right_3, np.cross(right_3, forward_3)


def background_shift(path: CameraPath, size_px: int) -> NDArray[np.float64]:
    """How far something infinitely far has moved in the picture since the middle frame, (T, 2) of (right, down) px."""
    focal_px = size_px / 2 / np.tan(np.deg2rad(FOVY_DEG / 2))
    middle = len(path.azimuth_T) // 2
    turn_T = np.deg2rad(path.azimuth_T - path.azimuth_T[middle])
    tilt_T = np.deg2rad(path.elevation_T - path.elevation_T[middle])
    # A turn to the left (azimuth grows) moves it right; a look upwards moves it down.
    across_T = focal_px * np.tan(turn_T) * np.cos(np.deg2rad(path.elevation_T))
    return np.stack([across_T, focal_px * np.tan(tilt_T)], axis=1)

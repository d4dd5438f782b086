"""How a clip looks, drawn by seed: pictures and tints of the surfaces, lights, shadows, wall or moving background."""

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from motion50.pictures import draw_background, draw_picture
from motion50.stage import (
    DISTRACTOR_SHAPES,
    HAND,
    OBJECTS,
    ROBOT,
    SURFACES,
    TEXTURE_PX,
    Stage,
    show_only,
    write_texture,
)

BACKGROUND_SHARE, FLOOR_SHARE, DISTRACTOR_SHARE, SHADOW_SHARE = 0.6, 0.5, 0.85, 0.4
# The robot keeps about its colours, as hands do in films of people, and objects stand out: in a patchwork of pictures a
# few thousand clips hardly show what an object is. PICTURE_SHARE of the picture's contrast stays, so nothing is flat.
BASE_COLOURS = {ROBOT: (140, 45, 45), HAND: (200, 200, 200)}
PICTURE_SHARE = 0.6
# Room beside the picture for the shifts of a turning camera.
BACKGROUND_MARGIN = 2.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything about a clip's appearance but the camera."""

    pictures: dict[str, NDArray[np.uint8]]
    tints: dict[str, NDArray[np.float64]]
    light_dirs: NDArray[np.float64]
    light_levels: NDArray[np.float64]
    ambient: float
    has_shadows: bool
    has_wall: bool
    has_floor: bool
    # -1: no distractor.
    distractor_shape: int
    background_THWC: NDArray[np.uint8]


def draw_look(clips: list[Path], num_lights: int, num_frames: int, size_px: int, rng: Generator) -> Look:
    """Draw a look; `clips` give its pictures."""
    has_background = rng.random() < BACKGROUND_SHARE
    light_dirs = rng.normal(size=(num_lights, 3)) * (1, 1, 0.3)
    light_dirs[:, 2] = -1.2 - np.abs(light_dirs[:, 2])
    # Crops show a part of their video larger, with less detail.
    whole = [clip for clip in clips if "-crop" not in clip.name] or clips
    return Look(
        pictures={name: _mix(name, draw_picture(whole, TEXTURE_PX, rng), rng) for name in SURFACES},
        tints={name: _tint(rng) for name in SURFACES},
        light_dirs=light_dirs,
        light_levels=rng.uniform(0.15, 0.5, num_lights),
        ambient=float(rng.uniform(0.35, 0.6)),
        has_shadows=bool(rng.random() < SHADOW_SHARE),
        has_wall=not has_background,
        has_floor=not has_background or bool(rng.random() < FLOOR_SHARE),
        distractor_shape=int(rng.integers(len(DISTRACTOR_SHAPES))) if rng.random() < DISTRACTOR_SHARE else -1,
        background_THWC=draw_background(whole, num_frames, round(BACKGROUND_MARGIN * size_px), rng),
    )


def _mix(name: str, picture_HWC: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """The picture of a surface: as it is, or on what is to be recognised mixed with a plain colour."""
    if name in BASE_COLOURS:
        colour_3 = np.array(BASE_COLOURS[name]) + rng.uniform(-30, 30, 3)
    elif name in OBJECTS:
        # A saturated colour of any hue.
        colour_3 = 255 * np.array(hsv_to_rgb(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.6, 1)))
    else:
        return picture_HWC
    detail_HWC = picture_HWC - picture_HWC.mean((0, 1))
    coloured_HWC: NDArray[np.uint8] = np.rint(colour_3 + PICTURE_SHARE * detail_HWC).clip(0, 255).astype(np.uint8)
    return coloured_HWC


def _tint(rng: Generator) -> NDArray[np.float64]:
    """A colour that multiplies a picture: mostly bright, so that the picture stays visible."""
    return np.array([*rng.uniform(0.65, 1.0, 3), 1.0])


def apply_look(stage: Stage, renderer: Any, look: Look) -> None:
    """Write a look into the stage's model and the renderer's textures."""
    model = stage.model
    renderer._gl_context.make_current()
    for name in SURFACES:
        texture = write_texture(stage, name, look.pictures[name])
        mujoco.mjr_uploadTexture(model, renderer._mjr_context, texture)
        model.mat_rgba[stage.material_ids[name]] = look.tints[name]
    model.light_dir[:] = look.light_dirs / np.linalg.norm(look.light_dirs, axis=1, keepdims=True)
    model.light_diffuse[:] = look.light_levels[:, None]
    model.vis.headlight.ambient[:] = look.ambient
    model.vis.headlight.diffuse[:] = 0.3
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = look.has_shadows
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    chosen = () if look.distractor_shape < 0 else (stage.distractor_geoms[look.distractor_shape],)
    show_only(stage, stage.distractor_geoms, chosen)
    backdrop = (stage.wall_geom,) * look.has_wall + (stage.floor_geom,) * look.has_floor
    show_only(stage, (stage.wall_geom, stage.floor_geom), backdrop)

"""The model that is rendered: a task's own scene with real textures on every surface, a wall and a distractor.

The simulator's bodies keep their numbers, since what is added comes last, so a state of the simulator can be shown as
it is. Textures are placeholders in the compiled model; each clip writes its own pictures into them.
"""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

# Surfaces with a picture of their own. OBJECTS share the parts of the manipulated object and its frame between them.
FLAT = ("floor", "table")
ROBOT, HAND, DISTRACTOR = "robot", "hand", "distractor"
OBJECTS = ("object0", "object1", "object2")
SURFACES = (*FLAT, "wall", "rim", ROBOT, HAND, *OBJECTS, DISTRACTOR)
TEXTURE_PX = 256
# Tiles a metre on flat surfaces: a close camera sees about half a metre.
TILES_PER_M = 4.0
SHOWN_GROUPS = (0, 1, 2)
HIDDEN_GROUP = 5
DISTRACTOR_SHAPES = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER)
DISTRACTOR_M = 0.03
SHADOW_PX, SAMPLES = 512, 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A compiled model to render, and which of its geoms are what."""

    model: Any
    num_bodies: int
    texture_ids: dict[str, int]
    material_ids: dict[str, int]
    robot_geoms: frozenset[int]
    hand_geoms: frozenset[int]
    distractor_geoms: tuple[int, ...]
    wall_geom: int
    floor_geom: int
    table_geoms: tuple[int, ...]


def _ancestors(body: Any) -> set[str]:
    names = set()
    while body is not None and body.name != "world":
        names.add(body.name)
        body = body.parent
    return names


def _surface(geom: Any, ancestors: set[str], parts: dict[str, str]) -> str:
    """The surface that a geom of the task belongs to."""
    if geom.name == "floor":
        return "floor"
    if "tablelink" in ancestors:
        return "table"
    if "RetainingWall" in ancestors:
        return "rim"
    if "hand" in ancestors:
        return HAND
    if "base" in ancestors:
        return ROBOT
    # Parts of one material keep one picture.
    return parts.setdefault(geom.material or str(geom.rgba), OBJECTS[len(parts) % len(OBJECTS)])


def _add_materials(spec: Any) -> None:
    for name in SURFACES:
        texture = spec.add_texture(name=f"motion50-{name}", builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT)
        texture.type = mujoco.mjtTexture.mjTEXTURE_2D if name in FLAT else mujoco.mjtTexture.mjTEXTURE_CUBE
        texture.width = texture.height = TEXTURE_PX
        material = spec.add_material(name=f"motion50-{name}", specular=0.2, shininess=0.3)
        roles = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
        roles[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = texture.name
        material.textures = roles
        if name in FLAT:
            material.texuniform = True
            material.texrepeat = [TILES_PER_M, TILES_PER_M]


def build_stage(xml_path: str) -> Stage:
    """Compile the stage of a Meta-World scene."""
    spec = mujoco.MjSpec.from_file(xml_path)
    _add_materials(spec)
    parts: dict[str, str] = {}
    robot_names, hand_names = [], []
    for index, geom in enumerate(spec.geoms):
        geom.name = geom.name or f"geom{index}"
        if geom.group not in SHOWN_GROUPS or (geom.rgba[3] == 0 and not geom.material):
            continue
        ancestors = _ancestors(geom.parent)
        surface = _surface(geom, ancestors, parts)
        geom.material = f"motion50-{surface}"
        geom.rgba = [0.5, 0.5, 0.5, 1]
        if surface in (ROBOT, HAND):
            robot_names.append(geom.name)
        if surface == HAND or "right_hand" in ancestors:
            hand_names.append(geom.name)
    num_bodies = len(spec.bodies)
    spec.worldbody.add_geom(
        name="motion50-wall",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[1.6, 0.02, 1.6],
        pos=[0, 1.25, 0],
        material="motion50-wall",
    )
    body = spec.worldbody.add_body(name="motion50-distractor", mocap=True)
    for shape in DISTRACTOR_SHAPES:
        body.add_geom(
            name=f"motion50-distractor{int(shape)}",
            type=shape,
            size=[DISTRACTOR_M, DISTRACTOR_M, DISTRACTOR_M],
            material="motion50-distractor",
            contype=0,
            conaffinity=0,
        )
    quality = spec.visual.quality
    quality.shadowsize, quality.offsamples = SHADOW_PX, SAMPLES
    model = spec.compile()
    return Stage(
        model=model,
        num_bodies=num_bodies,
        texture_ids={name: model.texture(f"motion50-{name}").id for name in SURFACES},
        material_ids={name: model.material(f"motion50-{name}").id for name in SURFACES},
        robot_geoms=frozenset(model.geom(name).id for name in robot_names),
        hand_geoms=frozenset(model.geom(name).id for name in hand_names),
        distractor_geoms=tuple(model.geom(f"motion50-distractor{int(shape)}").id for shape in DISTRACTOR_SHAPES),
        wall_geom=model.geom("motion50-wall").id,
        floor_geom=model.geom("floor").id,
        table_geoms=tuple(g for g in range(model.ngeom) if model.body(model.geom_bodyid[g]).name == "tablelink"),
    )


def write_texture(stage: Stage, surface: str, picture_HWC: NDArray[np.uint8]) -> int:
    """Write a picture (TEXTURE_PX, TEXTURE_PX, 3) into a surface's texture, on all six sides of a cube; its id."""
    texture = stage.texture_ids[surface]
    model = stage.model
    start, height = model.tex_adr[texture], model.tex_height[texture]
    sides = np.tile(picture_HWC, (height // TEXTURE_PX, 1, 1))
    model.tex_data[start : start + sides.size] = sides.reshape(-1)
    return texture


def show_only(stage: Stage, geoms: tuple[int, ...], shown: tuple[int, ...]) -> None:
    """Of `geoms`, render those that are also in `shown`."""
    for geom in geoms:
        stage.model.geom_group[geom] = 0 if geom in shown else HIDDEN_GROUP


def place(stage: Stage, body_pos_B3: NDArray[np.float64], body_quat_B4: NDArray[np.float64]) -> None:
    """Give the task's bodies the places they have in an episode."""
    stage.model.body_pos[: stage.num_bodies] = body_pos_B3
    stage.model.body_quat[: stage.num_bodies] = body_quat_B4

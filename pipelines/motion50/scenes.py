"""The thirteen scenes of Motion50: in each, two manipulation tasks of Meta-World undo each other on the same object."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A pair of classes on one object.

    `forward` and `backward` name the classes. `experts` are the Meta-World tasks whose scripted experts perform them,
    in the same order. The object's progress along the forward direction is `sign` times a coordinate of the simulator:
    that of `joint` (an index into qpos, from the end) or, where `joint` is 0, the place along `axis` (0, 1, 2 = x, y,
    z) of the one of `bodies` that the scene has.
    """

    forward: str
    backward: str
    experts: tuple[str, str]
    sign: int
    joint: int = 0
    bodies: tuple[str, ...] = ()
    axis: int = 0

    @property
    def name(self) -> str:
        return f"{self.forward}/{self.backward}"

    @property
    def classes(self) -> tuple[str, str]:
        return self.forward, self.backward


def _scene(
    forward: str, backward: str, sign: int, joint: int = 0, bodies: tuple[str, ...] = (), axis: int = 0
) -> Scene:
    return Scene(
        forward=forward,
        backward=backward,
        experts=(f"{forward}-v3", f"{backward}-v3"),
        sign=sign,
        joint=joint,
        bodies=bodies,
        axis=axis,
    )


SCENES = (
    _scene("door-open", "door-close", sign=-1, joint=-1),
    _scene("door-unlock", "door-lock", sign=-1, joint=-1),
    _scene("drawer-open", "drawer-close", sign=-1, joint=-1),
    _scene("faucet-open", "faucet-close", sign=1, joint=-1),
    _scene("window-open", "window-close", sign=1, joint=-1),
    _scene("handle-press", "handle-pull", sign=-1, joint=-1),
    _scene("handle-press-side", "handle-pull-side", sign=-1, joint=-1),
    _scene("plate-slide", "plate-slide-back", sign=1, joint=-1),
    _scene("plate-slide-side", "plate-slide-back-side", sign=-1, joint=-2),
    _scene("coffee-push", "coffee-pull", sign=1, bodies=("obj",), axis=1),
    _scene("push", "push-back", sign=1, bodies=("obj",), axis=1),
    _scene("peg-insert-side", "peg-unplug-side", sign=-1, bodies=("peg", "plug1"), axis=0),
    _scene("assembly", "disassemble", sign=-1, bodies=("RoundNut",), axis=2),
)
CLASSES = tuple(name for scene in SCENES for name in scene.classes)

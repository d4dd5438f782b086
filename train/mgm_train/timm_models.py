"""Our classifiers under timm's names: `timm.create_model("mgm_vit_base_patch16_224", num_classes=10)`.

    import timm
    import mgm_train  # registers the names, before or after timm is imported

Importing this module imports neither torch nor timm: the names are registered as soon as timm is there.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from mgm_train.model_config import MODEL_SIZES

if TYPE_CHECKING:
    from mgm_train.models.videomae import VideoClassifier

REGISTRY = "timm.models._registry"


def timm_name(size: str) -> str:
    """The name in timm's registry of a model size; `num_frames`, `img_size` and `patch_px` are arguments."""
    return f"mgm_{size}_patch16_224"


def register() -> None:
    """Register the models with timm now if it has been imported, otherwise when it is."""
    if REGISTRY in sys.modules:
        _register_all(sys.modules[REGISTRY])
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder:
    """Finds timm's registry as Python would, and registers our models once its module has run."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                _register_all(module)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def _register_all(registry: Any) -> None:
    for size in MODEL_SIZES:
        if not registry.is_model(timm_name(size)):
            registry.register_model(_entrypoint(size))


def _entrypoint(size: str) -> Callable[..., "VideoClassifier"]:
    """The function that timm calls with the arguments of `create_model`."""

    def create(**arguments: Any) -> "VideoClassifier":
        from mgm_train.models.timm_classifier import create_classifier

        return create_classifier(size, **arguments)

    create.__name__ = create.__qualname__ = timm_name(size)
    return create

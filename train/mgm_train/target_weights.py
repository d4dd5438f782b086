"""The targets of pretraining and their weights, as `--target` names them. torch is not imported here."""

import math

from mgm_shared.errors import UserError

# In the order of their outputs in the model.
TARGETS = ("pixels", "rgb", "hog", "difference", "trajectory", "kmeans")
# Those that a second decoder predicts, where the model has one.
MOTION_TARGETS = ("difference", "trajectory")
NEEDED = f"one or several of {', '.join(TARGETS)}, joined by +, each with a weight if it is not 1: pixels+hog:0.5"


def target_weights(text: str) -> dict[str, float]:
    """Targets and weights of a text like `pixels+hog:0.5`, in the order of `TARGETS`. UserError for another text."""
    weights: dict[str, float] = {}
    for part in text.split("+"):
        name, colon, number = part.strip().partition(":")
        name = name.strip()
        if name not in TARGETS or name in weights:
            raise _wrong(text)
        try:
            weights[name] = float(number) if colon else 1.0
        except ValueError:
            raise _wrong(text) from None
        if not (math.isfinite(weights[name]) and weights[name] > 0):
            raise _wrong(text)
    return {name: weights[name] for name in TARGETS if name in weights}


def target_text(weights: dict[str, float]) -> str:
    """The shortest text for which `target_weights` returns these weights."""
    return "+".join(name if weight == 1 else f"{name}:{weight!r}" for name, weight in weights.items())


def _wrong(text: str) -> UserError:
    return UserError(f"target is {text!r} but must be {NEEDED}")

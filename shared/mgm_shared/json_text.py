"""Strict JSON: what every parser reads. Python's own writer puts bare NaN and Infinity, which JSON does not have."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: object, indent: int | None = None) -> str:
    """`value` as JSON; a number that is not finite becomes null, an object of another type its text."""
    return json.dumps(_finite(value), indent=indent, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value

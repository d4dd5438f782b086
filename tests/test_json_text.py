"""JSON that every parser reads."""

import json
import math

import numpy as np

from mgm_shared.json_text import to_json


def _strict(text: str) -> object:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null_wherever_they_are() -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], "d": np.float64("nan"), "nan": "NaN"}
    assert _strict(to_json(value)) == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": None, "nan": "NaN"}


def test_finite_values_are_written_as_python_writes_them() -> None:
    row = {"step": 1, "loss": 0.1 + 0.2, "lr": 1e-9, "ok": True, "none": None, "text": "höher\n", "deep": {"x": [0.0]}}
    assert to_json(row) == json.dumps(row)
    assert to_json(row, indent=2) == json.dumps(row, indent=2)

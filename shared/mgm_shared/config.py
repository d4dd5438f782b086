"""Configurations as frozen dataclasses whose fields are at once CLI options, YAML keys and notebook arguments."""

from dataclasses import Field, asdict, field, fields
from typing import Any, Self

from mgm_shared.errors import UserError


def option(default: Any, help: str) -> Any:
    """A dataclass field whose `metadata["help"]` the command line prints."""
    return field(default=default, metadata={"help": help})


def to_dict(config: object) -> dict[str, Any]:
    """The configuration as plain YAML values: a tuple becomes a list."""
    values = asdict(config)  # type: ignore[call-overload]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


class Config:
    """Base of the configuration dataclasses."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain YAML values; an unknown key is a UserError that lists the known ones."""
        items = fields(cls)  # type: ignore[arg-type]
        known = [item.name for item in items]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"unknown setting {', '.join(unknown)}; there are: {', '.join(known)}")
        return cls(**{item.name: _typed(item, values[item.name]) for item in items if item.name in values})


def _typed(item: Field[Any], value: Any) -> Any:
    """`value` as the type of the field's default. YAML 1.1 reads 1e-3 as text and 1 as an int."""
    kind = type(item.default)
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif kind is tuple and isinstance(value, list | tuple):
        return tuple(float(part) for part in value)
    elif type(value) is kind:
        return value
    raise UserError(f"{item.name.replace('_', '-')} is {value!r} but must be of type {kind.__name__}")


def check(is_good: bool, name: str, value: object, needed: str) -> None:
    """UserError naming the setting, its value and what it must be, unless `is_good`."""
    if not is_good:
        raise UserError(f"{name.replace('_', '-')} is {value!r} but must be {needed}")

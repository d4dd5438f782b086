"""Typed configurations: one declaration of each option serves the command line, YAML files and Python.

A configuration is a frozen pydantic model. A field declares the type, the default, the bounds and the help of an
option. `base_lr` in Python is `base_lr` in YAML and `--base-lr` on the command line, and all three are checked by the
same rules: a whole number is never made of 4.9 or of true.
"""

from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from mgm_shared.errors import UserError

# Options of earlier versions. Their error names the new option; remove an entry one release after the rename.
RENAMED_OPTIONS = {
    "accumulate": "grad_accum_steps",
    "recompute": "grad_checkpointing",
    "max_bad_clips": "max_unreadable_videos",
}


def option(
    default: Any,
    help: str,
    *,
    group: str = "Options",
    may_change: bool = False,
    may_be_scheduled: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare a field of a `Config`.

    Args:
        default: Value when nobody sets the option.
        help: Sentence for `--help`.
        group: Heading in `--help` under which the option is listed.
        may_change: Whether a resumed run may set another value.
        may_be_scheduled: Whether the command line also takes a schedule, such as 128@0,224@0.8, as a text.
        ge, gt, le, lt: Bounds of a number; for a tuple, of each of its numbers.
    """
    extra: Any = {"group": group, "may_change": may_change, "may_be_scheduled": may_be_scheduled}
    return Field(default, description=help, json_schema_extra=extra, ge=ge, gt=gt, le=le, lt=lt)


def with_default(configuration: "type[Config]", name: str, default: Any, *, may_be_scheduled: bool = False) -> Any:
    """The option `name` of a base configuration with another default; everything else stays as declared there.

    `may_be_scheduled` as for `option`.
    """
    field = configuration.model_fields[name]
    extra: Any = extra_of(field) | {"may_be_scheduled": may_be_scheduled}
    return FieldInfo.merge_field_infos(field, default=default, json_schema_extra=extra)


class Config(BaseModel):
    """Base class of the configurations. A wrong value or an unknown option raises a one-line UserError.

    `model_fields_set` holds the names of the options that were given; the others have their defaults.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(_describe(error, self)) from None

    @model_validator(mode="before")
    @classmethod
    def _accept_lists(cls, values: dict[str, Any]) -> dict[str, Any]:
        """YAML and JSON have lists where Python has tuples."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """All options as plain YAML values: a tuple becomes a list."""
        values = self.model_dump()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def replace(self, **changes: Any) -> Self:
        """A checked copy with other values. Options that were not given stay not given."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**(given | changes))

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of all options, in the order of their declaration."""
        return list(cls.model_fields)

    @classmethod
    def changeable(cls) -> set[str]:
        """The names of the options that may change when a run is resumed."""
        return {name for name, field in cls.model_fields.items() if extra_of(field)["may_change"]}


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """What `option` recorded of a field beside its type, default and bounds."""
    extra: Any = field.json_schema_extra
    return dict(extra)


def words_and_kind(annotation: Any) -> tuple[tuple[str, ...], Any]:
    """The words that an option takes beside another type, and that type: (("auto",), int) of `int | Literal["auto"]`.

    An option without words has its own type, such as `Literal` for words alone.
    """
    parts = () if get_origin(annotation) in (Literal, tuple) else get_args(annotation)
    words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    others = [part for part in parts if get_origin(part) is not Literal]
    return (words, others[0]) if words else ((), annotation)


def flag(name: str) -> str:
    """An option as people type it: `base-lr` for `base_lr`."""
    return name.replace("_", "-")


def check(is_good: bool, name: str, value: object, needed: str) -> None:
    """Raise a UserError that names the option, its value and what it must be, unless `is_good`."""
    if not is_good:
        raise UserError(f"{flag(name)} is {value!r} but must be {needed}")


def renamed(name: str) -> str:
    """What to say about an option of an earlier version; empty for all other names."""
    new = RENAMED_OPTIONS.get(name.replace("-", "_"))
    return f"{flag(name)} is now called {flag(new)}" if new else ""


TYPE_NAMES: dict[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
}
BOUNDS: dict[str, tuple[str, Literal["ge", "gt", "le", "lt"]]] = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def _describe(error: ValidationError, config: Config) -> str:
    """The first mistake in one line."""
    mistake = error.errors()[0]
    name, kind = str(mistake["loc"][0]), mistake["type"]
    if kind == "extra_forbidden":
        return renamed(name) or f"unknown option {flag(name)}; the options are: {', '.join(config.option_names())}"
    given: Any = mistake["input"] if len(mistake["loc"]) == 1 or kind != "missing" else "a list"
    words, _ = words_and_kind(type(config).model_fields[name].annotation)
    needed = [*words, _needed(kind, mistake.get("ctx", {}), type(config), name)]
    return f"{flag(name)} is {given!r} but must be {' or '.join(needed)}"


def _needed(kind: str, context: dict[str, Any], configuration: type[Config], name: str) -> str:
    if kind in BOUNDS:
        words, key = BOUNDS[kind]
        return f"{words} {context[key]:g}"
    if kind == "literal_error":
        return f"one of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    if kind in ("missing", "too_long"):
        default = configuration.model_fields[name].default
        return f"a list of {len(default)} numbers"
    return TYPE_NAMES.get(kind, "another value")

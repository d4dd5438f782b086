"""Options of a command from a configuration: one for each field, --config for a recipe, --print-config to write one."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo

from mgm_shared.cli import IS_PRINTED
from mgm_shared.config import Config, check, extra_of, flag, words_and_kind
from mgm_shared.errors import UserError
from mgm_shared.recipe import read_recipe, recipe_text, section_names
from mgm_shared.recipes import find_recipe, list_recipes

# Where the options of a --config file wait in click's context for the command.
FROM_FILE = "mgm_shared.config_options.from_file"
# Options of a command that are no part of what it does.
NOT_IN_RECIPES = {"is_json", "print_config", "config_file", "dry_run"}

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class RecipeType(click.Path):
    """The path of a recipe, or the name of a packaged one."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        heads = {name: head for name, head in list_recipes().items() if name.startswith(incomplete)}
        names = [CompletionItem(name, help=head) for name, head in heads.items()]
        return [*names, *super().shell_complete(ctx, param, incomplete)]


def config_options(configuration: type[Config]) -> Callable[[Decorated], Decorated]:
    """Add an option for each field, --config and --print-config. The command receives the configuration as `config`.

    An option on the command line beats the file, the file beats the default. `config.model_fields_set` has the options
    that were given in either way.
    """

    def decorate(function: Decorated) -> Decorated:
        @functools.wraps(function)
        def command(print_config: bool, **arguments: Any) -> Any:
            context = click.get_current_context()
            parsed = {name: arguments.pop(name) for name in configuration.option_names()}
            given = {name: value for name, value in parsed.items() if _is_given(context, name)}
            config = configuration(**(context.meta.get(FROM_FILE, {}) | given))
            return _print(context, config) if print_config else function(config=config, **arguments)

        wrapped: Any = command
        for name, field in reversed(configuration.model_fields.items()):
            wrapped = _option_of(name, field)(wrapped)
        wrapped.configuration = configuration
        result: Decorated = _config_option(_print_option(wrapped))
        return result

    return decorate


def _config_option(command: Any) -> Any:
    return click.option(
        "--config",
        "config_file",
        type=RecipeType(path_type=Path),
        metavar="RECIPE",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="YAML file with a section for each command, or the name of a packaged recipe, such as ssv2.",
    )(command)


def _print_option(command: Any) -> Any:
    words = "Print the options that would be used as a recipe for --config, and do nothing."
    return click.option("--print-config", is_flag=True, help=words)(command)


def _print(context: click.Context, config: Config) -> None:
    """Print the recipe that stands for this command line: its configuration, and the other options that were given."""
    others = {
        parameter.name: _plain(context.params[parameter.name])
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        and parameter.name in context.params
        and parameter.name not in NOT_IN_RECIPES | set(config.option_names())
        and _is_given(context, parameter.name)
    }
    context.meta[IS_PRINTED] = True
    click.echo(recipe_text(context.info_name or "", config, others), nl=False)


def _plain(value: Any) -> Any:
    """An option's value as YAML has it."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float) else str(value)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


class ConfigOption(click.Option):
    """An option that is a field of a configuration; `group` is its heading in --help."""

    def __init__(self, *arguments: Any, group: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group = group


class _NumberList(click.ParamType[tuple[float, ...]]):
    """Any number of numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(item) for item in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 1e-3,1e-4", param, ctx)


class _NumberOrWord(click.ParamType[float | str]):
    """A number, or one of some words; the configuration checks the bounds."""

    def __init__(self, words: tuple[str, ...], number: type[int] | type[float]) -> None:
        self.words, self.number = words, number
        self.name = "|".join((*words, "integer" if number is int else "float"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value in self.words:
            return str(value)
        try:
            return self.number(value)
        except ValueError:
            noun = "a whole number" if self.number is int else "a number"
            self.fail(f"{value!r} is neither {' nor '.join(self.words)} nor {noun}", param, ctx)


class _NumberOrSchedule(click.ParamType[int | str]):
    """A number, or a schedule such as 128@0,224@0.8, which the configuration checks."""

    def __init__(self, number: click.ParamType[Any]) -> None:
        self.number, self.name = number, f"{number.name}|schedule"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, str) and "@" in value:
            return value
        number: int = self.number.convert(value, param, ctx)
        return number


def _option_of(name: str, field: FieldInfo) -> Callable[[Any], Any]:
    """`--base-lr FLOAT`, `--flip/--no-flip`, `--betas FLOAT FLOAT`; type, bounds, default and help are the field's."""
    shared: dict[str, Any] = {
        "cls": ConfigOption,
        "group": extra_of(field)["group"],
        "default": field.default,
        "show_default": True,
        "help": f"{field.description}.",
    }
    words, kind = words_and_kind(field.annotation)
    if kind is bool:
        if words:
            # A flag has no third value: where neither is given, the default of the configuration holds.
            shared |= {"default": None, "show_default": str(field.default)}
        return click.option(f"--{flag(name)}/--no-{flag(name)}", name, **shared)
    if get_origin(kind) is tuple and Ellipsis in get_args(kind):
        shared |= {"type": _NumberList(), "show_default": ",".join(f"{number:g}" for number in field.default)}
    elif get_origin(kind) is tuple:
        shared |= {"type": float, "nargs": len(get_args(kind))}
    elif words:
        shared["type"] = _NumberOrWord(words, get_args(kind)[0] if get_origin(kind) is Annotated else kind)
    elif get_origin(kind) is Literal:
        shared["type"] = click.Choice(get_args(kind))
    elif kind in (int, float):
        shared["type"] = _range_of(field)
    if extra_of(field)["may_be_scheduled"]:
        shared["type"] = _NumberOrSchedule(shared["type"])
    return click.option(f"--{flag(name)}", name, **shared)


def _range_of(field: FieldInfo) -> click.ParamType[Any]:
    """The type of a number with its bounds, so that --help shows them and click checks them."""
    bounds = {
        key: getattr(bound, key) for bound in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(bound, key)
    }
    kind = click.IntRange if field.annotation is int else click.FloatRange
    if not bounds:
        return click.INT if field.annotation is int else click.FLOAT
    return kind(
        min=bounds.get("ge", bounds.get("gt")),
        max=bounds.get("le", bounds.get("lt")),
        min_open="gt" in bounds,
        max_open="lt" in bounds,
    )


def _read_config(ctx: click.Context, parameter: click.Parameter, file: Path | None) -> None:
    """Take this command's options from a recipe: those of its configuration as they are, the others as if typed."""
    if file is None:
        return
    file = find_recipe(file)
    command = ctx.info_name or ""
    program = ctx.parent.command if ctx.parent else ctx.command
    siblings = program.commands if isinstance(program, click.Group) else {command: ctx.command}
    names = {name: _option_names(sibling) for name, sibling in siblings.items()}
    recipe = read_recipe(file, program.name or "", names)
    if command not in (there := section_names(file)):
        raise UserError(f"{file} has no section `{command}`, only {', '.join(there) or 'no section at all'}")
    fields = set(getattr(ctx.command.callback, "configuration", Config).option_names())
    ctx.meta[FROM_FILE] = {name: value for name, value in recipe[command].items() if name in fields}
    typed = {name: _as_typed(name, value) for name, value in recipe[command].items() if name not in fields}
    ctx.default_map = {**(ctx.default_map or {}), **typed}


def _as_typed(name: str, value: Any) -> str | list[str]:
    """A YAML value as a person would type it, so that click checks it as it checks the command line."""
    check(value is not None, name, value, "a value")
    return [str(item) for item in value] if isinstance(value, list) else str(value)


def _option_names(command: click.Command) -> set[str]:
    return {option.name for option in command.params if isinstance(option, click.Option) and option.name}

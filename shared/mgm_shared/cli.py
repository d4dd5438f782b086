"""What both command lines share: options from a configuration, --config files, one-line errors, --json.

Exit codes: 0 done · 1 unexpected error (with its traceback) · 2 usage or bad input · 3 finished, some videos failed ·
130 interrupted.
"""

import errno
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from mgm_shared.config import Config, check, extra_of, flag, renamed, words_and_kind
from mgm_shared.errors import UserError
from mgm_shared.json_text import to_json
from mgm_shared.objects import Url
from mgm_shared.printable import one_line
from mgm_shared.recipe import read_recipe, section_names
from mgm_shared.storage import StorePath, store_path

EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

# Errors that the user can mend, such as a full disk or a missing permission: they get one line, no traceback.
USERS_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM,
    errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE,
}  # fmt: skip
# So do these where they name the file: it was moved or deleted, or something else has its name.
USERS_FILE_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}

# Where the options of a --config file wait in click's context for the command.
FROM_FILE = "mgm_shared.cli.from_file"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Command(click.Command):
    """A command that lists the options of its configuration under headings, and knows the names of earlier versions."""

    def option_groups(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """The options and their help by heading, in the order of --help: those of no configuration come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            # click 8.5 has a record for an argument too, which is no option and stands in the usage line.
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        return dict(sorted(groups.items(), key=lambda item: item[0] == "Options"))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, records in self.option_groups(ctx).items():
            with formatter.section(group):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if told := renamed(error.option_name.lstrip("-")):
                raise UserError(f"--{told.replace('called ', 'called --')}") from None
            raise


class Program(click.Group):
    """A command group that lists its commands in the order of work and turns a UserError into one line and exit 2."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            place = error.ctx.command_path if error.ctx else ctx.info_name
            click.echo(f"{place}: {error.format_message()} See {place} --help", err=True)
        except UserError as error:
            # A DataLoader's worker sends its error with a traceback in front.
            message = str(error).strip().rpartition("UserError: ")[2]
            click.echo(f"{ctx.info_name}: {one_line(message)}", err=True)
        except OSError as error:
            if error.errno not in USERS_ERRNOS | (USERS_FILE_ERRNOS if error.filename else set()):
                raise
            place = one_line(str(error.filename or "cannot write"))
            click.echo(f"{ctx.info_name}: {place}: {error.strerror}", err=True)
        except KeyboardInterrupt:
            say("stopped")
            ctx.exit(EXIT_INTERRUPTED)
        ctx.exit(EXIT_BAD_INPUT)


class StoreType(click.Path):
    """The place of a store: a local path or a URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return store_path(value)


store_argument = click.argument("store", type=StoreType())
json_option = click.option("--json", "is_json", is_flag=True, help="Print one JSON object on stdout.")
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
force_option = click.option("--force", is_flag=True, help="Start over; what is there is moved aside, not deleted.")


def config_options(configuration: type[Config]) -> Callable[[Decorated], Decorated]:
    """Add an option for each field of a configuration, and --config. The command receives it as `config`.

    An option on the command line beats the file, the file beats the default. `config.model_fields_set` has the options
    that were given in either way.
    """

    def decorate(function: Decorated) -> Decorated:
        @functools.wraps(function)
        def command(**arguments: Any) -> Any:
            context = click.get_current_context()
            parsed = {name: arguments.pop(name) for name in configuration.option_names()}
            given = {name: value for name, value in parsed.items() if _is_given(context, name)}
            config = configuration(**(context.meta.get(FROM_FILE, {}) | given))
            return function(config=config, **arguments)

        wrapped: Any = command
        for name, field in reversed(configuration.model_fields.items()):
            wrapped = _option_of(name, field)(wrapped)
        wrapped.configuration = configuration
        file_option = click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            help="YAML file with a section for each command, such as pipelines/ssv2.yaml.",
        )
        result: Decorated = file_option(wrapped)
        return result

    return decorate


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


class ConfigOption(click.Option):
    """An option that is a field of a configuration; `group` is its heading in --help."""

    def __init__(self, *arguments: Any, group: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group = group


class NumberList(click.ParamType[tuple[float, ...]]):
    """Any number of numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(item) for item in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 1e-3,1e-4", param, ctx)


class NumberOrWord(click.ParamType[int | str]):
    """A whole number, or one of some words; the configuration checks the bounds."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words, self.name = words, "|".join((*words, "integer"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value in self.words:
            return str(value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither {' nor '.join(self.words)} nor a whole number", param, ctx)


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
        shared |= {"type": NumberList(), "show_default": ",".join(f"{number:g}" for number in field.default)}
    elif get_origin(kind) is tuple:
        shared |= {"type": float, "nargs": len(get_args(kind))}
    elif words:
        shared["type"] = NumberOrWord(words)
    elif get_origin(kind) is Literal:
        shared["type"] = click.Choice(get_args(kind))
    elif kind in (int, float):
        shared["type"] = _range_of(field)
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


def emit(result: dict[str, Any], is_json: bool) -> None:
    """Print the result of a command on stdout: one JSON object, or one line per value."""
    if is_json:
        click.echo(to_json(result))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {one_line(str(value))}")


def say(line: str) -> None:
    """Print a line on stderr; stdout is for results."""
    click.echo(one_line(line), err=True)


def move_aside(path: StorePath) -> Path | None:
    """Rename `path` to the first free `path.old-N`; None when there is nothing to move. UserError for a URL."""
    if isinstance(path, Url):
        raise UserError(f"--force moves what is there aside, which {path} cannot; delete it, or take another place")
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def is_terminal() -> bool:
    """Whether stderr is a terminal, where a progress bar makes sense."""
    return sys.stderr.isatty()

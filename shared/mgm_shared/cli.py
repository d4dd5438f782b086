"""The manners that both programs share: options made from a configuration, --config files, one-line errors, --json.

Exit codes: 0 done · 1 unexpected error (with its traceback) · 2 usage or bad input · 3 finished, some videos failed ·
130 interrupted.
"""

import errno
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from mgm_shared.errors import UserError
from mgm_shared.objects import Url
from mgm_shared.storage import StorePath, store_path

EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

# A full disk, a missing permission: the user's to mend, and no place for a traceback.
USERS_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Program(click.Group):
    """A command group that lists its commands in the order of work and turns a UserError into one line and exit 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            # A DataLoader's worker sends its error with a traceback in front.
            message = str(error).strip().rpartition("UserError: ")[2]
            click.echo(f"{ctx.info_name}: {message}", err=True)
        except OSError as error:
            if error.errno not in USERS_ERRNOS:
                raise
            click.echo(f"{ctx.info_name}: {error.filename or 'cannot write'}: {error.strerror}", err=True)
        except KeyboardInterrupt:
            say("stopped")
            ctx.exit(EXIT_INTERRUPTED)
        ctx.exit(EXIT_BAD_INPUT)


class StoreType(click.Path):
    """A store's place: a local path, or a URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return store_path(value)


store_argument = click.argument("store", type=StoreType())
json_option = click.option("--json", "is_json", is_flag=True, help="Print one JSON object on stdout.")
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
force_option = click.option("--force", is_flag=True, help="Start over; what is there is moved aside, not deleted.")


def config_options(configuration: type) -> Callable[[Decorated], Decorated]:
    """An option for each field of a configuration dataclass, and --config. The command receives `config`.

    A flag beats the file, the file beats the default. The file has a section for each command, and one of the program's
    name for all of them, of which each command takes what it knows. A key that is no option is an error.
    """

    def decorate(function: Decorated) -> Decorated:
        names = [item.name for item in fields(configuration)]

        @functools.wraps(function)
        def command(**arguments: Any) -> Any:
            values = {name: arguments.pop(name) for name in names}
            return function(config=configuration(**values), **arguments)

        wrapped: Any = command
        for item in reversed(fields(configuration)):
            wrapped = _option_of(item)(wrapped)
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


def _option_of(item: Field[Any]) -> Callable[[Any], Any]:
    """`--base-lr FLOAT`, `--flip/--no-flip`, `--betas FLOAT FLOAT`; the default and the help are the field's."""
    flag = f"--{item.name.replace('_', '-')}"
    shared: dict[str, Any] = {"default": item.default, "show_default": True, "help": item.metadata.get("help")}
    if isinstance(item.default, bool):
        return click.option(f"{flag}/--no-{flag[2:]}", item.name, **shared)
    if isinstance(item.default, tuple):
        return click.option(flag, item.name, type=float, nargs=len(item.default), **shared)
    choices = item.metadata.get("choices")
    return click.option(flag, item.name, type=click.Choice(choices) if choices else type(item.default), **shared)


def _read_config(ctx: click.Context, parameter: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    try:
        sections = yaml.safe_load(file.read_text()) or {}
    except OSError:
        raise UserError(f"{file} cannot be read; give a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    command = ctx.info_name or ""
    if not isinstance(sections, dict) or command not in sections:
        there = ", ".join(map(str, sections if isinstance(sections, dict) else ())) or "no section at all"
        raise UserError(f"{file} has no section `{command}`, only {there}")
    program = ctx.parent.command if ctx.parent else ctx.command
    siblings = program.commands.values() if isinstance(program, click.Group) else [ctx.command]
    own = _option_names(ctx.command)
    shared = _section(file, sections, program.name or "", set().union(*map(_option_names, siblings)))
    section = _section(file, sections, command, own)
    shared = {name: value for name, value in shared.items() if name in own}
    ctx.default_map = {**(ctx.default_map or {}), **shared, **section}


def _option_names(command: click.Command) -> set[str]:
    return {option.name for option in command.params if isinstance(option, click.Option) and option.name}


def _section(file: Path, sections: dict[str, Any], name: str, known: set[str]) -> dict[str, Any]:
    """The settings under a name, {} where there are none. UserError for one that is not known."""
    section = sections.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{file}: the section `{name}` must hold `key: value` lines")
    if unknown := sorted(str(key) for key in section.keys() - known):
        raise UserError(f"{file}: `{name}` has no setting {', '.join(unknown)}; see its --help")
    return section


def emit(result: dict[str, Any], is_json: bool) -> None:
    """A command's result on stdout: one JSON object, or a line a value."""
    if is_json:
        click.echo(json.dumps(result, default=str))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {value}")


def say(line: str) -> None:
    """A line for the person who waits: on stderr, so that stdout stays the result's."""
    click.echo(line, err=True)


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
    """Whether progress bars make sense."""
    return sys.stderr.isatty()

"""What both command lines share: one-line errors, --json, -v and -q, --version, and the next step after a command.

Exit codes: 0 done · 1 unexpected error (with its traceback) · 2 usage or bad input · 3 finished, some videos failed ·
130 interrupted.
"""

import errno
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from mgm_shared.completion import START_FILES, Shell, completion_script
from mgm_shared.config import renamed
from mgm_shared.errors import UserError
from mgm_shared.json_text import to_json
from mgm_shared.objects import Url
from mgm_shared.printable import one_line
from mgm_shared.progress import TerminalProgress
from mgm_shared.storage import StorePath, store_path
from mgm_shared.versions import version_lines

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

# Where click's context has -v (1) and -q (-1), and that a command printed its configuration instead of running.
VERBOSITY, IS_PRINTED = "mgm_shared.cli.verbosity", "mgm_shared.cli.is_printed"

NextStep = str | Callable[[Mapping[str, Any]], str]
"""The command to run after a command: text with `{store}` and so on for the values of its options, or a function."""


def _verbosity_options() -> list[click.Option]:
    def option(name: str, level: int, help: str) -> click.Option:
        def keep(ctx: click.Context, parameter: click.Parameter, is_given: bool) -> None:
            if is_given:
                ctx.meta[VERBOSITY] = level

        return click.Option([name[1:3], name], is_flag=True, expose_value=False, callback=keep, help=help)

    return [
        option("--verbose", 1, "Show the log of the libraries, and where an error comes from."),
        option("--quiet", -1, "Show results and problems only, no progress."),
    ]


def verbosity() -> int:
    """1 after -v, -1 after -q, otherwise 0."""
    context = click.get_current_context(silent=True)
    return int(context.meta.get(VERBOSITY, 0)) if context else 0


class Command(click.Command):
    """A command that lists the options of its configuration under headings, and knows the names of earlier versions.

    It has -v and -q. Its last line names the next step, if its program knows one.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.extend(_verbosity_options())

    def invoke(self, ctx: click.Context) -> Any:
        if verbosity() > 0:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        result = super().invoke(ctx)
        steps = getattr(ctx.parent.command, "next_steps", {}) if ctx.parent else {}
        if self.name in steps and not ctx.params.get("is_json") and IS_PRINTED not in ctx.meta and _is_main_process():
            say(f"next: {_next_step(steps[self.name], ctx.params)}")
        return result

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

    def __init__(self, *arguments: Any, next_steps: Mapping[str, NextStep] | None = None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.extend(_verbosity_options())
        self.next_steps = next_steps or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            place = error.ctx.command_path if error.ctx else ctx.info_name
            click.echo(f"{place}: {error.format_message()} See {place} --help", err=True)
        except UserError as error:
            if verbosity() > 0:
                traceback.print_exc()
            # A DataLoader's worker sends its error with a traceback in front.
            message = str(error).strip().rpartition("UserError: ")[2]
            click.echo(f"{ctx.info_name}: {one_line(message)}", err=True)
        except OSError as error:
            if error.errno not in USERS_ERRNOS | (USERS_FILE_ERRNOS if error.filename else set()):
                raise
            place = one_line(str(error.filename or "cannot write"))
            click.echo(f"{ctx.info_name}: {place}: {error.strerror}", err=True)
        except KeyboardInterrupt:
            complain("stopped")
            ctx.exit(EXIT_INTERRUPTED)
        ctx.exit(EXIT_BAD_INPUT)


def _next_step(step: NextStep, options: Mapping[str, Any]) -> str:
    if options.get("dry_run"):
        return "the same command without --dry-run"
    if not isinstance(step, str):
        return step(options)
    return step.format_map({name: quoted(value) for name, value in options.items()})


def quoted(value: object) -> str:
    """A value as a word of a shell command."""
    return shlex.quote(str(value))


def _is_main_process() -> bool:
    """Whether this is the process of a torchrun that prints."""
    return os.environ.get("RANK", "0") == "0"


class StoreType(click.Path):
    """The place of a store: a local path or a URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return store_path(value)


store_argument = click.argument("store", type=StoreType())
json_option = click.option("--json", "is_json", is_flag=True, help="Print one JSON object on stdout.")
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def version_option(*libraries: str) -> Callable[[Any], Any]:
    """Add --version, which prints the versions of mgm, Python and these libraries."""

    def show(ctx: click.Context, parameter: click.Parameter, is_given: bool) -> None:
        if is_given and not ctx.resilient_parsing:
            click.echo("\n".join(version_lines(ctx.info_name or "mgm", libraries)))
            ctx.exit()

    options: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": show}
    return click.option("--version", **options, help="Show the version, and those of the libraries.")


force_option = click.option("--force", is_flag=True, help="Start over; what is there is moved aside, not deleted.")


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(list(START_FILES)), metavar="SHELL")
@click.pass_context
def completion_command(context: click.Context, shell: Shell) -> None:
    """Print the script that completes commands and options in SHELL: bash, zsh or fish.

    The first lines of the script say where it belongs.
    """
    program = context.find_root().command.name
    click.echo(completion_script(program or "", shell))


def emit(result: dict[str, Any], is_json: bool) -> None:
    """Print the result of a command on stdout: one JSON object, or one line per value."""
    if is_json:
        click.echo(to_json(result))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {one_line(str(value))}")


def emit_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows on stdout: a line each, columns separated by tabs, `-` where there is nothing."""
    for row in rows:
        click.echo("\t".join(map(_cell, row.values())))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else one_line(str(value))


def say(line: str) -> None:
    """Print a line on stderr, unless -q was given; stdout is for results."""
    if verbosity() >= 0:
        complain(line)


def complain(line: str) -> None:
    """Print a problem on stderr."""
    click.echo(one_line(line), err=True)


def shown_progress() -> TerminalProgress:
    """The progress of a command: lines and a bar on stderr, or nothing with -q."""
    return TerminalProgress(is_quiet=verbosity() < 0)


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

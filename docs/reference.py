"""A mkdocs hook: writes the reference pages from the programs and configurations themselves.

In a page, a line `<!-- commands: mgm_prep.cli -->` becomes the reference of that program, and a line
`<!-- options: mgm_train.PretrainConfig -->` the table of that configuration.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc
from typing import Any, get_args

import click

from mgm_shared.cli import Command
from mgm_shared.config import Config, extra_of

MARKER = re.compile(r"^<!-- (commands|options): ([\w.]+) -->$", re.MULTILINE)
# What click writes behind a help text: [default: 4; x>=1].
EXTRA = re.compile(r"  (\[[^\]]*\])$")
# Scripts, styles, fonts and pictures that a page would fetch from elsewhere. Links that a reader clicks are fine.
FETCHED = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?https?:|<link[^>]+stylesheet[^>]+href=\"?https?:")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""
    return MARKER.sub(lambda match: "\n".join(GENERATORS[match[1]](match[2])), markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Fail when a page would fetch something from the network while it is read."""
    if found := FETCHED.search(output):
        raise click.ClickException(f"{page.file.src_uri} would fetch from the network: {found[0]}…")
    return output


def program_lines(module: str) -> Iterator[str]:
    """The reference of a click program: what its --help and that of its commands say."""
    program: click.Group = import_module(module).main
    context = click.Context(program, info_name=program.name)
    yield f"{cleandoc(program.help or '')}\n"
    for name in program.list_commands(context):
        yield from command_lines(program.commands[name], context)


def command_lines(command: click.Command, program: click.Context) -> Iterator[str]:
    """The heading, usage, text, example and options of a command, the options under the headings of --help."""
    context = click.Context(command, info_name=command.name, parent=program, terminal_width=1000)
    yield f"### {context.command_path}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield f"{cleandoc(command.help or '')}\n"
    if command.epilog:
        yield f"Example:\n\n```text\n{command.epilog.removeprefix('Example: ')}\n```\n"
    assert isinstance(command, Command)
    for heading, records in command.option_groups(context).items():
        yield f"**{heading}**\n"
        rows = [[f"`{option}`", EXTRA.sub(r" `\1`", text)] for option, text in records]
        yield from table_lines(["Option", "Meaning"], rows)


def option_lines(path: str) -> Iterator[str]:
    """The options of a configuration, as keyword arguments in Python and keys in YAML."""
    module, _, name = path.rpartition(".")
    configuration: type[Config] = getattr(import_module(module), name)
    groups: dict[str, list[list[str]]] = {}
    for key, field in configuration.model_fields.items():
        choices = get_args(field.annotation) if isinstance(field.default, str) else ()
        meaning = f"{field.description}." + (f" One of {', '.join(map(repr, choices))}." if choices else "")
        groups.setdefault(extra_of(field)["group"], []).append([f"`{key}`", f"`{field.default!r}`", meaning])
    for heading, rows in groups.items():
        yield f"**{heading}**\n"
        yield from table_lines(["Field", "Default", "Meaning"], rows)


def table_lines(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table, and an empty line."""
    for cells in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(map(cell_text, cells)) + " |"
    yield ""


def cell_text(text: str) -> str:
    """Text for a cell of a table: one line, and a bar outside code does not end the cell."""
    return re.sub(r"(`[^`]*`)|\|", lambda match: match[1] or "&#124;", " ".join(text.split()))


GENERATORS = {"commands": program_lines, "options": option_lines}

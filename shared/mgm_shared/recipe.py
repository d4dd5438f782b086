"""Recipes: YAML files with a section of options for each command, and one for all commands of a program."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from mgm_shared.config import Config, extra_of, flag, renamed
from mgm_shared.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, which YAML 1.1 reads as text, and a key may stand only once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} is set twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = dict(yaml.SafeLoader.yaml_implicit_resolvers)
for _start in "+-.0123456789":
    _Loader.yaml_implicit_resolvers[_start] = [
        ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")),
        *yaml.SafeLoader.yaml_implicit_resolvers.get(_start, []),
    ]


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError when the file cannot be read, is not UTF-8 YAML, or holds no mapping."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); give a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    return mapping(str(file), {} if values is None else values)


def mapping(place: str, values: Any) -> dict[str, Any]:
    """`values` if it is a mapping with text keys. UserError that names `place` otherwise."""
    if not isinstance(values, dict):
        raise UserError(f"{place} must hold `key: value` lines")
    return {str(key): value for key, value in values.items()}


def read_recipe(file: Path, program: str, commands: Mapping[str, Collection[str]]) -> dict[str, dict[str, Any]]:
    """The options that a recipe sets for each command.

    Args:
        file: The YAML file.
        program: Name of the section that holds options for all commands; each command takes the ones it has.
        commands: The names of the options of each command.

    Returns:
        Options by command. An option in the section of a command beats one in the section of the program.

    Raises:
        UserError: A section is no mapping, or sets an option that no command, or not this command, has.
    """
    sections = read_yaml(file)
    shared = _section(file, sections, program, set().union(*commands.values()))
    merged = {}
    for command in commands:
        own = _section(file, sections, command, commands[command])
        merged[command] = {name: value for name, value in shared.items() if name in commands[command]} | own
    return merged


def section_names(file: Path) -> list[str]:
    """The sections of a recipe."""
    return list(read_yaml(file))


def _section(file: Path, sections: Mapping[str, Any], name: str, known: Collection[str]) -> dict[str, Any]:
    """The options under a name, {} where there are none. UserError for one that is not known."""
    section = mapping(f"{file}: the section `{name}`", {} if sections.get(name) is None else sections[name])
    for key in section:
        if key not in known:
            raise UserError(f"{file}: {renamed(key) or f'`{name}` has no option {flag(key)}; see its --help'}")
    return section


def recipe_text(command: str, config: Config, others: Mapping[str, Any] | None = None) -> str:
    """A recipe with one section, from which the command builds an equal configuration.

    Options that were not given are comments: the defaults of some are chosen from the data and the machine, which an
    option that is set would prevent.

    Args:
        command: Name of the section.
        config: The options of the command.
        others: Options of the command that are no part of its configuration.
    """
    head = "# Options in comments were not given: they have these defaults, or are chosen when the command starts."
    lines = [head, "", f"{command}:", *(f"  {_yaml(name, value)}" for name, value in (others or {}).items())]
    groups: dict[str, list[str]] = {}
    for name, value in config.to_dict().items():
        mark = "" if name in config.model_fields_set else "# "
        heading = extra_of(type(config).model_fields[name])["group"]
        groups.setdefault(heading, []).append(f"  {mark}{_yaml(name, value)}")
    for heading, group in groups.items():
        lines += ["", f"  # {heading}", *group]
    return "\n".join(lines) + "\n"


def _yaml(name: str, value: Any) -> str:
    """`key: value` in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    # A scalar alone is a document, which PyYAML closes.
    return f"{name}: {text.removesuffix('...' + chr(10)).rstrip()}"

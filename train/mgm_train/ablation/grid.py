"""The grid of an ablation: a recipe, the options that its tables vary, and the seeds.

    recipe: ssv2.yaml                     the options of all runs,
    settings: {pretrain.epochs: 200}      with these changes
    seeds: [0, 1, 2]                      each row of a table is run with each seed
    tests: [evaluate, probe]              a fine-tuned model, or also a frozen encoder; by default the first
    stores: {corpus: corpus.store}        names of other stores to pretrain on
    tables:
      mask ratio:
        mask_ratio: [0.5, 0.75, 0.9]      an axis: an option and its values,
      mask type:
        mask: {Random Tube: tube}         or an option and labelled values,
      backbone:
        backbone:                         or any name, with the options that each label sets
          ViT-S: {model: vit_small}
          TimeSformer: {model: vit_base, attention: divided}
      pretraining:
        pretrain_on: {scratch: none, other videos: corpus}   none, or a name of `stores`, instead of the store itself

A table with several axes has a row for each combination of their labels. `pretrain.epochs` is the option of one
section; without a section, `epochs` is that of all sections that have it, but of the probe only where the grid has
probes. Rows with the same settings are one run.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgm_shared.config import Config
from mgm_shared.errors import UserError
from mgm_shared.recipe import mapping, read_recipe, read_yaml
from mgm_shared.recipes import find_recipe
from mgm_train.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig

SECTIONS: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "probe": ProbeConfig,
}
TESTS = ("evaluate", "probe")
# The section of a recipe with options for all commands.
PROGRAM = "mgm-train"
KEYS = ("recipe", "settings", "seeds", "tests", "stores", "tables")
# A setting of the run itself, and its values for a pretraining on the store, and for none at all.
PRETRAIN_ON = "pretrain_on"
SAME_STORE, NO_PRETRAINING = "", "none"
# Options that cannot be varied, and why.
RESERVED = {"seed": "list them under `seeds`", "init": "a run is fine-tuned from its own pretraining"}

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a table: the settings of each label, and the labels' values if all of them are numbers."""

    name: str
    settings: Mapping[str, Settings]
    numbers: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: a configuration for each section, and a folder name for each, by what the run varies up to there.

    `pretrain_on` is the store of the pretraining: empty for that of the labels, "none" for no pretraining. `tests` are
    of `TESTS`; a probe needs a pretraining.
    """

    seed: int
    configs: Mapping[str, Config]
    names: Mapping[str, str]
    pretrain_on: str = SAME_STORE
    tests: tuple[str, ...] = TESTS[:1]

    @property
    def is_pretrained(self) -> bool:
        return self.pretrain_on != NO_PRETRAINING

    @property
    def name(self) -> str:
        return self.names["evaluate"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the runs of a grid have in common: options for each section, the tests, other stores, and a pretraining."""

    options: Mapping[str, dict[str, Any]]
    tests: tuple[str, ...]
    stores: Mapping[str, str]
    pretrain_on: str = SAME_STORE

    def sections(self, place: str, key: Any) -> list[str]:
        """The sections that have the option `key`. UserError if there is none, or if the option cannot be varied."""
        section, _, field = str(key).rpartition(".")
        known = [name for name in SECTIONS if name != "probe" or "probe" in self.tests]
        found = [name for name in known if section in ("", name) and field in SECTIONS[name].option_names()]
        if not found:
            raise UserError(f"{place}: {key} is no setting of {section or ', '.join(known)}")
        if field in RESERVED:
            raise UserError(f"{place}: {key} cannot be varied; {RESERVED[field]}")
        return found

    def store(self, place: str, name: Any) -> str:
        """The store of the pretraining that a value of `pretrain_on` names. UserError for an unknown name."""
        if name not in (SAME_STORE, NO_PRETRAINING, *self.stores):
            known = ", ".join((NO_PRETRAINING, *self.stores))
            raise UserError(f"{place}: {PRETRAIN_ON} is {name!r}; it is one of {known}, where `stores` has the names")
        return self.stores.get(name, str(name))


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """A row of a table: its label on each axis, and one run per seed."""

    labels: tuple[str, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its axes, and a row for each combination of their labels."""

    name: str
    axes: tuple[Axis, ...]
    rows: tuple[GridRow, ...]


def read_grid(file: Path) -> list[Table]:
    """Read the tables of a grid file, or of a packaged one. UserError for an unknown key, option or value."""
    file = find_recipe(file)
    grid = read_yaml(file)
    _refuse_unknown(str(file), grid, KEYS)
    named = _read_recipe(_recipe_of(file, str(grid["recipe"]))) if "recipe" in grid else {name: {} for name in SECTIONS}
    base = _base(file, grid, named)
    seeds = grid.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise UserError(f"{file}: `seeds` must be a list of whole numbers")
    tables = mapping(f"{file}: `tables`", grid.get("tables") or {})
    if not tables:
        raise UserError(f"{file} has no `tables`; see `mgm-train recipe show ablation`")
    read = [_table(f"{file}: table `{name}`", str(name), tables[name], base, seeds) for name in tables]
    _refuse_namesakes(file, read)
    return read


def _recipe_of(file: Path, recipe: str) -> Path:
    """The recipe that a grid names: a path from the grid's folder, or the bare name of a packaged one."""
    beside = file.parent / recipe
    return beside if beside.is_file() or Path(recipe).suffix else find_recipe(Path(recipe))


def _base(file: Path, grid: Mapping[str, Any], options: dict[str, dict[str, Any]]) -> Base:
    tests = grid.get("tests", list(TESTS[:1]))
    if not isinstance(tests, list) or not tests:
        raise UserError(f"{file}: `tests` must be a list of {', '.join(TESTS)}")
    _refuse_unknown(f"{file}: `tests`", tests, TESTS)
    stores = {str(name): str(path) for name, path in mapping(f"{file}: `stores`", grid.get("stores") or {}).items()}
    base = Base(options=options, tests=tuple(test for test in TESTS if test in tests), stores=stores)
    place = f"{file}: `settings`"
    settings = dict(mapping(place, grid.get("settings") or {}))
    pretrain_on = base.store(place, settings.pop(PRETRAIN_ON, SAME_STORE))
    for key, value in settings.items():
        for section in base.sections(place, key):
            options[section][key.rpartition(".")[2]] = value
    return replace(base, pretrain_on=pretrain_on)


def choose(tables: list[Table], names: Iterable[str]) -> list[Table]:
    """The tables with these names, or all tables if no name is given. UserError for an unknown name."""
    by_name = {table.name: table for table in tables}
    _refuse_unknown("the grid", names, by_name)
    return [by_name[name] for name in names] or tables


def runs_of(tables: Iterable[Table]) -> list[Run]:
    """The runs of the tables in order, without repetitions.

    All rows of a table are run with the first seed, then all with the second: a grid that is cut short holds whole
    comparisons of fewer seeds.
    """
    by_seed = [runs for table in tables for runs in zip(*[row.runs for row in table.rows], strict=True)]
    return list({run.name: run for runs in by_seed for run in runs}.values())


def _read_recipe(file: Path) -> dict[str, dict[str, Any]]:
    """The options that a recipe sets for each section, including those for all commands."""
    commands = {name: kind.option_names() for name, kind in SECTIONS.items()}
    recipe = read_recipe(file, PROGRAM, commands)
    return {name: recipe.get(name, {}) for name in SECTIONS}


def _refuse_namesakes(file: Path, tables: Iterable[Table]) -> None:
    """UserError if two runs with different settings would get the same folder name."""
    configs: dict[tuple[str, str], tuple[Config, str]] = {}
    for run in [run for table in tables for row in table.rows for run in row.runs]:
        for section, options in run.configs.items():
            values = options, run.pretrain_on
            if configs.setdefault((section, run.names[section]), values) != values:
                raise UserError(f"{file}: two different runs would be named {run.names[section]}; change a value")


def _refuse_unknown(place: str, asked: Iterable[Any], known: Iterable[str]) -> None:
    known = list(known)
    unknown = [str(key) for key in asked if key not in known]
    if unknown:
        raise UserError(f"{place} has no {', '.join(unknown)}; there are: {', '.join(known)}")


def _table(place: str, name: str, axes: Any, base: Base, seeds: list[int]) -> Table:
    named = [_axis(place, str(axis), values, base) for axis, values in mapping(place, axes).items()]
    rows = []
    for labels in itertools.product(*(axis.settings for axis in named)):
        varied: dict[str, Any] = {}
        for axis, label in zip(named, labels, strict=True):
            varied |= axis.settings[label]
        try:
            runs = tuple(_run(place, varied, base, seed) for seed in seeds)
        except UserError as error:
            raise UserError(f"{place}, {', '.join(labels)}: {error}") from None
        rows.append(GridRow(labels=labels, runs=runs))
    return Table(name=name, axes=tuple(named), rows=tuple(rows))


def _axis(place: str, name: str, choices: Any, base: Base) -> Axis:
    numbers: Mapping[str, float] = {}
    if isinstance(choices, list):
        choices = {str(choice): choice for choice in choices}
        numbers = choices if {type(choice) for choice in choices.values()} <= {int, float} else {}
    elif isinstance(choices, dict) and {type(label) for label in choices} <= {int, float}:
        numbers = {str(label): label for label in choices}
    if not isinstance(choices, dict) or not choices:
        raise UserError(f"{place}: {name} must hold a list of values, or `label: value` lines")
    settings = {str(label): choice if isinstance(choice, dict) else {name: choice} for label, choice in choices.items()}
    for key in {key: None for varied in settings.values() for key in varied if key != PRETRAIN_ON}:
        base.sections(place, key)
    return Axis(name=name, settings=settings, numbers=numbers)


def _run(place: str, varied: Settings, base: Base, seed: int) -> Run:
    options = {key: value for key, value in varied.items() if key != PRETRAIN_ON}
    pretrain_on = base.store(place, varied[PRETRAIN_ON]) if PRETRAIN_ON in varied else base.pretrain_on
    of_run = [f"{PRETRAIN_ON}={varied[PRETRAIN_ON]}"] if pretrain_on != base.pretrain_on else []
    sections_of = {key: base.sections(place, key) for key in options}
    configs: dict[str, Config] = {}
    changes: dict[str, list[str]] = {}
    for section, kind in SECTIONS.items():
        plain = kind(**base.options[section])
        own = {key.rpartition(".")[2]: value for key, value in options.items() if section in sections_of[key]}
        seeded = {"seed": seed} if hasattr(plain, "seed") else {}
        configs[section] = kind(**(base.options[section] | own | seeded))
        changes[section] = [
            f"{key}={options[key]}"
            for key in options
            if section in sections_of[key]
            and getattr(configs[section], key.rpartition(".")[2]) != getattr(plain, key.rpartition(".")[2])
        ]
    names = {}
    for section in SECTIONS:
        # A test is of all that comes before it, but a probe of the pretraining alone.
        before = ("pretrain",) if section == "probe" else list(SECTIONS)[: list(SECTIONS).index(section)]
        # A key of several sections is named once.
        named = dict.fromkeys([*of_run, *(change for name in (*before, section) for change in changes[name])])
        names[section] = _file_name([*sorted(named), f"seed={seed}"])
    return Run(seed=seed, configs=configs, names=names, pretrain_on=pretrain_on, tests=base.tests)


def _file_name(parts: Iterable[str]) -> str:
    return re.sub(r"[^\w.,=+-]+", "-", ",".join(parts))

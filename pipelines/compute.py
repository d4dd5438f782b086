"""The compute of the recipes and of the rows of the paper's tables, calculated by `mgm_train.models.flops`.

    python pipelines/compute.py            # say which written numbers differ; exit code 1 if any does
    python pipelines/compute.py --write    # write them into pipelines/*.yaml and docs/paper-tables.md

GMAC: billions of multiplications, each with its addition, of the forward pass of one clip, averaged over the run. "÷
VideoMAE" is the compute of a whole training, forward and backward, over that of VideoMAE's pretraining on the same
videos: ViT-B, 16 frames of 224 px, tube masks of ratio 0.9, 800 epochs.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import yaml
from click.testing import CliRunner

from mgm_train.ablation.grid import read_grid, runs_of
from mgm_train.cli import main as mgm_train
from mgm_train.config import FinetuneConfig, PretrainConfig
from mgm_train.models.flops import finetune_flops, mean_flops, mean_gmacs

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "pipelines"
TABLES = ROOT / "docs" / "paper-tables.md"
VIDEOMAE = PretrainConfig(mask="tube", mask_ratio=0.9, epochs=800)
COLUMNS = ("GMAC a clip", "÷ VideoMAE")
HEAD = "Compute, calculated (pipelines/compute.py): "
REFERENCE = "VideoMAE's 800 epochs of pretraining on the same videos"
# The number of classes hardly counts.
NUM_CLASSES = 400


def training(config: PretrainConfig | FinetuneConfig) -> float:
    """Operations for each video over all epochs of a training."""
    if isinstance(config, PretrainConfig):
        return config.epochs * config.repeats * mean_flops(config)
    return config.epochs * config.repeats * float(finetune_flops(config.shape, NUM_CLASSES))


def gmacs(config: PretrainConfig | FinetuneConfig) -> float:
    """Billions of multiply-adds of the forward pass of a clip."""
    if isinstance(config, PretrainConfig):
        return mean_gmacs(config)
    shape = config.shape
    embedding = 2 * shape.grid.num_tokens * shape.patch.num_values * shape.width
    # The patch embedding counts twice in forward and backward, everything else three times.
    return (finetune_flops(shape, NUM_CLASSES) + embedding) / 6e9


def share(operations: float) -> str:
    """Operations for each video as a multiple of VideoMAE's pretraining."""
    value = operations / training(VIDEOMAE)
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


@cache
def config_of(command: str) -> PretrainConfig | FinetuneConfig:
    """The configuration of a `mgm-train pretrain …` or `mgm-train finetune …`, as --print-config has it."""
    words = command.replace("pipelines/", f"{RECIPES}/").split()[1:]
    result = CliRunner().invoke(mgm_train, [*words, "--print-config"])
    if result.exit_code:
        raise RuntimeError(f"{command}: {result.output}")
    (options,) = yaml.safe_load(result.stdout).values()
    kinds: dict[str, Callable[..., Any]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
    options = {name: value for name, value in (options or {}).items() if name != "run"}
    config: PretrainConfig | FinetuneConfig = kinds[words[0]](**options)
    return config


def recipe_line(file: Path) -> str:
    """The paragraph of compute in the head of a recipe or a grid, as comments."""
    text = yaml.safe_load(file.read_text())
    if "tables" in text:
        runs = {run.names["pretrain"]: run.configs["pretrain"] for run in runs_of(read_grid(file)) if run.is_pretrained}
        configs = [config for config in runs.values() if isinstance(config, PretrainConfig)]
        each = sorted(gmacs(config) for config in configs)
        total = share(sum(training(config) for config in configs))
        return _comment(f"pretraining {each[0]:.1f} to {each[-1]:.1f} GMAC a clip; all of it {total} × {REFERENCE}.")
    said = []
    for task in ("pretrain", "finetune"):
        if task in text:
            config = config_of(f"mgm-train {task} x.store --run x --config pipelines/{file.name}")
            name = {"pretrain": "pretraining", "finetune": "fine-tuning"}[task]
            said.append(f"{name} {gmacs(config):.3g} GMAC a clip, {share(training(config))} ×")
    return _comment(f"{'; '.join(said)} {REFERENCE}.")


def _comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in textwrap.wrap(HEAD + text, 118))


def with_line(file: Path) -> str:
    """The text of a recipe with its paragraph of compute, which is the last one of its head.

    A recipe of action detection alone has none: pretraining was on other videos.
    """
    text = file.read_text()
    if not {"pretrain", "finetune", "tables"} & set(yaml.safe_load(text)):
        return text
    head = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    told = head.split(f"\n#\n# {HEAD}")[0].rstrip()
    return f"{told}\n#\n{recipe_line(file)}\n\n{text[len(head) :].lstrip()}"


def with_columns(page: str) -> str:
    """The page of the paper's tables with the columns of compute."""
    first, *sections = page.split("\n## ")
    pretrained: dict[str, PretrainConfig] = {}
    return "\n## ".join([first, *(_section(section, pretrained) for section in sections)])


def _section(section: str, pretrained: dict[str, PretrainConfig]) -> str:
    lines = section.splitlines(keepends=True)
    table = [number for number, line in enumerate(lines) if line.startswith("|")]
    if not table:
        return section
    header, *_ = (_cells(lines[number]) for number in table)
    width = len(header) - sum(name in COLUMNS for name in header)
    commands = _commands(section)
    for place, number in enumerate(table):
        cells = _cells(lines[number])[:width]
        row = {name.strip("`"): cell.strip("`") for name, cell in zip(header, cells, strict=False)}
        new = COLUMNS if place == 0 else ("---", "---") if place == 1 else _compute(commands, row, pretrained)
        lines[number] = _line(*cells, *new, is_rule=place == 1)
    return "".join(lines)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _line(*cells: str, is_rule: bool) -> str:
    if is_rule:
        return f"|{'|'.join(cells)}|\n"
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"


def _commands(section: str) -> list[str]:
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("mgm-train")]


def _compute(commands: list[str], row: dict[str, str], pretrained: dict[str, PretrainConfig]) -> tuple[str, str]:
    """GMAC of the pretraining, and the compute of the training that makes the run of a row."""
    for name in sorted((name for name in row if name.startswith("$")), key=len, reverse=True):
        commands = [command.replace(name, row[name]) for command in commands]
    run = row["$RUN"]
    made = next((command for command in commands if f"--run runs/{run} " in f"{command} "), None)
    if made is not None:
        config = config_of(made)
        if isinstance(config, PretrainConfig):
            pretrained[run] = config
        return f"{gmacs(config):.1f}", share(training(config))
    if run.endswith("_scratch"):
        config = config_of(f"mgm-train finetune x.store --run x --config pipelines/{run}.yaml")
        return f"{gmacs(config):.1f}", share(training(config))
    before = pretrained[run.removesuffix("-ft")]
    recipe = f"pipelines/{run.split('-')[0]}.yaml"
    tuned = training(config_of(f"mgm-train finetune x.store --run x --config {recipe}")) if run.endswith("-ft") else 0.0
    return f"{gmacs(before):.1f}", share(training(before) + tuned)


def outdated() -> Iterator[tuple[Path, str]]:
    """The files whose written numbers are not the calculated ones, with the text that is right."""
    files = {TABLES: with_columns(TABLES.read_text())}
    files |= {file: with_line(file) for file in sorted(RECIPES.glob("*.yaml"))}
    for file, text in files.items():
        if text != file.read_text():
            yield file, text


@click.command()
@click.option("--write", "is_written", is_flag=True, help="Write the numbers instead of comparing them.")
def main(is_written: bool) -> None:
    """Compare the written numbers of compute with the calculated ones."""
    found = list(outdated())
    for file, text in found:
        click.echo(f"{'written' if is_written else 'differs'}: {file.relative_to(ROOT)}")
        if is_written:
            file.write_text(text)
    raise SystemExit(1 if found and not is_written else 0)


if __name__ == "__main__":
    main()

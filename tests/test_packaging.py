"""What a fresh machine needs is written down in one place, and the commands that the README names exist."""

import configparser
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mgm_prep.cli import main as prep
from mgm_prep.config import ExtractSettings
from mgm_train.cli import main as train
from mgm_train.config import EvaluateConfig, FinetuneConfig, PretrainConfig

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "extract": ExtractSettings,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
}


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_conda_and_pip_install_the_same():
    required = _setup()["options"]["install_requires"].split("\n")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(filter(None, required)) == sorted(entry for entry in pip if not entry.startswith("-e"))
    assert "python=3.12" in environment["dependencies"]


def test_every_package_is_in_the_wheel():
    packages = _setup()["options"]["packages"].split()
    found = {
        init.parent.name for root in ("shared", "preprocess", "train") for init in (ROOT / root).rglob("__init__.py")
    }
    assert found == set(packages)


@pytest.mark.parametrize("recipe", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    sections = yaml.safe_load(recipe.read_text())
    assert sections.keys() == CONFIGS.keys()
    for name, section in sections.items():
        CONFIGS[name].from_dict(section)


def test_every_option_is_a_field_and_every_field_an_option():
    commands = {**prep.commands, **train.commands}
    for name, config in CONFIGS.items():
        options = {option.name for option in commands[name].params}
        assert options >= set(config.__dataclass_fields__), name


@pytest.mark.parametrize("program", [prep, train], ids=["mgm-prep", "mgm-train"])
def test_help_is_there_for_every_command(program):
    runner = CliRunner()
    for arguments in [["--help"], *([name, "--help"] for name in program.commands)]:
        result = runner.invoke(program, arguments)
        assert result.exit_code == 0
        assert "Usage:" in result.output


def test_the_readme_names_commands_and_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for program, command in re.findall(r"(mgm-prep|mgm-train) (\w+) ", text):
        assert command in (prep if program == "mgm-prep" else train).commands, (program, command)
    for make_target in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE):
        assert f"\n{make_target}:" in (ROOT / "Makefile").read_text()
    tree = text.split("```text")[1].split("```")[0]
    folder = None
    for line in tree.splitlines():
        if match := re.match(r"(\S+/)\s", line):
            folder = ROOT / match[1]
            assert folder.is_dir(), line
        elif match := re.match(r"    (\S+\.py)\s", line):
            assert (folder / match[1]).is_file(), line
    for package in ("shared/mgm_shared", "preprocess/mgm_prep", "train/mgm_train"):
        for module in (ROOT / package).glob("*.py"):
            if not module.name.startswith("__"):
                assert f"    {module.name} " in tree, f"README's tree lacks {module}"

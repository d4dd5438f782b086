"""--config: a section for each command, one for all commands of a program, and what a file may not say."""

from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from mgm_shared.cli import Program, config_options
from mgm_shared.config import Config, option


@dataclass(frozen=True, kw_only=True)
class Walk(Config):
    steps: int = option(1, "how many")
    is_fast: bool = option(True, "how")


@dataclass(frozen=True, kw_only=True)
class Swim(Config):
    is_fast: bool = option(True, "how")


@click.group("sport", cls=Program)
def sport() -> None:
    """Two commands that share a setting."""


@sport.command()
@config_options(Walk)
def walk(config: Walk) -> None:
    click.echo(f"{config.steps} {config.is_fast}")


@sport.command()
@config_options(Swim)
def swim(config: Swim) -> None:
    click.echo(f"{config.is_fast}")


def _run(tmp_path, text: str, *arguments: str):
    (tmp_path / "file.yaml").write_text(text)
    name, *rest = arguments
    return CliRunner().invoke(sport, [name, "--config", str(tmp_path / "file.yaml"), *rest])


def test_a_flag_beats_the_commands_section_and_that_the_programs(tmp_path):
    text = "sport: {is_fast: false, steps: 7}\nwalk: {steps: 3}\nswim:\n"
    assert _run(tmp_path, text, "walk").output == "3 False\n"
    assert _run(tmp_path, text, "swim").output == "False\n"
    assert _run(tmp_path, text, "walk", "--steps", "5", "--is-fast").output == "5 True\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swim: {}", "has no section `walk`, only swim"),
        ("", "has no section `walk`, only no section at all"),
        ("- walk", "has no section `walk`"),
        ("sport: {stepz: 7}\nwalk: {}", "`sport` has no setting stepz"),
        ("walk: {stepz: 7}", "`walk` has no setting stepz"),
        ("walk: 7", "the section `walk` must hold `key: value` lines"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, message):
    result = _run(tmp_path, text, "walk")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1

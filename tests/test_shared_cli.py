"""--config: a section for each command, one for all commands of a program, and what a file may not say."""

import errno
import math
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from mgm_shared.cli import Program, emit
from mgm_shared.config import Config, option
from mgm_shared.config_options import config_options
from mgm_shared.recipe import read_yaml


class Walk(Config):
    steps: int = option(1, "How many", group="Legs", ge=1)
    weights: tuple[float, ...] = option((1.0, 2.0), "Dumbbells")
    is_fast: bool = option(True, "how")


class Swim(Config):
    is_fast: bool = option(True, "how")


@click.group("sport", cls=Program)
def sport() -> None:
    """Two commands that share a setting."""


@sport.command()
@config_options(Walk)
@click.option("--loops", type=int, default=1, help="Not of the configuration.")
def walk(config: Walk, loops: int) -> None:
    click.echo(f"{config.steps} {config.is_fast} given: {', '.join(sorted(config.model_fields_set))}")


@sport.command()
@config_options(Swim)
def swim(config: Swim) -> None:
    click.echo(f"{config.is_fast}")


def _run(tmp_path: Path, text: str, *arguments: str) -> Result:
    (tmp_path / "file.yaml").write_text(text)
    name, *rest = arguments
    return CliRunner().invoke(sport, [name, "--config", str(tmp_path / "file.yaml"), *rest])


def test_a_flag_beats_the_commands_section_and_that_the_programs(tmp_path: Path) -> None:
    text = "sport: {is_fast: false, steps: 7}\nwalk: {steps: 3}\nswim:\n"
    assert _run(tmp_path, text, "walk").output == "3 False given: is_fast, steps\n"
    assert _run(tmp_path, text, "swim").output == "False\n"
    assert _run(tmp_path, text, "walk", "--steps", "5", "--is-fast").output == "5 True given: is_fast, steps\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swim: {}", "has no section `walk`, only swim"),
        ("", "has no section `walk`, only no section at all"),
        ("- walk", "must hold `key: value` lines"),
        ("sport: {stepz: 7}\nwalk: {}", "`sport` has no option stepz"),
        ("walk: {stepz: 7}", "`walk` has no option stepz"),
        ("walk: {steps: 4.9}", "steps is 4.9 but must be a whole number"),
        ("walk: {steps: true}", "steps is True but must be a whole number"),
        ("walk: {steps: }", "steps is None but must be a whole number"),
        ("walk: {steps: [4]}", "steps is (4,) but must be a whole number"),
        ("walk: {steps: '4'}", "steps is '4' but must be a whole number"),
        ("walk: {steps: 0}", "steps is 0 but must be at least 1"),
        ("walk: {steps: 1, steps: 2}", "steps is set twice"),
        ("walk: {loops: 1.5}", "'1.5' is not a valid integer"),
        ("walk: {loops: }", "loops is None but must be a value"),
        ("walk: {accumulate: 2}", "accumulate is now called grad-accum-steps"),
        ("walk: [", "is not YAML"),
        ("walk: 7", "the section `walk` must hold `key: value` lines"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    result = _run(tmp_path, text, "walk")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_not_utf8_is_one_line(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "file.yaml").write_bytes("walk: {steps: 2}  # für".encode(encoding))
    result = CliRunner().invoke(sport, ["walk", "--config", str(tmp_path / "file.yaml")])
    assert result.exit_code == 2
    assert "is not UTF-8 text" in result.stderr
    (tmp_path / "file.yaml").write_bytes("walk: {steps: 2}  # für".encode("utf-8-sig"))
    assert (
        CliRunner().invoke(sport, ["walk", "--config", str(tmp_path / "file.yaml")]).output == "2 True given: steps\n"
    )


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("a: 1e-3\nb: 1.5E+2\nc: 12e\nd: -.5e1\n")
    assert read_yaml(tmp_path / "file.yaml") == {"a": 1e-3, "b": 150.0, "c": "12e", "d": -5.0}


def test_the_command_line_is_typed_and_grouped() -> None:
    run = CliRunner().invoke
    assert run(sport, ["walk", "--steps", "2", "--weights", "1e-3,4"]).output == "2 True given: steps, weights\n"
    assert "0 is not in the range x>=1" in run(sport, ["walk", "--steps", "0"]).stderr
    assert "'x' is no list of numbers" in run(sport, ["walk", "--weights", "x"]).stderr
    assert "--accumulate is now called --grad-accum-steps" in run(sport, ["walk", "--accumulate", "2"]).stderr
    text = run(sport, ["walk", "--help"]).output
    assert text.index("Legs:") < text.index("--steps") < text.index("Options:") < text.index("--config")
    assert "[default: (1,2)]" in text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/last.pt"), "run/last.pt: No space left on device"),
        (OSError(errno.EFBIG, "File too large"), "cannot write: File too large"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "run/last.pt"), "run/last.pt: Is a directory"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "run"), "run: No such file or directory"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (OSError("no number"), None),
    ],
)
def test_failures_of_the_system_are_one_line_where_the_user_can_mend_them(
    monkeypatch: pytest.MonkeyPatch, error: Any, line: str | None
) -> None:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(sport.commands["swim"], "callback", fail)
    result = CliRunner().invoke(sport, ["swim"])
    assert result.exit_code == (2 if line else 1)
    assert result.stderr == (f"sport: {line}\n" if line else "")


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"loss": math.nan, "runs": [math.inf, 1.5]}, is_json=True)
    assert capsys.readouterr().out == '{"loss": null, "runs": [null, 1.5]}\n'

"""What is around the commands: recipes by name, --print-config, --version, -v and -q, completion, list, doctor."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

import mgm_prep
import mgm_train
from mgm_prep.cli import main as prep
from mgm_prep.config import ExtractSettings
from mgm_shared import UserError, completion_script, copy_recipe, list_recipes, show_recipe
from mgm_shared.cli import Program
from mgm_shared.config import Config
from mgm_shared.config_options import config_options
from mgm_shared.store import Store
from mgm_train.cli import main as train
from mgm_train.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from mgm_train.data import workers as workers_module
from mgm_train.tasks import doctor as doctor_module
from mgm_train.training.auto_config import Machine

ROOT = Path(__file__).parent.parent
PROGRAMS = {"mgm-prep": prep, "mgm-train": train}
CONFIGS: list[type[Config]] = [ExtractSettings, PretrainConfig, FinetuneConfig, ProbeConfig, EvaluateConfig]


def run(program: click.Group, *words: object) -> Result:
    return CliRunner().invoke(program, list(map(str, words)))


# Recipes


def test_the_packaged_recipes_are_those_of_pipelines() -> None:
    files = {file.stem: file.read_text() for file in (ROOT / "pipelines").glob("*.yaml")}
    assert {name: show_recipe(name) for name in list_recipes()} == files
    lines = run(train, "recipe", "list").output.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == sorted(files)
    assert "Mini-Kinetics-200 (Xie et al. 2018" in " ".join(lines)
    assert run(train, "recipe", "show", "ssv2").stdout.startswith(files["ssv2"])


def test_a_recipe_is_copied_and_never_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "new" / "mine.yaml"
    result = run(train, "recipe", "copy", "k400", mine)
    assert mine.read_text() == (ROOT / "pipelines" / "k400.yaml").read_text()
    assert result.stderr == f"next: edit {mine}, then --config {mine} with any command\n"
    mine.write_text("changed")
    again = run(train, "recipe", "copy", "k400", mine)
    assert (again.exit_code, mine.read_text()) == (2, "changed")
    assert "exists" in again.stderr
    with pytest.raises(UserError, match="no recipe 'nope'; there are: ablation, ava"):
        copy_recipe("nope", tmp_path / "x.yaml")


@pytest.mark.parametrize("words", [["show"], ["copy"], ["copy", "ssv2"], ["show", "nope"], ["show", "ssv2", "x.yaml"]])
def test_a_recipe_command_without_its_arguments_is_one_line(words: list[str]) -> None:
    result = run(train, "recipe", *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@click.group("mgm-train", cls=Program)
def fake() -> None:
    """A program that prints the configuration that it gets."""


@fake.command()
@config_options(PretrainConfig)
@click.option("--labels", multiple=True, type=click.Path(path_type=Path), help="Not of the configuration.")
@click.option("--workers", type=int, help="Not of the configuration.")
@click.option("--force", is_flag=True, help="Not of the configuration.")
def pretrain(config: PretrainConfig, labels: tuple[Path, ...], workers: int | None, force: bool) -> None:
    given = {name: getattr(config, name) for name in sorted(config.model_fields_set)}
    click.echo(json.dumps([given, list(map(str, labels)), workers, force]))


def test_a_bare_name_is_a_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_path = run(fake, "pretrain", "--config", ROOT / "pipelines" / "ssv2.yaml")
    (tmp_path / "ssv2").mkdir()
    by_name = run(fake, "pretrain", "--config", "ssv2")
    assert by_path.output == by_name.output
    assert '"stride": 2' in by_name.output
    shutil.rmtree(tmp_path / "ssv2")
    (tmp_path / "ssv2").write_text("pretrain: {stride: 7}")
    assert '"stride": 7' in run(fake, "pretrain", "--config", "ssv2").output, "a file of that name comes first"
    wrong = run(fake, "pretrain", "--config", "sv2")
    assert wrong.exit_code == 2
    assert "there is no recipe 'sv2'; there are: ablation" in wrong.stderr
    assert "cannot be read" in run(fake, "pretrain", "--config", "ssv2.yaml").stderr


def test_both_programs_and_a_grid_take_a_name(
    pan_store: Store, pan_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extracted = run(prep, "extract", pan_videos, "new.store", "--config", "ssv2", "--dry-run", "--json")
    assert extracted.exit_code == 0, extracted.output
    runs = {
        name: json.loads(run(train, "ablate", grid, pan_store.path, "--dry-run", "--json").stdout)
        for name, grid in (("by name", "ablation"), ("by path", ROOT / "pipelines" / "ablation.yaml"))
    }
    assert runs["by name"] == runs["by path"]
    (tmp_path / "own.yaml").write_text("recipe: ssv2\ntables: {a: {mask: [tube, mgm]}}\n")
    own = json.loads(run(train, "ablate", "own.yaml", pan_store.path, "--dry-run", "--json").stdout)
    assert own["num_runs"] == 2


# --print-config


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--config", "ssv2"],
        ["--config", "ssv2", "--stride", "3", "--no-flip", "--betas", "0.8", "1e-5", "--min-lr", "3e-7"],
        ["--labels", "a b.csv", "--labels", "on", "--workers", "0", "--force"],
        ["--guidance", "boxes", "--boxes", "yes: no #1"],
    ],
    ids=["nothing", "recipe", "recipe and options", "other options", "text"],
)
def test_the_printed_recipe_gives_the_same_configuration(words: list[str], tmp_path: Path) -> None:
    """The oracle is the run without it: the same values, and the same options count as given."""
    printed = run(fake, "pretrain", *words, "--print-config")
    assert printed.exit_code == 0, printed.output
    (tmp_path / "printed.yaml").write_text(printed.stdout)
    expected = run(fake, "pretrain", *words)
    assert expected.exit_code == 0, expected.output
    assert run(fake, "pretrain", "--config", tmp_path / "printed.yaml").output == expected.output
    # With every comment made a value, it is the whole configuration.
    whole = yaml.safe_load(re.sub(r"^  # (\w+: )", r"  \1", printed.stdout, flags=re.MULTILINE))["pretrain"]
    assert set(PretrainConfig.option_names()) <= whole.keys()


@pytest.mark.parametrize("configuration", CONFIGS)
def test_defaults_survive_being_printed(configuration: type[Config], tmp_path: Path) -> None:
    from mgm_shared.recipe import read_recipe, recipe_text

    everything = configuration(**configuration().to_dict())
    (tmp_path / "all.yaml").write_text(recipe_text("task", everything))
    read = read_recipe(tmp_path / "all.yaml", "mgm", {"task": configuration.option_names()})["task"]
    assert configuration(**read) == everything


def test_nothing_is_done_when_the_configuration_is_printed(pan_videos: Path, pan_store: Store, tmp_path: Path) -> None:
    for program, words in (
        (prep, ["extract", pan_videos, tmp_path / "new.store", "--workers", "0"]),
        (train, ["pretrain", pan_store.path, "--run", tmp_path / "a run"]),
    ):
        result = run(program, *words, "--print-config")
        assert (result.exit_code, result.stderr) == (0, "")
        assert list(yaml.safe_load(result.stdout)) == [words[0]]
    assert yaml.safe_load(result.stdout)["pretrain"]["run"] == str(tmp_path / "a run")
    assert not list(tmp_path.iterdir())


# --version, -v, -q, completion


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_names_the_libraries(program: str) -> None:
    lines = dict(line.split(" ", 1) for line in run(PROGRAMS[program], "--version").output.splitlines())
    for package in ("numpy", "zarr"):
        assert lines[package] == version(package)
    assert lines[{"mgm-prep": "av", "mgm-train": "torch"}[program]]
    assert lines["Python"].startswith(sys.version.split()[0])
    assert program in lines


def test_quiet_shows_results_and_problems_only(pan_store: Store, pan_videos: Path, tmp_path: Path) -> None:
    loud = run(prep, "inspect", pan_store.path)
    quiet = run(prep, "inspect", pan_store.path, "-q")
    assert loud.stdout == quiet.stdout
    assert (quiet.stderr, loud.stderr != "") == ("", True)
    assert run(prep, "-q", "inspect", pan_store.path).stderr == ""
    videos = tmp_path / "videos"
    shutil.copytree(pan_videos, videos)
    (videos / "train" / "left" / "broken.mp4").write_bytes(b"no video")
    result = run(prep, "extract", videos, tmp_path / "new.store", "--workers", "0", "-q")
    assert result.exit_code == 3
    assert re.fullmatch(r"1 videos were rejected; the reasons are in .*\n", result.stderr)
    wrong = run(prep, "inspect", tmp_path / "nothing", "-q")
    assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (2, 1)


def test_verbose_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    result = run(prep, "inspect", tmp_path, "-v")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("mgm-prep: ")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one(program: str, shell: Any) -> None:
    result = run(PROGRAMS[program], "completion", shell)
    assert result.stdout == completion_script(program, shell) + "\n"
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE={shell}_complete"
    assert variable in result.stdout.replace("'", "")
    if path := shutil.which(shell):
        done = subprocess.run([path, "-n"], input=result.stdout, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_an_error() -> None:
    assert run(prep, "completion", "csh").exit_code == 2
    with pytest.raises(UserError, match="no completion for 'csh'"):
        completion_script("mgm-prep", "csh")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("pre", {"pretrain"}),
        ("pretrain --mas", {"--mask", "--mask-ratio"}),
        ("pretrain --config ssv2", {"ssv2", "ssv2_scratch"}),
    ],
)
def test_bash_gets_its_completions(typed: str, expected: set[str]) -> None:
    """What the script asks the program: COMP_WORDS and COMP_CWORD in the environment, as bash sets them."""
    words = ["mgm-train", *typed.split()]
    environment = {
        "_MGM_TRAIN_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    result = CliRunner(env=environment).invoke(train, prog_name="mgm-train")
    assert expected <= {line.partition(",")[2] for line in result.output.splitlines()}


# The next step


def test_every_command_names_a_next_step() -> None:
    for program in PROGRAMS.values():
        assert isinstance(program, Program)
        assert program.commands.keys() - {"completion"} <= program.next_steps.keys()


def test_the_next_step_is_a_command_that_can_be_typed(pan_store: Store, tmp_path: Path) -> None:
    """Also where the path needs quotes; the last line, and none with --json."""
    place = tmp_path / "it's a store"
    shutil.copytree(str(pan_store.path), place)
    (line,) = run(prep, "index", place).stderr.splitlines()[-1:]
    words = shlex.split(line.removeprefix("next: "))
    assert words == ["mgm-prep", "inspect", str(place)]
    assert run(prep, *words[1:]).exit_code == 0
    assert "mgm-prep list" in run(prep, *words[1:]).stderr
    assert run(prep, "index", place, "--json").stderr == ""
    dry = run(train, "pretrain", place, "--run", tmp_path / "r", "--batch-size", "2", "--dry-run")
    assert dry.stderr.splitlines()[-1] == "next: the same command without --dry-run"


def test_one_process_of_several_names_the_next_step(pan_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(prep, "index", pan_store.path).stderr == ""


# list, inspect, visualize


def test_list_names_the_videos(pan_store: Store) -> None:
    """pandas is the oracle."""
    videos = pan_store.videos
    rows = [line.split("\t") for line in run(prep, "list", pan_store.path).stdout.splitlines()]
    assert [row[0] for row in rows] == list(videos.index)
    assert rows[0] == ["test/down/0.mp4", "test", "down", "24", "25", "128", "160"]
    chosen = videos.query("label == 'left' and split == 'train'")
    found = json.loads(run(prep, "list", pan_store.path, "--label", "left", "--split", "train", "--json").stdout)
    assert [row["video_id"] for row in found["videos"]] == list(chosen.index)
    assert found["videos"][0]["fps"] == chosen["fps"].iloc[0]
    assert mgm_prep.list_videos(pan_store, split="test") == mgm_prep.list_videos(str(pan_store.path), split="test")
    for options, message in (
        (["--label", "lft"], "with label 'lft'; there are: down, left, right, up"),
        (["--split", "val"], "with split 'val'; there are: test, train"),
    ):
        result = run(prep, "list", pan_store.path, *options)
        assert result.exit_code == 2
        assert message in result.stderr


def test_commands_take_a_video_as_people_name_it(pan_store: Store, pan_videos: Path) -> None:
    for name in ("train/left/0.mp4", pan_videos / "train/left/0.mp4", "train/le"):
        assert "train/left/0.mp4" in run(prep, "inspect", pan_store.path, name).stdout
        from mgm_train.tasks.visualize import _video

        assert _video(pan_store, str(name), "videos").video_id == "train/left/0.mp4"
    assert "2 ids contain it" in run(prep, "inspect", pan_store.path, "left").stderr
    assert "`mgm-prep list` lists them" in run(prep, "inspect", pan_store.path, "nobody").stderr


# doctor


@pytest.fixture
def no_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile is tried for half a minute; here a program that succeeds at once stands in for it."""
    monkeypatch.setattr(doctor_module, "TRY_COMPILE", "pass")


@pytest.mark.usefixtures("no_compile")
def test_doctor_measures_and_advises(pan_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "READ_S", 0.2)
    result = run(train, "doctor", pan_store.path, "--model", "vit_tiny", "--json")
    assert result.exit_code == 0, result.output
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["Python"]["found"] == sys.version.split()[0]
    assert torch.__version__ in findings["PyTorch"]["found"]
    assert findings["codecs"]["is_good"]
    assert "clips/s on one core" in findings["store"]["found"]
    assert findings["limit"]["advice"]
    for finding in findings.values():
        assert finding["is_good"] or finding["advice"], finding


@pytest.mark.usefixtures("no_compile")
def test_doctor_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    monkeypatch.setattr(av, "codecs_available", {"h264", "mpeg4", "hevc", "vp9"})
    # Docker's default is too small for a batch of the default options.
    for module in (doctor_module, workers_module):
        monkeypatch.setattr(module, "free_shared_bytes", lambda: 64 * 2**20)
    monkeypatch.setattr(doctor_module, "TRY_COMPILE", "raise RuntimeError('no compiler')")
    findings = {finding.name: finding for finding in mgm_train.doctor(model="vit_tiny")}
    assert "not av1" in findings["codecs"].advice
    assert "64 MiB of /dev/shm are free; enlarge it (docker run --shm-size " in findings["shared memory"].advice
    assert "0 data loading processes" in findings["shared memory"].found
    assert "no compiler" in findings["compile"].found
    bad = {name for name, finding in findings.items() if not finding.is_good}
    assert {"codecs", "shared memory", "compile"} <= bad
    assert "limit" not in findings, "no store was given"


def test_doctor_names_the_slower_of_reading_and_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 990 TFLOP/s: the clip of ViT-B at ratio 0.75 takes 0.26 TFLOP, by hand from the paper's sizes."""
    from mgm_train.model_config import model_config

    monkeypatch.setattr(
        doctor_module, "peak", lambda device, dtype: SimpleNamespace(flops_per_s=989.4e12, source="sheet")
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    shape, gpu = model_config("vit_base"), torch.device("cuda")
    computed = 0.45 * doctor_module._trained_per_s(gpu, shape)[0]
    width, visible, tokens, dec, masked = 768, 392, 1568, 384, 1176
    encoder = 12 * (24 * visible * width**2 + 4 * visible**2 * width)
    decoder = 4 * (24 * tokens * dec**2 + 4 * tokens**2 * dec)
    heads = 2 * visible * width * dec + 2 * masked * dec * 1536 + 2 * visible * 1536 * width
    assert computed == pytest.approx(0.45 * 989.4e12 / (3 * (encoder + decoder + heads)), rel=0.1)
    slow, fast = (doctor_module._limit(gpu, shape, factor * computed) for factor in (0.5, 2))
    assert slow.found.startswith("reading")
    assert "--frame-codec planes" in slow.advice
    assert fast.found.startswith("computing")


@pytest.mark.parametrize(
    ("free_gib", "num_workers", "is_good"),
    [
        # 16 cores for each of 2 GPUs, of which one is left for the training process.
        (64, 15, True),
        # 24 GiB hold 32 clips at once, as in one_gpu.yaml: 2 processes × 2 batches × 32 clips × 2.3 MiB for a worker.
        (1, 3, False),
    ],
)
def test_doctor_counts_workers_as_training_does(
    free_gib: float, num_workers: int, is_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mgm_train.model_config import model_config

    monkeypatch.setattr(workers_module, "num_usable_cores", lambda: 32)
    for module in (doctor_module, workers_module):
        monkeypatch.setattr(module, "free_shared_bytes", lambda: free_gib * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    machine = Machine(is_gpu=True, world_size=1, memory_bytes=24 * 2**30)
    monkeypatch.setattr(Machine, "of", lambda config: machine)
    workers = doctor_module.default_workers(torch.device("cuda"), model_config("vit_base"))
    assert workers.number == num_workers
    finding = doctor_module._shared_memory(workers)
    assert finding.is_good == is_good
    assert f"{num_workers} data loading processes for each of 2 GPUs" in finding.found
    assert bool(finding.advice) != is_good


@pytest.mark.parametrize(
    ("has_bf16", "capability", "found", "advice"),
    [
        (True, (9, 0), "bfloat16", ""),
        (False, (7, 0), "float16", "computing in float16, with a loss that is scaled"),
        (False, (6, 1), "float32", "computing in float32"),
    ],
)
def test_doctor_names_the_precision_that_training_takes(
    has_bf16: bool, capability: tuple[int, int], found: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    (finding,) = doctor_module._gpu(torch.device("cuda"))
    assert (finding.name, finding.found, finding.is_good) == ("precision", found, has_bf16)
    assert advice in finding.advice


def test_the_page_on_limits_reads_the_lines_of_doctor_and_names_options_that_exist() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    (section,) = re.findall(r"## What limits my training\n(.*?)\n## ", page, re.DOTALL)
    lines = set(re.findall(r"`([a-z ]+)`", section.split("| sign |")[0])) - {"data_wait"}
    source = Path(doctor_module.__file__).read_text()
    assert lines == {"limit", "store", "shared memory", "compile", "precision"}
    assert lines <= set(re.findall(r'name="([^"]+)"', source))
    options = set(re.findall(r"--([a-z][a-z-]+)", section)) - {"shm-size"}
    known = {*PretrainConfig.option_names(), *FinetuneConfig.option_names(), "frame_codec"}
    assert len(options) > 5
    assert {option.replace("-", "_") for option in options} <= known


@pytest.mark.usefixtures("no_compile")
def test_doctor_says_that_a_store_is_damaged_or_missing(pan_store: Store, tmp_path: Path) -> None:
    assert run(train, "doctor", tmp_path / "nothing").exit_code == 2
    copy = tmp_path / "copy.store"
    shutil.copytree(str(pan_store.path), copy)
    for shard in copy.glob("parts/*/frames/c.*"):
        shard.write_bytes(shard.read_bytes()[:1000])
    result = run(train, "doctor", copy)
    assert result.exit_code == 2
    assert "mgm-prep verify" in result.stderr

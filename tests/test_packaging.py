"""What a fresh machine needs is written down in one place, and the commands that the README names exist."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from mgm_prep.cli import main as prep
from mgm_prep.config import ExtractSettings
from mgm_shared.store import Store
from mgm_train.cli import main as train
from mgm_train.config import DetectConfig, EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig

ROOT = Path(__file__).parent.parent
# ablation.yaml is a grid over a recipe; test_grid.py has it.
RECIPES = [file for file in sorted((ROOT / "pipelines").glob("*.yaml")) if file.stem != "ablation"]
CONFIGS = {
    "extract": ExtractSettings,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "detect": DetectConfig,
    "probe": ProbeConfig,
    "evaluate": EvaluateConfig,
}


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_conda_and_pip_install_the_same() -> None:
    required = _setup()["options"]["install_requires"].split("\n")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(filter(None, required)) == sorted(entry for entry in pip if not entry.startswith("-e"))
    assert "python=3.12" in environment["dependencies"]


def test_every_package_is_in_the_wheel() -> None:
    packages = _setup()["options"]["packages"].split()
    found = {
        ".".join(init.parent.relative_to(ROOT / root).parts)
        for root in ("shared", "preprocess", "train")
        for init in (ROOT / root).rglob("__init__.py")
    }
    assert found == set(packages)


def _build(kind: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel of a source tree with the installed setuptools, without network."""
    code = f"from setuptools.build_meta import build_{kind} as build; import sys; build(sys.argv[1])"
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("sdist")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name, follow_symlinks=False)
    return _build("sdist", folder / "tree", folder / "out")


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def test_the_sdist_holds_what_git_has(unpacked: Path, sdist: Path) -> None:
    tree = sdist.parent.parent / "tree"
    expected = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file() and ".egg-info" not in str(path)}
    there = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    assert expected - there == set()
    assert {path for path in there - expected if path.parts[0] != "mgm.egg-info"} <= {Path("PKG-INFO")}
    for name in expected - {Path("setup.cfg")}:
        assert (unpacked / name).read_bytes() == (tree / name).read_bytes(), name


def test_the_wheel_of_the_sdist_has_the_recipes_and_runs(unpacked: Path, tmp_path: Path) -> None:
    """Installed into a folder of its own, without the checkout on the path."""
    wheel = _build("wheel", unpacked, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for recipe in (ROOT / "pipelines").glob("*.yaml"):
            assert archive.read(f"mgm_shared/recipes/{recipe.name}") == recipe.read_bytes()
        archive.extractall(tmp_path / "site")
    version = _setup()["metadata"]["version"]
    assert {name.split("/")[0] for name in names} == {"mgm_shared", "mgm_prep", "mgm_train", f"mgm-{version}.dist-info"}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for program, words, head in (
        ("mgm_train", ["recipe", "show", "ssv2"], "# Something-Something v2"),
        ("mgm_prep", ["--version"], f"mgm-prep {version}"),
    ):
        command = [sys.executable, "-m", program, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(head)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_its_place_and_is_told_in_its_head(recipe: Any) -> None:
    text = recipe.read_text()
    assert text.startswith("# ")
    head = text.split("\n\n")[0]
    for wanted in (f"--config pipelines/{recipe.name}", "Expected", "Cost"):
        assert wanted in head or recipe.stem == "demo", f"{recipe.name} does not say {wanted}"
    sections = yaml.safe_load(text)
    assert sections.keys() <= CONFIGS.keys() | {"mgm-train"}
    is_ssv2 = recipe.stem.startswith(("ssv2", "demo", "one_gpu"))
    assert sections["mgm-train"]["flip"] != is_ssv2
    assert len(re.findall(r"^ *flip:", text, re.MULTILINE)) == 1, "whether clips are mirrored is set in one place"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a classifier of `pan_store`'s labels."""
    from mgm_train.checkpoint.weights import save_weights
    from mgm_train.model_config import model_config
    from mgm_train.models.videomae import VideoClassifier

    config = model_config("vit_tiny", num_frames=2, image_px=16)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    labels = json.dumps(["down", "left", "right", "up"])
    save_weights(path, VideoClassifier(config, 4).state_dict(), config, {"labels": labels})
    return path


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A class map by which `pan_store` has two training videos in a class, one of which a probe holds out."""
    path = tmp_path_factory.mktemp("classes") / "classes.csv"
    path.write_text("label,class\nleft,sideways\nright,sideways\nup,upright\ndown,upright\n")
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_would_run(
    recipe: Any, pan_videos: Path, pan_store: Store, classifier: Path, two_classes: Any, tmp_path: Path
) -> None:
    """A dry run of each section, in its own size but for the model's, and a step's, which wants more videos."""
    small = ["--batch-size", "4", "--model", "vit_tiny"]
    probed = ["--run", tmp_path / "new", "--init", classifier, "--split", "test", "--class-map", two_classes]
    arguments: dict[str, list[Any]] = {
        "extract": [pan_videos, tmp_path / "new.store"],
        "pretrain": [pan_store.path, "--run", tmp_path / "new", *small],
        "finetune": [pan_store.path, "--run", tmp_path / "new", *small],
        "probe": [pan_store.path, *probed],
        "evaluate": [pan_store.path, classifier, "--split", "test"],
    }
    sections = yaml.safe_load(recipe.read_text())
    for name in sections.keys() & arguments.keys():
        program = prep if name in prep.commands else train
        command = [name, *map(str, arguments[name]), "--config", str(recipe), "--dry-run", "--json"]
        result = CliRunner().invoke(program, command)
        assert result.exit_code == 0, result.stderr
    for name in sections.keys() & CONFIGS.keys():
        CONFIGS[name](**sections[name])
    assert not list(tmp_path.iterdir())


def test_tables_5_and_6() -> None:
    """The paper's own numbers, column by column."""
    rows = {
        "base_lr": (5e-4, 1e-3, 5e-4, 5e-4, 5e-4),
        "layer_decay": (0.75, 0.75, 0.75, 0.7, 0.7),
        "repeats": (2,) * 5,
        "warmup_epochs": (5, 5, 0, 0, 0),
        "epochs": (30, 75, 100, 100, 100),
        "drop_path": (0.1, 0.1, 0.2, 0.2, 0.2),
        "weight_decay": (0.05,) * 5,
        "betas": ([0.9, 0.999],) * 5,
        "batch_size": (128,) * 5,
    }
    names = ("ssv2", "k400", "ucf101", "hmdb51", "diving48")
    recipes = {name: yaml.safe_load((ROOT / "pipelines" / f"{name}.yaml").read_text()) for name in names}
    for key, row in rows.items():
        assert tuple(recipes[name]["finetune"][key] for name in names) == row, key
    detect = yaml.safe_load((ROOT / "pipelines" / "ava.yaml").read_text())["detect"]
    ava = {"base_lr": 2.5e-4, "layer_decay": 0.7, "repeats": 1, "warmup_epochs": 5, "epochs": 30, "drop_path": 0.2}
    assert detect.items() >= {**ava, "weight_decay": 0.05, "betas": [0.9, 0.999], "batch_size": 128}.items()
    views = [
        tuple(recipes[name]["evaluate"][f"num_{axis}_views"] for axis in ("temporal", "spatial")) for name in names
    ]
    assert views == [(2, 3), (5, 3), (5, 3), (5, 3), (5, 3)]
    for name in ("ssv2", "k400"):
        pretraining = {"base_lr": 1.5e-4, "batch_size": 512, "warmup_epochs": 40, "mask_ratio": 0.75, "mask": "mgm"}
        pretraining |= {"weight_decay": 0.05, "betas": [0.9, 0.95]}
        assert recipes[name]["pretrain"].items() >= pretraining.items()
    assert [recipes[name]["mgm-train"]["stride"] for name in ("ssv2", "k400")] == [2, 4]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_a_configuration_is_an_option_with_its_default_and_help(name: Any) -> None:
    command = {**prep.commands, **train.commands}[name]
    options: dict[str | None, Any] = {
        option.name: option for option in command.params if getattr(option, "group", None)
    }
    config: Any = CONFIGS[name]
    fields = config.model_fields
    assert options.keys() == fields.keys()
    for key, field in fields.items():
        option = options[key]
        # A flag has no third value: of `--compile/--no-compile` the default is shown, and holds where neither is given.
        default = option.show_default if option.is_bool_flag and option.default is None else option.default
        assert default == field.default, key
        assert field.description in options[key].help, key


@pytest.mark.parametrize("program", [prep, train], ids=["mgm-prep", "mgm-train"])
def test_help_documents_every_argument_and_option(program: Any) -> None:
    for name, command in program.commands.items():
        text = " ".join(CliRunner().invoke(program, [name, "--help"], terminal_width=200).output.split())
        assert " ".join(command.help.split("\n")[0].split()) in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert re.search(rf"{parameter.opts[0]}[ /,]", text), parameter.name
                assert re.fullmatch(r"\w.*\.(  \[.*\])?", parameter.help or ""), parameter.name
            else:
                assert parameter.name.upper() in text


@pytest.mark.parametrize("arguments", [["mgm_prep", "extract"], ["mgm_train", "finetune"], ["mgm_train"]], ids=" ".join)
def test_help_starts_fast(arguments: list[str]) -> None:
    """Processor time, so that a busy machine does not matter: 0.4 s is the goal; and no heavy library."""
    code = (
        "import sys, time; from importlib import import_module\n"
        "program, *words = sys.argv[1:]; sys.argv = [program, *words, '--help']\n"
        "try: import_module(program + '.cli').main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'av', 'zarr', 'pandas', 'dask'}\n"
        "print(time.process_time(), sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    seconds, modules = done.stderr.split(maxsplit=1)
    assert float(seconds) < 0.8, "twice the goal, for slower machines"
    assert modules.strip() == "[]"


def test_extras_are_named_as_they_can_be_installed() -> None:
    """The name mgm on the package index is another project's, so no message may tell to install `mgm[s3]`."""
    extras = set(_setup()["options.extras_require"])
    files = [
        path for folder in ("shared", "preprocess", "train", "pipelines", "docs") for path in (ROOT / folder).rglob("*")
    ]
    for path in [*files, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]:
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".sh", ".ipynb") or path.name == "Makefile":
            text = path.read_text()
            assert not re.search(r"\bmgm\[", text), path
            for named in re.findall(r"'\.\[([\w,]+)\]'", text):
                assert set(named.split(",")) <= extras, f"{path}: {named}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_local_links_lead_somewhere() -> None:
    """mkdocs checks docs/; README.md and CONTRIBUTING.md lie outside."""
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_the_checks_are_the_same_everywhere() -> None:
    """.ci/run, GitHub's CI and pre-commit run what the Makefile has, on the Python versions that setup.cfg allows."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["check"]
    make = "make lint test docs"
    assert make in (ROOT / ".ci" / "run").read_text()
    assert any(step.get("run", "").startswith(make) for step in job["steps"])
    versions = job["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert _setup()["options"]["python_requires"] == f">={versions[0]}"
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    in_make = {command.split()[0] for command in re.findall(r"\$\(BIN\)/(.*)", lint)}
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local["hooks"]} == in_make


def test_the_citation_has_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == _setup()["metadata"]["version"]
    (paper,) = citation["references"]
    assert paper["title"] == "Motion-Guided Masking for Spatiotemporal Representation Learning"
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Fan", "Wang"]

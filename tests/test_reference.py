"""The reference pages, which docs/reference.py writes from the code, and what holds the site together."""

import importlib.util
import re
from importlib import import_module
from types import ModuleType

import click
import pytest
import yaml
from click.testing import CliRunner
from desk import PROGRAMS, ROOT

from mgm_shared.config import Config


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/reference.py, which mkdocs loads as a hook."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_command_line_reference_says_what_help_says(reference: ModuleType, program: str) -> None:
    """The oracle is the printed --help: the same commands, headings and options in the same order."""
    page = (ROOT / "docs" / "cli.md").read_text()
    written = reference.on_page_markdown(page).split(f"\n## {program}\n")[1].split("\n## ")[0]
    sections = dict(text.split("\n", 1) for text in written.split(f"\n### {program} ")[1:])
    assert list(sections) == list(PROGRAMS[program].commands)
    for name, section in sections.items():
        printed = CliRunner().invoke(PROGRAMS[program], [name, "--help"], terminal_width=200).output
        shown = re.findall(r"^(?:\*\*(.+)\*\*|\| `(.+?)` \|)", section, re.MULTILINE)
        said = re.findall(r"^(?:(\w[\w ]+):|  (-.+?))(?:  .*)?$", printed, re.MULTILINE)
        assert shown == [pair for pair in said if pair[0] != "Usage"], name
        words = " ".join(re.sub(r"[`|*\[\]]|&#124;", " ", section).split())
        for option in PROGRAMS[program].commands[name].params:
            text = re.sub(r"[`|\[\]]", " ", getattr(option, "help", None) or "")
            assert " ".join(text.split()) in words, option.name


def test_the_api_reference_lists_every_public_name() -> None:
    listed = set(re.findall(r"^(?:::: |<!-- options: )([\w.]+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    packages = ("mgm_shared", "mgm_prep", "mgm_train")
    assert listed == {f"{package}.{name}" for package in packages for name in import_module(package).__all__}


def test_every_field_of_a_configuration_is_in_its_table(reference: ModuleType) -> None:
    for package, names in (("mgm_prep", "ExtractSettings FlowSettings"), ("mgm_train", "PretrainConfig ProbeConfig")):
        for name in names.split():
            configuration: type[Config] = getattr(import_module(package), name)
            table = "\n".join(reference.option_lines(f"{package}.{name}"))
            found = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE))
            assert found == {key: repr(field.default) for key, field in configuration.model_fields.items()}


def test_a_page_that_would_fetch_is_refused(reference: ModuleType) -> None:
    page = type("Page", (), {"file": type("File", (), {"src_uri": "x.md"})})
    for tag in ('<script src="https://a.b/c.js">', '<link rel="stylesheet" href="http://a.b/c.css">'):
        with pytest.raises(click.ClickException, match=r"x\.md"):
            reference.on_post_page(tag, page=page)
    link = '<a href="https://example.org">link</a><script src="assets/a.js"></script>'
    assert reference.on_post_page(link, page=page) == link


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = [page for entry in config["nav"] for page in entry.values()]
    notebooks = [f"notebooks/{file.stem}.md" for file in (ROOT / "docs" / "notebooks").glob("*.ipynb")]
    assert sorted(pages) == sorted([*(page.name for page in (ROOT / "docs").glob("*.md")), *notebooks])
    assert config["theme"]["font"] is False


def test_the_tree_of_the_architecture_page_is_the_real_one() -> None:
    """Every folder of the tree exists, and every room is in it."""
    tree = (ROOT / "docs" / "architecture.md").read_text().split("```text\n")[1].split("```")[0]
    folder = ROOT
    rooms = set()
    for line in tree.splitlines():
        ((indent, name),) = re.findall(r"^( *)(\S+)/ ", line)
        if not indent:
            folder = ROOT / name
        assert (folder / name if indent else folder).is_dir(), line
        rooms |= {folder / name} if indent else set()
    packages = ("shared/mgm_shared", "preprocess/mgm_prep", "train/mgm_train")
    assert rooms == {init.parent for package in packages for init in (ROOT / package).glob("*/**/__init__.py")}


def test_the_functions_that_the_architecture_page_walks_through_exist() -> None:
    """A row of its tables names files, each followed by functions, classes and methods of it."""
    roots = [ROOT, ROOT / "shared", *(ROOT / package for package in ("preprocess/mgm_prep", "train/mgm_train"))]
    num_names = 0
    for row in re.findall(r"^\|(.*)\|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE):
        text = ""
        for name in re.findall(r"`([^`]+)`", row.split("|")[1]):
            if name.endswith(".py"):
                (file, *_) = [path for root in roots if (path := root / name).is_file()] or [None]
                assert file is not None, name
                text = file.read_text()
            elif text:
                for part in name.split("."):
                    assert re.search(rf"\b(def|class) {part}\b", text), f"{row}: {name}"
                    num_names += 1
    assert num_names > 20

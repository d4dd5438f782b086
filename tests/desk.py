"""Runs the commands and the Python that pages show, at toy size: a folder with small stores under the names they use.

`test_tables.py` runs the tables of the paper in it, `test_docs.py` README.md and docs/.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
from click.testing import CliRunner
from moving_boxes import write_annotations, write_proposals
from synthetic import write_video

from mgm_prep.cli import main as prep
from mgm_train.cli import main as train

ROOT = Path(__file__).parent.parent
PROGRAMS = {"mgm-prep": prep, "mgm-train": train}

TOY_CLIP = "--model vit_tiny --num-frames 4 --image-px 32"
TOY_RUN = f"{TOY_CLIP} --batch-size 2 --epochs 1 --warmup-epochs 0 --num-workers 0"
# Appended to a command of that name; of an option that is given twice the last one counts.
TOY_OPTIONS = {
    "pretrain": f"{TOY_RUN} --repeats 1",
    "finetune": f"{TOY_RUN} --repeats 1",
    "detect": TOY_RUN,
    "embed": "--num-workers 0",
    "evaluate": "--num-workers 0",
    "probe": "--num-workers 0 --epochs 1",
    "ablate": "--dry-run",
    "codebook": "--num-codes 4 --num-patches 64",
    "flow": "--workers 0 --method farneback",
    "extract": "--workers 0",
    "transcode": "--workers 0",
    "verify": "--workers 0",
}
# What a toy's own options replace, or what has no place on one machine.
REPLACED = re.compile(r"--(epochs|model|method|weights|scheduler|workers|gpus) \S+ ?")
# Keyword arguments of a call in Python, in the place of those that a page shows.
TOY_CALL: dict[str, Any] = {"model": "vit_tiny", "num_frames": 4, "image_px": 32, "batch_size": 2, "epochs": 1}
TOY_CALLS: dict[str, dict[str, Any]] = {
    "PretrainConfig": {**TOY_CALL, "warmup_epochs": 0, "num_workers": 0},
    "FinetuneConfig": {**TOY_CALL, "warmup_epochs": 0, "num_workers": 0, "repeats": 1},
    "DetectConfig": {**TOY_CALL, "warmup_epochs": 0, "num_workers": 0},
    "ProbeConfig": {"epochs": 1, "num_workers": 0},
    "EvaluateConfig": {"num_workers": 0},
    "Execution": {"workers": 0},
}

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+?) -->\n+)?"
    r"(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
# A video file that snippets name.
CLIP = "clip.mp4"
RUN = re.compile(r"(?<!\S)runs/\S+")
STORE = re.compile(r"(?:s3://\S+/)?[\w./-]+\.store")
# `video.frames[0:64:4]  # uint8 (16, 256, 456, 3), and more`
SHOWN_ARRAY = re.compile(r"^(?P<code>\S.*?)  # (?P<dtype>(?:u?int|float)\d+) \((?P<shape>[\d, ]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: the file that it shows, by its title, and why it is not run."""

    language: str
    text: str
    reason: str
    file: str

    def commands(self) -> list[str]:
        """The lines behind `$ `, without comments; a line that ends with a backslash goes on with the next."""
        lines = self.text.replace("\\\n", " ").splitlines()
        shown = [line.removeprefix("$ ").split("  #")[0] for line in lines if line.startswith("$ ")]
        return [" ".join(command.split()) for command in shown]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    return [
        Block(match["language"], dedent(match["text"]), match["reason"] or "", match["file"] or "")
        for match in BLOCK.finditer(page)
    ]


def commands_by_run(commands: list[str]) -> dict[str, str]:
    """The first command that makes each run folder."""
    made: dict[str, str] = {}
    for command in commands:
        if match := re.search(r"--run(?:-dir)? (runs/\S+)", command):
            made.setdefault(match[1], command)
    return made


@dataclass
class Results:
    """What has been run already: commands that come to the same at toy size are run once, whichever page shows them."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)


@dataclass
class Desk:
    """A working directory. A store that a command reads is there, a run that it starts from is made first.

    `stores` has the store behind each name; `default` is the name for every other one. `makers` has the command for
    each run folder. `urls` says which address stands for which.
    """

    folder: Path
    stores: dict[str, Path]
    makers: dict[str, str]
    default: str
    videos: Path
    results: Results
    urls: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("runs", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "pipelines").symlink_to(ROOT / "pipelines")

    def run(self, command: str) -> dict[str, Any]:
        """What the command prints as JSON; nothing of one that does not belong to mgm."""
        words = shlex.split(command)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words[0] == "torchrun":
            words = ["mgm-train", *words[words.index("mgm_train") + 1 :]]
        if words[0] in PROGRAMS:
            return self._run_program(shlex.join(words))
        ELSEWHERE[words[0]](words)
        return {}

    def execute(self, code: str, names: dict[str, Any]) -> None:
        """Run a snippet at toy size; the arrays whose type and shape it shows are compared."""
        tree = ast.fix_missing_locations(ToyCalls().visit(ast.parse(code)))
        for call in _calls(tree, "extract"):
            self._lay_out_videos(_text(call.args[0]))
        for name in _stores(tree):
            self._lay_out(name)
        for call in _calls(tree, "load"):
            self._make_run(_text(call.args[0]))
        if CLIP in code and not (self.folder / CLIP).exists():
            make_toy_video(self.folder / CLIP, 0)
        with chdir(self.folder):
            exec(compile(tree, "snippet", "exec"), names)
            for match in SHOWN_ARRAY.finditer(code):
                array = eval(match["code"], names)
                array = array.numpy() if hasattr(array, "numpy") else np.asarray(array)
                shape = tuple(map(int, match["shape"].replace(" ", "").rstrip(",").split(",")))
                assert (str(array.dtype), array.shape) == (match["dtype"], shape), match[0]

    def _run_program(self, command: str) -> dict[str, Any]:
        own = next(iter(commands_by_run([command])), "")
        for run in dict.fromkeys(RUN.findall(command)):
            if run != own:
                self._make_run(run)
        self._lay_out_inputs(command)
        key = REPLACED.sub("", RUN.sub("RUN", f"{command} "))
        if key not in self.results.values:
            self.results.values[key] = self._invoke(command)
            self.results.folders[key] = (self.folder / own).resolve()
        elif own and not (self.folder / own).exists():
            (self.folder / own).symlink_to(self.results.folders[key])
        return self.results.values[key]

    def _make_run(self, run: str) -> None:
        """Make a run folder by the first command of the pages that makes it."""
        if not (self.folder / run).exists():
            self.run(self.makers[run])

    def _lay_out_inputs(self, command: str) -> None:
        """The videos and the stores that a command reads."""
        _, name, *words = shlex.split(command)
        if name in ("extract", "transcode"):
            self._lay_out_videos(words[0])
        else:
            for word in filter(STORE.fullmatch, words):
                self._lay_out(word)
        if "--source" in words:
            self._lay_out_videos(words[words.index("--source") + 1])

    def _invoke(self, command: str) -> dict[str, Any]:
        """Run a command at toy size, and read its --json."""
        program, name, *_ = command.split()
        words = shlex.split(f"{REPLACED.sub('', f'{command} ')} {TOY_OPTIONS.get(name, '')} --json")[1:]
        words = [self._place(word) for word in words]
        with chdir(self.folder):
            result = CliRunner().invoke(PROGRAMS[program], words)
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output} {result.exception!r}"
        return {**json.loads(result.stdout), "task": name}

    def _place(self, word: str) -> str:
        for url, place in self.urls.items():
            word = word.replace(url, place)
        return re.sub("^~", str(self.folder / "home"), word)

    def _lay_out(self, name: str) -> None:
        """A copy of a toy store under a name that a command or snippet reads."""
        source = self.stores.get(Path(name).stem, self.stores[self.default])
        if "://" in name:
            self._upload(source, self._place(name))
        elif not (self.folder / name).exists():
            shutil.copytree(source, self.folder / name)

    def _upload(self, source: Path, url: str) -> None:
        import fsspec

        files, root = fsspec.core.url_to_fs(url)
        if not files.exists(root):
            files.put(str(source), root, recursive=True)

    def _lay_out_videos(self, name: str) -> None:
        place = self.folder / self._place(name)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.videos, place)


class ToyCalls(ast.NodeTransformer):
    """Gives the calls that TOY_CALLS names their keyword arguments."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if toy := TOY_CALLS.get(name):
            # One `**{…}`, in which a later key replaces an earlier one; the key None is `**` itself.
            keys = [ast.Constant(keyword.arg) if keyword.arg else None for keyword in node.keywords]
            values = [keyword.value for keyword in node.keywords]
            merged = ast.Dict([*keys, *map(ast.Constant, toy)], [*values, *map(ast.Constant, toy.values())])
            node.keywords = [ast.keyword(value=merged)]
        return node


def _stores(tree: ast.AST) -> set[str]:
    """The stores that a snippet names, but for those that it extracts."""
    written = {_text(call.args[1]) for call in _calls(tree, "extract")}
    named = {match[0] for node in ast.walk(tree) if (match := STORE.match(_text(node)))}
    return named - written


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """The calls of a function of that name, or of a method."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in calls if name in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))]


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _check_make(words: list[str]) -> None:
    """The Makefile has the target; nothing is built."""
    subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def _check_pip(words: list[str]) -> None:
    """The extras of `pip install '.[a,b]'` exist."""
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(setup["options.extras_require"]), words


def _run_python(words: list[str]) -> None:
    subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True, capture_output=True, env=os.environ)


ELSEWHERE = {"make": _check_make, "pip": _check_pip, "python": _run_python}


def make_videos(folder: Path) -> Path:
    """Six training and four test videos: 0.mp4 … 9.mp4."""
    for number in range(10):
        make_toy_video(folder / f"{number}.mp4", number)
    return folder


def make_box_files(annotations: Path, proposals: Path, names: list[str]) -> None:
    """Labels and proposals of one key frame with two boxes for each of the toy videos."""
    boxes = [(0.1, 0.1, 0.5, 0.9), (0.4, 0.2, 0.9, 0.8)]
    rows = [(name, 0.2, box, 1 + (number + k) % 2) for number, name in enumerate(names) for k, box in enumerate(boxes)]
    write_annotations(annotations, rows)
    write_proposals(proposals, rows)


def make_toy_video(path: Path, seed: int, num_frames: int = 12, size: tuple[int, int] = (64, 80)) -> None:
    """A texture that moves to the right by two pixels a frame."""
    ground_HWC = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = [np.ascontiguousarray(np.roll(ground_HWC, 2 * t, 1)[: size[0], : size[1]]) for t in range(num_frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames)


def invoke(words: list[str | Path]) -> None:
    """Run mgm-prep for a fixture."""
    result = CliRunner().invoke(prep, list(map(str, words)))
    assert result.exit_code == 0, result.output

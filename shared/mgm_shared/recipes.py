"""The recipes that are installed with mgm. Their home in the repository is `pipelines/`, to which `recipes/` links."""

import re
from pathlib import Path

from mgm_shared.errors import UserError
from mgm_shared.files import replace_file

FOLDER = Path(__file__).parent / "recipes"
SUFFIX = ".yaml"
# Not the one of "et al. 2018".
SENTENCE_END = re.compile(r"(?<! al)\. ")


def list_recipes() -> dict[str, str]:
    """The names of the packaged recipes and grids, with the first sentence of each, sorted by name."""
    return {file.stem: _first_sentence(file) for file in sorted(FOLDER.glob(f"*{SUFFIX}"))}


def _first_sentence(file: Path) -> str:
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip("# ") == "" or not line.startswith("#"):
            break
        lines.append(line.strip("# "))
    return SENTENCE_END.split(" ".join(lines))[0].rstrip(".:")


def show_recipe(name: str) -> str:
    """The text of a packaged recipe, with its comments. UserError for an unknown name."""
    return _packaged(name).read_text(encoding="utf-8")


def copy_recipe(name: str, file: Path) -> Path:
    """Copy a packaged recipe to `file`, to be edited. UserError for an unknown name, or if the file exists."""
    content = show_recipe(name)
    if file.exists():
        raise UserError(f"{file} exists; give another name, or delete it")
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda beside: beside.write_text(content, encoding="utf-8"))
    return file


def find_recipe(place: Path) -> Path:
    """The file that `place` names: a path, or the bare name of a packaged recipe. UserError for an unknown bare name.

    A file of that name in the working directory comes first.
    """
    is_name = len(place.parts) == 1 and not place.suffix
    return _packaged(str(place)) if is_name and not place.is_file() else place


def _packaged(name: str) -> Path:
    names = list_recipes()
    if name not in names:
        raise UserError(f"there is no recipe {name!r}; there are: {', '.join(names)}, or give the path of a YAML file")
    return FOLDER / f"{name}{SUFFIX}"

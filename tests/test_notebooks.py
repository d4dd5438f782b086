"""The notebooks of the documentation run from top to bottom, and their saved outputs are of a whole run."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

import mgm_train

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MAX_BYTES = 500_000


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, in a kernel of its own; a cell that fails raises here."""
    if "mgm_train.load(" in notebook.read_text() and not hasattr(mgm_train, "load"):
        pytest.skip("needs mgm_train.load")
    roots = [str(ROOT / root) for root in ("shared", "preprocess", "train")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    read = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(read, timeout=300, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_saved_outputs_are_of_one_run(notebook: Path) -> None:
    """What the documentation shows: every cell was run once, in order, without an error or a warning."""
    assert notebook.stat().st_size < MAX_BYTES
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        assert "Warning" not in output.get("text", "")
        assert "site-packages" not in str(output), "no path of the machine that ran it"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """docs/notebook_pages.py, which mkdocs loads as a hook."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("nbconvert")
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs" / "notebook_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_shows_every_cell_of_its_notebook(notebook: Path, pages: ModuleType) -> None:
    files = pages.page_of(notebook)
    page = files[f"{notebook.stem}.md"]
    for cell in nbformat.read(notebook, as_version=4).cells:
        for paragraph in cell.source.rstrip(";").split("\n\n"):
            assert paragraph in page
    for name in files.keys() - {f"{notebook.stem}.md"}:
        assert name in page, "each picture is shown"

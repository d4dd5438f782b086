"""A mkdocs hook: makes a page of each notebook in notebooks/, with the outputs that are saved in it. Nothing is run."""

from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the page of each notebook and its pictures; the notebook itself stays, to be downloaded."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        for name, content in page_of(Path(file.abs_src_path or "")).items():
            place = PurePosixPath(file.src_uri).parent / name
            files.append(File.generated(config, str(place), content=content))
    return files


def page_of(notebook: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures, by file name."""
    read = nbformat.read(notebook, as_version=4)
    name = notebook.stem
    text, resources = MarkdownExporter().from_notebook_node(
        read, {"unique_key": name, "output_files_dir": f"{name}_files"}
    )
    head, _, rest = text.partition("\n\n")
    download = f"[Download this notebook]({notebook.name}). It runs as it is; its outputs below are saved in it."
    return {f"{name}.md": f"{head}\n\n{download}\n\n{rest}", **resources["outputs"]}

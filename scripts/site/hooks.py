"""Hooks of MkDocs: drawings of real models, and tutorials executed as notebooks."""

import os
import re
import tempfile
from pathlib import Path

import drawings
import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

os.environ["CI"] = "true"  # no moving bars in a page

_SECONDS = 300  # for one cell
_PROGRAMS = re.compile(r"/[^\s'\"<>]*/bin/(?=\w)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the tutorials and the drawings of the concepts."""
    for source in sorted(Path(config.docs_dir, "tutorials").glob("*.py")):
        if (file := files.get_file_from_path(f"tutorials/{source.name}")) is not None:
            files.remove(file)
        for name, content in executed(source).items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    for name, drawn in drawings.drawn().items():
        files.append(File.generated(config, f"drawings/{name}.svg", content=drawn))
    return files


def executed(source: Path) -> dict[str, str | bytes]:
    """Return the page of a tutorial, its notebook and its pictures, by their names."""
    notebook = jupytext.read(source)
    if not os.environ.get("DOCS_QUICK"):
        with tempfile.TemporaryDirectory() as folder:
            place = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=_SECONDS, resources=place).execute()
    _tidy(notebook)
    page, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"output_files_dir": source.stem, "unique_key": source.stem}
    )
    first, rest = page.lstrip().split("\n", 1)
    link = f"[The notebook]({source.stem}.ipynb), with these outputs."
    return {
        f"{source.stem}.md": f"{first}\n\n{link}\n{rest}",
        f"{source.stem}.ipynb": jupytext.writes(notebook, fmt="ipynb"),
        **resources["outputs"],
    }


def _tidy(notebook: NotebookNode) -> None:
    """Leave out what libraries log, and where this machine has its programs.

    The library's own lines are displayed, not logged, so that none of them is lost.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [one for one in cell.outputs if not _logged(one)]
        for output in cell.outputs:
            said = output if "text" in output else output.get("data", {})
            for kind, text in said.items():
                if isinstance(text, str) and kind.startswith("text"):
                    said[kind] = _PROGRAMS.sub("", text)


def _logged(output: NotebookNode) -> bool:
    """Return whether a library has logged it: to standard error, or as absl does in Jupyter."""
    return output.get("name") == "stderr" or output.get("text", "").startswith("WARNING:")

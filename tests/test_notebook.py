"""examples/first_minutes.ipynb: what it imports exists, it is stored without outputs, and it runs from its first cell on."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_minutes.ipynb"
SECONDS = 180
"""How much time of one core it may take. Not the clock's: other tests may be running."""


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    """A cell's code; what only a notebook understands is left out."""
    return "".join(line if not line.lstrip().startswith("%") else line.replace("%", "pass  # ", 1) for line in cell["source"])


def test_it_is_stored_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
    assert json.loads(NOTEBOOK.read_text())["nbformat"] == 4


def test_what_it_imports_exists() -> None:
    imported = 0
    for cell in code_cells():
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("m3dt_agent"):
                module = importlib.import_module(str(node.module))
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
                imported += 1
    assert imported > 5


def test_it_installs_nothing_where_the_package_is() -> None:
    (install,) = [cell for cell in code_cells() if "%pip" in "".join(cell["source"])]
    tree = ast.parse(source(install))
    (guard,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(guard.test) == "importlib.util.find_spec('m3dt_agent') is None"
    assert [type(node) for node in guard.body] == [ast.Pass]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_it_runs_in_three_minutes(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("mujoco")
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    book.cells.append(nbformat.v4.new_code_cell("import time\nprint(time.process_time())"))
    nbclient.NotebookClient(book, timeout=1_500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for part in ("return -", "of 100", "cheetah-vel-5: 16 episodes", "router: loss", "swing: mean score", "as before: True"):
        assert part in said
    shown = [kind for output in outputs if output.output_type != "stream" for kind in output.data]
    assert "image/png" in shown, "the heat map"
    assert [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"] == []
    assert not list(tmp_path.iterdir()), "everything is written to a folder of its own"
    assert float(said.split()[-1]) < SECONDS

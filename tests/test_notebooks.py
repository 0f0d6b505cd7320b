"""Notebooks run from top to bottom, in the folder of a user who just cloned."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Run before the first cell: four short epochs (the whole run takes minutes: marked slow).
SHORTER = """
from hf_robust_ft.experiments import quickstart as example
example.COMPARED["hinge"] |= {"num_train_epochs": 4, "max_train_samples": 96, "max_eval_samples": 32}
"""


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["01_quickstart.ipynb"]


@pytest.mark.parametrize("length", ["short", pytest.param("whole", marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_its_pictures(path, length, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    if length == "short":
        notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORTER))
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = "".join(output.get("text", "") for output in outputs)
    assert "expected robustness" in printed
    for name in ("model.safetensors", "config.json", "robustness_report.json", "README.md"):
        assert (tmp_path / "quickstart" / name).is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_only_pictures(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert "image/png" in output.get("data", {})

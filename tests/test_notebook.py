"""The quickstart notebook, executed from its first cell to its last."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its execution in an empty folder."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    path = os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    return notebook


def outputs(notebook, kind):
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if kind in output.get("data", ())
    ]


@pytest.mark.slow
def test_it_runs_without_errors_or_warnings(executed):
    said = [
        output["text"]
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    ]
    assert said == []


def test_it_finds_the_plain_net_vanishing_and_its_twin_healthy(executed):
    diagnoses = [text for text in outputs(executed, "text/html") if "at the start" in text]
    assert [text.split("</b>")[0].split(": ")[1] for text in diagnoses] == ["vanishing", "healthy"]


def test_its_figures_are_drawn_inline(executed):
    figures = outputs(executed, "application/vnd.plotly.v1+json")
    assert len(figures) == 3
    assert all(figure["data"] for figure in figures)


def test_it_is_stored_without_outputs():
    stored = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in stored["cells"])

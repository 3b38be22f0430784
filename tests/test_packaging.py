"""What an installation brings, and what PyPI shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradscope.autograd.torch_internals import TESTED

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_an_installation_brings_torch_arrays_and_files_alone():
    bounds = dict(bound.split(">=") for bound in PROJECT["project"]["dependencies"])
    assert set(bounds) == {"torch", "numpy", "pandas", "pyarrow", "filelock"}
    assert bounds["torch"] == TESTED[0]


def test_the_readme_of_pypi_leads_nowhere_that_is_not_there():
    shown = (ROOT / "README.md").read_text()
    assert len(re.findall(r"\]\(docs/", shown)) > 5
    for change in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"][
        "substitutions"
    ]:
        shown = re.sub(change["pattern"], change["replacement"], shown)
    prose = re.sub(r"```.*?```", "", shown, flags=re.DOTALL)
    assert [t for t in re.findall(r"\]\(([^)]+)\)", prose) if not t.startswith("https://")] == []
    assert "*A live run: verdicts, marks and figures follow the training.*" in shown


def test_files_that_the_readme_leads_to_are_there():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (ROOT / target.partition("#")[0]).exists(), target

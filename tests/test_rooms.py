"""Every room imports only from the floors below it, and training needs neither pandas nor dash."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradscope"

RECORDING = ("scope", "recorder", "drain", "decode", "parameters", "gradients", "passes", "plan")


def imports(path):
    """Yield the modules that a file imports, at the top or within functions, but not for types."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_is_no_utils():
    assert not list(ROOT.rglob("gradscope*/**/utils*.py"))


@pytest.mark.parametrize(
    "statement, forbidden",
    [
        ("import gradscope; gradscope.watch", ["pandas", "plotly", "dash", "gradscope.run"]),
        ("import gradscope; gradscope.load", ["torch", "plotly", "dash", "gradscope.scope"]),
        ("import gradscope; gradscope.diagnose", ["torch", "plotly", "dash"]),
        ("import gradscope.plots", ["torch", "dash"]),
    ],
)
def test_a_user_pays_only_for_what_is_used(statement, forbidden):
    script = f"import sys; {statement}; print([m for m in {forbidden} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

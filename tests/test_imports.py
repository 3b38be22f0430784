"""What a user pays for by importing: training needs no pandas, looking at a run no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import gradscope; gradscope.watch", {"pandas", "plotly", "dash", "gradscope.runs"}),
        ("import gradscope; gradscope.load", {"torch", "plotly", "dash", "gradscope.session"}),
        ("import gradscope; gradscope.diagnose", {"torch", "plotly", "dash", "gradscope.session"}),
        ("import gradscope.plots", {"torch", "dash", "gradscope.session"}),
        ("import gradscope_dashboard", {"torch", "gradscope.session"}),
    ],
    ids=["watch", "load", "diagnose", "plots", "dashboard"],
)
def test_a_user_pays_only_for_what_is_used(statement: str, forbidden: set[str]) -> None:
    script = f"import sys; {statement}; print(*sys.modules)"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "dashboard"), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=paths
    )
    imported = set(done.stdout.split())
    assert "gradscope" in imported
    assert not imported & forbidden


def test_there_is_no_utils() -> None:
    """A name that says nothing collects what belongs nowhere."""
    packages = (ROOT / "gradscope", ROOT / "dashboard" / "gradscope_dashboard")
    names = [path.name for package in packages for path in package.rglob("*")]
    assert len(names) > 50
    assert not [name for name in names if name.startswith("util")]

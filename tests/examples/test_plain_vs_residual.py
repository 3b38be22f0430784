"""The example that trains a plain and a residual net, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

import gradscope

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(folder: Path, *options: str) -> str:
    """Run plain_vs_residual.py in `folder` and return what it printed."""
    script = EXAMPLES / "plain_vs_residual.py"
    done = subprocess.run(
        [sys.executable, script, "--no-dashboard", *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_vs_residual_writes_runs_csv_and_verdicts(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "--steps", "30")
    plain, residual = (gradscope.load(tmp_path / "runs" / f"{n}-50") for n in ("plain", "residual"))
    assert gradscope.diagnose(plain).verdict == "vanishing"
    assert gradscope.diagnose(residual).verdict == "healthy"
    assert "vanishing" in printed and "healthy" in printed
    for run in (plain, residual):
        assert len(run.steps) == 30
        assert run.layers["depth"].max() == 50
        assert run.steps["train_loss"].notna().all()
        assert run.steps["val_loss"].notna().sum() == 3  # steps 0, 25 and 29
    assert len(residual.shortcuts) == 24 and plain.shortcuts.empty

    report = pd.read_csv(tmp_path / "report.csv")
    assert report["run"].unique().tolist() == ["plain-50", "residual-50"]
    assert len(report) == len(plain.frame()) + len(residual.frame())


def test_plain_vs_residual_keeps_the_runs_of_earlier_calls(tmp_path: Path) -> None:
    for _ in range(2):
        run_example(tmp_path, "--steps", "2", "--runs", "here")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "plain-50",
        "plain-50-2",
        "residual-50",
        "residual-50-2",
    ]

"""The example that trains a plain and a residual net, run as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

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


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a call of 30 steps and what it printed."""
    folder = tmp_path_factory.mktemp("called")
    return folder, run_example(folder, "--steps", "30")


@pytest.mark.slow
def test_plain_vs_residual_writes_runs_csv_and_verdicts(called: tuple[Path, str]) -> None:
    folder, printed = called
    plain, residual = (gradscope.load(folder / "runs" / f"{n}-50") for n in ("plain", "residual"))
    assert gradscope.diagnose(plain).verdict == "vanishing"
    assert gradscope.diagnose(residual).verdict == "healthy"
    assert "vanishing" in printed and "healthy" in printed
    for run in (plain, residual):
        assert len(run.steps) == 30
        assert run.layers["depth"].max() == 50
        assert run.steps["train_loss"].notna().all()
        assert run.steps["val_loss"].notna().sum() == 3  # steps 0, 25 and 29
    assert len(residual.shortcuts) == 24 and plain.shortcuts.empty

    report = pd.read_csv(folder / "report.csv")
    assert report["run"].unique().tolist() == ["plain-50", "residual-50"]
    assert len(report) == len(plain.frame()) + len(residual.frame())


@pytest.mark.slow
def test_plain_vs_residual_keeps_the_runs_of_earlier_calls(
    called: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(called[0] / "runs", tmp_path / "here")
    run_example(tmp_path, "--steps", "2", "--runs", "here")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "plain-50",
        "plain-50-2",
        "residual-50",
        "residual-50-2",
    ]
    earlier, later = (
        len(gradscope.load(tmp_path / "here" / f"plain-50{n}").steps) for n in ("", "-2")
    )
    assert (earlier, later) == (30, 2)

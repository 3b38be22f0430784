"""The ledger, drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import synthetic
from gradscope.plots.ledger import ledger_caption, ledger_figure, ledger_info
from gradscope.runs.loading import load
from gradscope.runs.run import Run


def test_the_ledger_adds_up_to_the_decades(plain: Run) -> None:
    (panel,) = ledger_info(plain)
    hidden = 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11)[[0, -2]]
    assert panel.total == pytest.approx(np.log10(hidden[0] / hidden[1]), abs=1e-3)
    assert panel.step is None
    assert ledger_info(plain, step=7)[0].step == 7


def test_a_ledger_says_where_exactly_0_arrives(tmp_path: Path) -> None:
    signal = np.ones((30, 12))
    signal[:, :6] = 0
    run = synthetic.write_with(tmp_path / "cut", 12, 30, signal_norm=signal)
    panels = ledger_info(run)
    assert panels[0].reached is not None
    assert panels[0].reached.startswith(f"{np.flatnonzero(signal[0])[0]} · ")
    assert "exactly 0 arrives" in ledger_caption(panels)
    title = ledger_figure(panels)["layout"]["annotations"][0]["text"]
    assert "then exactly 0" in title


def test_a_ledger_of_a_run_that_ends_in_nan_is_of_the_last_step_before(tmp_path: Path) -> None:
    signal = np.ones((30, 12))
    signal[20:] = np.nan
    writer = synthetic.start(tmp_path / "nan", n_layers=12)
    rows = synthetic.layer_rows(12, np.arange(30), decades=3.0)
    rows["signal_norm"] = signal.astype(np.float32).ravel()
    steps = synthetic.step_rows(np.arange(30), 0.1)
    steps["grad_norm"] = np.where(np.arange(30) < 20, 1.0, np.nan)
    writer.add_rows("layers", rows)
    writer.add_rows("steps", steps)
    writer.close()
    assert ledger_info(load(tmp_path / "nan"))[0].step == 19

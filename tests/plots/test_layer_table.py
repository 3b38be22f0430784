"""The table of the layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradscope.plots.layer_table import layer_table
from gradscope.runs.run import Run
from synthetic import write_with


def test_the_worst_layers_come_first(tmp_path: Path, plain: Run) -> None:
    table = layer_table(plain)
    assert table["number"].tolist() == list(range(0, 21, 2))
    signal = np.array([1e-3, 1, np.nan, 1, 1e5, 1, 1, 1, 0.1])
    table = layer_table(write_with(tmp_path / "odd", 9, 2, signal_norm=signal))
    assert table["number"].tolist() == [2, 4, 0, 8, 6]


def test_a_table_without_runs_has_its_columns() -> None:
    assert "signal_norm" in layer_table([]).columns

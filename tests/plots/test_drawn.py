"""Readings as the figures show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gradscope.plots as plots
from gradscope.errors import GradscopeError
from gradscope.plots.drawn import drawn_metric
from gradscope.plots.metrics import METRICS
from synthetic import write_with


def test_gradients_are_divided_by_the_last_hidden_layer_or_else_the_last_one_read(
    tmp_path: Path,
) -> None:
    signal = np.array([[1, 9, 2, 9, 4], [1, 9, np.nan, 9, 8]])
    data = drawn_metric(
        write_with(tmp_path / "r", 5, 2, signal_norm=signal, input_signal_norm=np.nan),
        METRICS["signal_norm"],
    )
    expected = np.array([[0.5, 1, 2], [0.125, np.nan, 1]])
    np.testing.assert_array_equal(data.values(), expected)
    np.testing.assert_array_equal(data.series([0, 2, 4]), expected.T)


@pytest.mark.parametrize("last", [0.0, np.inf, np.nan])
def test_without_a_usable_output_layer_nothing_looks_healthy(tmp_path: Path, last: float) -> None:
    data = drawn_metric(write_with(tmp_path / "r", 5, 2, signal_norm=last), METRICS["signal_norm"])
    assert np.isnan(data.values()).all()
    assert np.isnan(data.series([0, 4])).all()


def test_figures_and_frame_say_the_same_of_a_quotient(tmp_path: Path) -> None:
    update, weight = np.array([0.0, 1, 3, 1, 2]), np.array([0.0, 1, 0, 1, 7])  # 0/0, 3/0, 2/7
    run = write_with(tmp_path / "r", 5, 2, update_norm=update, weight_norm=weight)
    expected = run.frame()["update_ratio"].to_numpy().reshape(2, 5)[:, [0, 2, 4]]
    np.testing.assert_array_equal(drawn_metric(run, METRICS["update_ratio"]).values(), expected)


def test_something_else_than_a_run_is_refused() -> None:
    with pytest.raises(GradscopeError, match="expected a Run, got str"):
        plots.depth_profile(["runs/plain"])
    with pytest.raises(GradscopeError, match=r"expected a Run, got int; read one"):
        plots.depth_profile(5)

"""The slopes of the activations, with their bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import synthetic
from gradscope.plots.derivatives import derivatives_info
from gradscope.runs.loading import load
from gradscope.runs.run import Run


def test_slopes_are_shown_with_their_bound(plain: Run) -> None:
    (line,) = derivatives_info(plain)
    np.testing.assert_allclose(line.values, 0.6, rtol=1e-6)
    assert set(line.bounds) == {1.0}
    assert len(line.names) == 10


def test_functions_called_without_a_module_are_among_the_derivatives(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    layers = synthetic.layer_table(5)
    layers[2]["function"] = "Sigmoid"
    writer.update(layers=layers)
    rows = synthetic.layer_rows(5, np.arange(3), 1.0)
    rows["derivative_mean"][rows["layer"] == 2] = 0.2
    writer.add_rows("layers", rows)
    writer.add_rows("steps", synthetic.step_rows(np.arange(3), 0.1))
    writer.close()
    (line,) = derivatives_info(load(tmp_path / "run"))
    assert line.names == ["blocks.0.act", "blocks.1.fc", "blocks.1.act"]
    np.testing.assert_allclose(line.values, [0.6, 0.2, 0.6])
    np.testing.assert_array_equal(line.bounds, [1.0, 0.25, 1.0])

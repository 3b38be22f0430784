"""The history of one layer."""

from __future__ import annotations

import numpy as np

from gradscope.plots.history import history_info
from gradscope.runs.run import Run


def test_the_history_of_a_layer_is_read_by_its_name(plain: Run, residual: Run) -> None:
    curves = history_info([plain, residual], "blocks.0.fc")
    assert [(curve.run, curve.metric.name) for curve in curves[:4]] == [
        ("plain-50", "signal_norm"),
        ("plain-50", "grad_norm"),
        ("plain-50", "update_ratio"),
        ("plain-50", "activation_std"),
    ]
    np.testing.assert_allclose(curves[0].values, 1e-12 / 0.9, rtol=1e-5)
    assert history_info(plain, "no such layer") == []


def test_an_activation_has_a_history_too(plain: Run) -> None:
    curves = history_info(plain, "blocks.0.act")
    assert [curve.metric.name for curve in curves] == ["signal_norm", "activation_std"]

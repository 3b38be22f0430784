"""Readings as the figures show them."""

from __future__ import annotations

import numpy as np
import pytest

import gradscope.plots as plots
from gradscope.errors import GradscopeError
from gradscope.plots.drawn import reference, relative


def test_gradients_are_divided_by_the_last_layer_that_was_read() -> None:
    values = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, np.nan]])
    assert relative(values)[0].tolist() == [0.25, 0.5, 1.0]
    assert relative(values)[1, :2].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("last", [0.0, np.inf, np.nan])
def test_without_a_usable_output_layer_nothing_looks_healthy(last: float) -> None:
    values = np.array([[last, last]])
    assert np.isnan(reference(values)).all()
    assert np.isnan(relative(values)).all()


def test_something_else_than_a_run_is_refused() -> None:
    with pytest.raises(GradscopeError, match="expected a Run, got str"):
        plots.depth_profile(["runs/plain"])

"""Panels beside, or below, each other."""

from __future__ import annotations

import numpy as np
import pytest

import gradscope.plots as plots
from gradscope.plots.panels import in_panels, odd_key, odd_marks, odd_words

THEMES = [plots.LIGHT, plots.DARK, plots.LIGHT.for_page((2, 7), narrow=True)]


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark", "narrow"])
def test_panels_fill_the_figure_and_stay_apart(theme: plots.Theme) -> None:
    axes = [axes for axes, _ in in_panels("abc", theme, beside=0.1, below=0.1)]
    assert [(panel.x, panel.y) for panel in axes] == [("x", "y"), ("x2", "y2"), ("x3", "y3")]
    along = [panel.down for panel in axes[::-1]] if theme.narrow else [p.across for p in axes]
    np.testing.assert_allclose(
        np.ravel(along), [0, 0.8 / 3, 1.1 / 3, 1.9 / 3, 2.2 / 3, 1], atol=1e-9
    )
    assert [panel.leftmost for panel in axes] == [True, theme.narrow, theme.narrow]
    assert [panel.lowest for panel in axes] == [not theme.narrow, not theme.narrow, True]


def test_marks_that_are_no_number_are_named_and_counted() -> None:
    lines = [np.array([1.0, np.nan]), np.array([0.0, np.inf]), np.array([np.nan, 2.0])]
    top, bottom = "○ NaN in 2 of 3 runs, ▲ inf in 1 of 3 runs", "× exactly 0 in 1 of 3 runs"
    assert odd_words(lines) == f"{top}, {bottom}"
    assert odd_words(lines[:1]) == "○ NaN"
    assert odd_words([np.array([1.0])]) == ""
    below, above = odd_key(lines, (1e-3, 1e4), plots.LIGHT)
    assert (below["y"], below["text"]) == (pytest.approx(-3), bottom)
    assert (above["y"], above["text"]) == (pytest.approx(4), top)


def test_the_word_beside_the_last_mark_lies_within_the_axes() -> None:
    steps = np.arange(10)
    for zero, place in ((1, "top right"), (8, "top left")):
        values = np.where(steps == zero, 0.0, 1.0)
        (marks,) = odd_marks(
            steps, values, ends=(0.1, 9.0), color="red", theme=plots.LIGHT, hover="{said}"
        )
        assert (marks["x"], marks["textposition"]) == ([zero], place)

"""The speed of learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradscope.plots.speed import speed_caption, speed_figure, speed_info
from gradscope.runs.run import Run
from synthetic import write_with


def test_speed_shows_five_layers_from_first_to_last(plain: Run) -> None:
    (panel,) = speed_info(plain)
    assert [curve.number for curve in panel.curves] == [0, 4, 10, 16, 20]
    first, last = panel.curves[0], panel.curves[-1]
    steps = np.arange(60)
    fall = 8 / np.sqrt(8.0**2 + steps * 0.05**2) / (1.0 + steps / 500.0)
    np.testing.assert_allclose(first.values, 0.05 / 8 * 1e-12 * fall, rtol=1e-4)
    np.testing.assert_allclose(last.values, 0.05 / 8 * fall, rtol=1e-4)


def test_a_layer_that_does_not_move_is_said_so(tmp_path: Path) -> None:
    update = np.full((4, 3), 0.1)
    update[1, 0] = 0
    panels = speed_info(write_with(tmp_path / "stuck", 3, 4, update_norm=update, weight_norm=1.0))
    assert "stuck: layer 0 stands still at times (change of exactly 0)" in speed_caption(panels)


def test_a_layer_without_a_speed_is_labelled_where_its_marks_are(tmp_path: Path) -> None:
    run = write_with(tmp_path / "nan", 7, 3, update_norm=np.nan)
    figure = speed_figure(speed_info(run))
    marks = max(trace["y"][0] for trace in figure["data"] if "markers" in trace["mode"])
    (label,) = [a for a in figure["layout"]["annotations"] if a["text"] == "layer 0, input"]
    assert label["y"] == pytest.approx(np.log10(marks))
    assert "nan: layers 0, 2, 4 and 6 with NaN or inf." in speed_caption(speed_info(run))

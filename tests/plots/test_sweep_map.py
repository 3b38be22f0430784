"""A sweep: a setting of the runs by layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

import gradscope.plots as plots
from gradscope.plots.sweep_map import sweep_map_caption, sweep_map_figure, sweep_map_info
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.storage.writer import RunWriter
from handmade import chain, falling, make_run


def run_of(folder: Path, lr: float, decades: float, loss: np.ndarray) -> Run:
    layers = chain(6)
    readings = {"signal_norm": falling(len(layers), decades, 40), "weight_norm": 2.0}
    readings |= {"update_norm": 2 * lr}
    path = make_run(
        folder / f"lr {lr}", layers, readings, n_steps=40, steps={"train_loss": loss}
    ).path
    writer = RunWriter(path, {}, resume=True)
    writer.update(config={"lr": lr, "seed": 0})
    writer.close()
    return load(path)


@pytest.fixture
def sweep(tmp_path: Path) -> list[Run]:
    falls, rises = np.linspace(2, 0.5, 40), np.linspace(2, 9, 40)
    return [
        run_of(tmp_path, 0.1, 0.0, rises),
        run_of(tmp_path, 1e-3, 0.2, falls),
        run_of(tmp_path, 1e-2, 0.1, falls - 0.1),
        run_of(tmp_path, 1e-4, 8.0, falls),
    ]


def test_runs_are_ordered_by_the_setting_in_which_they_differ(sweep: list[Run]) -> None:
    info = sweep_map_info(sweep)
    assert info is not None
    assert (info.key, info.values) == ("lr", [1e-4, 1e-3, 1e-2, 0.1])
    assert info.good == [False, True, True, False]
    np.testing.assert_allclose(info.loss, [0.558, 0.558, 0.458, 8.73], rtol=0.01)
    np.testing.assert_allclose(info.speed[0], info.values, rtol=1e-5)
    np.testing.assert_allclose(np.log10(info.signal[0]), [-8, -0.2, -0.1, 0], atol=0.5)


def test_the_trainable_settings_are_outlined_and_told(sweep: list[Run]) -> None:
    info = sweep_map_info(sweep)
    assert "Trainable: lr = 0.001 to 0.01, 2 of 4 runs." in sweep_map_caption(info)
    figure = sweep_map_figure(info)
    (frame,) = figure["layout"]["shapes"]
    assert (frame["x0"], frame["x1"]) == (0.5, 2.5)
    go.Figure(figure)  # which checks every entry


def test_one_run_is_no_sweep(sweep: list[Run]) -> None:
    assert sweep_map_info(sweep[:1]) is None
    assert not plots.sweep_map(sweep[:1]).data


def test_broken_runs_have_columns_of_their_own_colours(tmp_path: Path, sweep: list[Run]) -> None:
    layers = chain(6)
    nan = {"signal_norm": np.nan, "update_norm": np.nan, "weight_norm": np.nan}
    broken = make_run(tmp_path / "broken", layers, nan, n_steps=40)
    info = sweep_map_info([*sweep, broken])
    hovers = [str(trace["hovertemplate"]) for trace in sweep_map_figure(info, plots.DARK)["data"]]
    assert any("NaN" in hover for hover in hovers)

"""Every figure: plotly accepts and draws it, in each theme, of runs that go wrong, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

import gradscope.plots as plots
import synthetic
from gradscope.plots.depth_profile import (
    depth_profile_figure,
    depth_profile_info,
)
from gradscope.plots.derivatives import derivatives_figure, derivatives_info
from gradscope.plots.flow_map import flow_map_figure, flow_map_info
from gradscope.plots.heatmap import heatmap_figure, heatmap_info
from gradscope.plots.ledger import ledger_figure, ledger_info
from gradscope.plots.scalars import scalars_figure, scalars_info
from gradscope.plots.speed import speed_figure, speed_info
from gradscope.plots.survival import survival_figure, survival_info
from gradscope.plots.training import training_figure, training_info
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from synthetic import write_with

THEMES = [plots.LIGHT, plots.DARK, plots.LIGHT.for_page((2, 7), narrow=True)]
THEMES.append(plots.DARK.for_many([0.1, 0.2, "none", 4, 5, 6, 7], "lr"))
FIGURES = {
    "depth_profile": lambda runs, theme: depth_profile_figure(depth_profile_info(runs), theme),
    "survival": lambda runs, theme: survival_figure(survival_info(runs), theme, marked=3),
    "heatmap": lambda runs, theme: heatmap_figure(heatmap_info(runs), theme),
    "speed": lambda runs, theme: speed_figure(speed_info(runs), theme),
    "flow_map": lambda runs, theme: flow_map_figure(flow_map_info(runs), theme),
    "ledger": lambda runs, theme: ledger_figure(ledger_info(runs), theme),
    "derivatives": lambda runs, theme: derivatives_figure(derivatives_info(runs), theme),
    "scalars": lambda runs, theme: scalars_figure(scalars_info(runs), theme, log=True),
    "training": lambda runs, theme: training_figure(training_info(runs), theme),
}


@pytest.fixture(scope="module")
def odd_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Return runs that go wrong: broken, all NaN, empty, of one step, of one layer, exploded."""
    folder = tmp_path_factory.mktemp("odd")
    signal = np.array([0.0, 1, np.inf, 1, np.nan, 1, 1])
    nan = {metric: np.nan for metric in ("signal_norm", "update_norm", "weight_norm", "grad_norm")}
    synthetic.start(folder / "empty").close()
    with pytest.warns(match="no step is recorded"):
        empty = load(folder / "empty")
        len(empty.steps)
    return [
        write_with(folder / "broken", 7, 3, signal_norm=signal, update_norm=signal),
        write_with(folder / "nan", 7, 3, **nan),
        empty,
        write_with(folder / "one-step", 7, 1),
        write_with(folder / "one-layer", 1, 3),
        write_with(folder / "exploded", 7, 3, signal_norm=10.0 ** np.arange(30, -5, -5)),
    ]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark", "narrow", "many"])
def test_plotly_accepts_every_figure(
    name: str, theme: plots.Theme, plain: Run, residual: Run, odd_runs: list[Run]
) -> None:
    draw = FIGURES[name]
    go.Figure(draw([plain, residual], theme))
    go.Figure(draw(odd_runs, theme))
    for run in odd_runs:
        go.Figure(draw(run, theme))
    go.Figure(draw([], theme))


@pytest.mark.parametrize("name", FIGURES)
def test_the_function_for_notebooks_returns_a_titled_figure(name: str, plain: Run) -> None:
    figure = getattr(plots, name)(plain)
    assert isinstance(figure, go.Figure)
    assert len(figure.data) > 0
    assert figure.layout.title.text


@pytest.mark.parametrize("name", ["survival", "heatmap", "speed", "training"])
def test_few_steps_are_labelled_by_whole_numbers(name: str, tmp_path: Path) -> None:
    one = FIGURES[name](write_with(tmp_path / "one", 7, 1), plots.LIGHT)
    assert one["layout"]["xaxis"]["tickvals"] == [0]
    three = FIGURES[name](write_with(tmp_path / "three", 7, 3), plots.LIGHT)
    assert three["layout"]["xaxis"]["tickvals"] == [0, 1, 2]
    many = FIGURES[name](write_with(tmp_path / "many", 7, 30), plots.LIGHT)
    assert "tickvals" not in many["layout"]["xaxis"]


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_keeps_its_colour_when_others_are_hidden(
    name: str, plain: Run, residual: Run
) -> None:
    theme = plots.LIGHT.for_page((1,), narrow=False)
    text = str(FIGURES[name]([residual], theme))
    assert plots.LIGHT.labels[1] in text or plots.LIGHT.lines[1] in text
    assert plots.LIGHT.lines[0] not in text


def test_a_last_step_of_which_only_a_loss_is_known_is_no_step_of_nan(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    writer.update(every=10)
    synthetic.extend(writer, np.arange(0, 40, 10))
    logged = synthetic.step_rows(np.array([38]), 0.1)
    unread = synthetic.layer_rows(5, np.array([38]), 1.0)
    writer.add_rows("layers", {key: unread[key] for key in ("step", "layer")})
    writer.add_rows("steps", {**logged, "grad_norm": np.array([np.nan])})
    writer.close()
    run = load(tmp_path / "run")
    (line,) = depth_profile_info(run).lines
    assert line.step == 30
    assert np.isfinite(line.values).all()
    (panel,) = ledger_info(run, step=38)
    assert panel.step == 30
    assert np.isfinite(panel.total)

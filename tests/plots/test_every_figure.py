"""What the figures show: their data first, then that plotly accepts and draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

import gradscope.plots as plots
import synthetic
from gradscope.errors import GradscopeError
from gradscope.plots.depth_profile import (
    depth_profile_caption,
    depth_profile_figure,
    depth_profile_info,
)
from gradscope.plots.derivatives import derivatives_figure, derivatives_info
from gradscope.plots.drawn import reference, relative
from gradscope.plots.flow_map import flow_map_caption, flow_map_figure, flow_map_info
from gradscope.plots.flow_map_picture import width
from gradscope.plots.heatmap import heatmap_caption, heatmap_figure, heatmap_info
from gradscope.plots.history import history_info
from gradscope.plots.layer_table import layer_table
from gradscope.plots.ledger import ledger_figure, ledger_info
from gradscope.plots.lettering import factor, number, safe, specials, spread
from gradscope.plots.sampling import extremes, farthest_from_one
from gradscope.plots.speed import speed_caption, speed_figure, speed_info
from gradscope.plots.survival import survival_caption, survival_figure, survival_info
from gradscope.plots.training import training_figure, training_info
from gradscope.runs.loading import load
from gradscope.runs.run import Run

THEMES = [plots.LIGHT, plots.DARK, plots.LIGHT.for_page((2, 7), narrow=True)]
HOSTILE = '<a href="javascript:alert(1)">x</a><script>alert(2)</script>'


@pytest.fixture(scope="module")
def plain(pair: Path) -> Run:
    return load(pair / "plain-50")


@pytest.fixture(scope="module")
def residual(pair: Path) -> Run:
    return load(pair / "residual-50")


def write_with(path: Path, n_layers: int, n_steps: int, **changes: np.ndarray) -> Run:
    """Write a run whose metrics `changes` have the given values, shape (n_steps, n_layers)."""
    writer = synthetic.start(path, n_layers=n_layers)
    steps = np.arange(n_steps)
    rows = synthetic.layer_rows(n_layers, steps, decades=3.0)
    for metric, values in changes.items():
        rows[metric] = np.broadcast_to(values, (n_steps, n_layers)).astype(np.float32).ravel()
    writer.add_rows("layers", rows)
    writer.add_rows("steps", synthetic.step_rows(steps, 0.1))
    writer.close()
    return load(path)


# --- numbers and names in words -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "exactly 0"),
        (float("nan"), "NaN"),
        (float("inf"), "inf"),
        (3.04e-7, "3.0e-7"),
        (0.2149, "0.21"),
        (6.24, "6.2"),
        (123.4, "123"),
        (4.2e9, "4.2e9"),
    ],
)
def test_numbers_keep_two_digits_and_name_what_is_no_number(value: float, text: str) -> None:
    assert number(value) == text


def test_a_factor_has_its_sign_only_where_it_is_one() -> None:
    assert [factor(0.5), factor(0.0), factor(float("nan"))] == ["0.50 ×", "exactly 0", "NaN"]


def test_layers_that_are_no_number_are_counted_in_words() -> None:
    values = np.array([0, 0, np.inf, np.nan, 1.0])
    assert specials(values) == "2 of 5 layers exactly 0, 1 inf, 1 NaN"
    assert specials(values, zeros=False) == "1 of 5 layers inf, 1 NaN"
    assert specials(np.ones(3)) == ""


def test_markup_in_a_name_is_inert() -> None:
    assert "<" not in safe(HOSTILE, limit=1000)
    assert len(safe("x" * 500)) <= 60


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert spread(np.array([0.0, 100.0]), 10).tolist() == [0, 100]
    assert spread(np.array([5.0, 5.0, 50.0]), 10).tolist() == [0, 10, 50]
    moved = np.sort(spread(np.array([1.0, 2.0, 3.0, 12.0]), 10))
    assert np.diff(moved).min() >= 10 - 1e-9
    assert moved.mean() == pytest.approx(4.5)


# --- fewer points than steps --------------------------------------------------------------------


def test_sampling_keeps_the_ends_the_extremes_and_a_single_nan() -> None:
    values = np.sin(np.arange(10_000) / 100.0)
    values[[1234, 7777, 4321]] = [50.0, -50.0, np.nan]
    kept = extremes(values, 100)
    assert {0, 9999, 1234, 7777, 4321} <= set(kept.tolist())
    assert len(kept) <= 302
    assert (np.diff(kept) > 0).all()


def test_short_curves_are_kept_whole() -> None:
    assert extremes(np.arange(7.0), 100).tolist() == list(range(7))


def test_a_bin_holds_the_reading_farthest_from_even() -> None:
    values = np.ones((100, 5))
    values[17, 0], values[51, 1], values[99, 2] = 1e-9, np.inf, 0.0
    values[3, 3], values[4, 3], values[:, 4] = 1e3, 1e-2, np.nan
    expected = [1e-9, np.inf, 0.0, 1e3, np.nan]
    np.testing.assert_array_equal(farthest_from_one(values), expected)


def test_a_step_without_any_reading_shows_in_its_bin() -> None:
    values = np.ones((100, 3))
    values[55, 0] = np.nan
    assert farthest_from_one(values).tolist() == [1, 1, 1]
    values[21] = np.nan
    assert np.isnan(farthest_from_one(values)).all()


# --- readings -----------------------------------------------------------------------------------


def test_gradients_are_divided_by_the_last_layer_that_was_read() -> None:
    values = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, np.nan]])
    assert relative(values)[0].tolist() == [0.25, 0.5, 1.0]
    assert relative(values)[1, :2].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("last", [0.0, np.inf, np.nan])
def test_without_a_usable_output_layer_nothing_looks_healthy(last: float) -> None:
    values = np.array([[last, last]])
    assert np.isnan(reference(values)).all()
    assert np.isnan(relative(values)).all()


# --- depth profile ------------------------------------------------------------------------------


def test_the_profile_shows_the_weight_layers_relative_to_the_output(plain: Run) -> None:
    (line,) = depth_profile_info(plain).lines
    assert line.names[0] == "blocks.0.fc"
    assert line.names[-1] == "head"
    assert all("act" not in name for name in line.names)
    expected = 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11)
    np.testing.assert_allclose(line.values, expected, rtol=1e-5)
    np.testing.assert_allclose(line.low, expected, rtol=1e-5)
    assert line.x.tolist() == list(range(1, 12))
    assert line.cut is None


def test_the_profile_shows_the_last_step_up_to_the_one_asked_for(tmp_path: Path) -> None:
    run = load(synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=4, every=10))
    shown = [depth_profile_info(run, step=step).lines[0].step for step in (None, 0, 19, 20, 9999)]
    assert shown == [30, 0, 10, 20, 30]


def test_the_band_is_the_spread_of_the_steps_around(tmp_path: Path) -> None:
    signal = np.ones((41, 3))
    signal[:, 0] = 10.0 ** (np.arange(41) / 10)
    line = depth_profile_info(write_with(tmp_path / "r", 3, 41, signal_norm=signal), step=20)
    low, high = np.percentile(signal[10:31, 0], [10, 90])
    assert line.lines[0].low[0] == pytest.approx(low, rel=1e-5)
    assert line.lines[0].high[0] == pytest.approx(high, rel=1e-5)


def test_runs_of_different_depth_are_aligned_by_relative_depth(plain: Run, tmp_path: Path) -> None:
    small = load(synthetic.write_run(tmp_path / "small", n_layers=5, n_steps=2))
    info = depth_profile_info([plain, small])
    assert info.aligned
    assert [line.x[[0, -1]].tolist() for line in info.lines] == [[0, 100], [0, 100]]


def test_activation_metrics_show_the_activations(plain: Run) -> None:
    (line,) = depth_profile_info(plain, metric="saturated_fraction").lines
    assert all(name.endswith("act") for name in line.names)
    np.testing.assert_allclose(line.values, 0.1, rtol=1e-6)


def test_update_speed_is_the_true_update_over_the_weights(plain: Run) -> None:
    (line,) = depth_profile_info(plain, metric="update_ratio", step=0).lines
    expected = 0.05 / 8.0 * 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11)
    np.testing.assert_allclose(line.values, expected, rtol=1e-5)


def test_the_cut_line_is_relative_to_the_uncut_output_layer(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "cut", n_layers=5, residual=True)
    rows = synthetic.layer_rows(5, np.arange(3), decades=0.0)
    rows["cut_signal_norm"] = rows["signal_norm"].copy().reshape(3, 5)
    rows["cut_signal_norm"][:, :2] *= 1e-3
    rows["cut_signal_norm"][1:] = np.nan
    rows["cut_signal_norm"] = rows["cut_signal_norm"].ravel()
    writer.add_rows("layers", rows)
    writer.add_rows("steps", synthetic.step_rows(np.arange(3), 0.1))
    writer.close()
    info = depth_profile_info(load(tmp_path / "cut"))
    np.testing.assert_allclose(info.lines[0].cut, [1e-3, 1, 1], rtol=1e-5)
    assert "forward pass is unchanged" in depth_profile_caption(info)
    assert "forward pass" not in depth_profile_caption(
        depth_profile_info(load(tmp_path / "cut"), metric="grad_norm")
    )


def test_zero_inf_and_nan_are_marked_and_said(tmp_path: Path) -> None:
    signal = np.array([0.0, 1, np.inf, 1, np.nan, 1, 1])
    info = depth_profile_info(write_with(tmp_path / "odd", 7, 3, signal_norm=signal))
    assert "1 of 4 layers exactly 0, 1 inf, 1 NaN" in depth_profile_caption(info)
    traces = depth_profile_figure(info)["data"]
    marks = [trace["marker"]["symbol"] for trace in traces if trace["mode"] == "markers+text"]
    assert marks == ["x", "triangle-up", "circle-open"]
    (line,) = [trace for trace in traces if trace["mode"].startswith("lines") and "name" in trace]
    assert line["y"] == [None, None, None, 1.0]


def test_an_unknown_metric_is_refused(plain: Run) -> None:
    with pytest.raises(GradscopeError, match=r"no metric is called 'speed'.*update_ratio"):
        plots.depth_profile(plain, metric="speed")


def test_something_else_than_a_run_is_refused() -> None:
    with pytest.raises(GradscopeError, match="expected a Run, got str"):
        plots.depth_profile(["runs/plain"])


# --- survival -----------------------------------------------------------------------------------


def test_survival_is_the_first_over_the_output_layer_at_every_step(plain: Run) -> None:
    (line,) = survival_info(plain)
    assert line.steps.tolist() == list(range(60))
    np.testing.assert_allclose(line.ratio, 1e-12, rtol=1e-5)


def test_survival_says_what_it_left_out(tmp_path: Path) -> None:
    signal = np.ones((5000, 3))
    signal[2345, 0] = 1e-8
    lines = survival_info(write_with(tmp_path / "long", 3, 5000, signal_norm=signal))
    assert 2345 in lines[0].steps
    assert len(lines[0].steps) < 1300
    assert "5,000 steps" in survival_caption(lines)


# --- heatmap ------------------------------------------------------------------------------------


def test_the_heatmap_holds_layers_by_steps(plain: Run, residual: Run) -> None:
    info = heatmap_info([plain, residual])
    assert [panel.values.shape for panel in info.panels] == [(11, 60), (11, 60)]
    expected = 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11)
    np.testing.assert_allclose(info.panels[0].values[:, 7], expected, rtol=1e-5)


def test_zooming_bins_again(tmp_path: Path) -> None:
    run = load(synthetic.write_run(tmp_path / "long", n_layers=3, n_steps=3000, flush=3000))
    whole = heatmap_info(run, bins=100)
    assert len(whole.panels[0].steps) == 100
    assert "most extreme of about 30 recorded steps (3,000 in 100 cells)" in heatmap_caption(whole)
    zoomed = heatmap_info(run, first=500, last=549, bins=100)
    assert zoomed.panels[0].steps.tolist() == list(range(500, 550))
    assert "zoom in" not in heatmap_caption(zoomed)


def test_cells_without_a_logarithm_are_drawn_apart(tmp_path: Path) -> None:
    signal = np.array([0.0, 1, np.inf, 1, np.nan, 1, 1])
    info = heatmap_info(write_with(tmp_path / "odd", 7, 3, signal_norm=signal))
    hovers = [trace["hovertemplate"] for trace in heatmap_figure(info)["data"]]
    assert [said for hover in hovers for said in ("exactly 0", "inf", "NaN") if said in hover] == [
        "exactly 0",
        "inf",
        "NaN",
    ]
    assert "ends with 1 of 4 layers exactly 0, 1 inf, 1 NaN (grey)" in heatmap_caption(info)


def test_all_panels_share_one_scale(plain: Run, residual: Run) -> None:
    figure = heatmap_figure(heatmap_info([plain, residual]))
    assert {trace["coloraxis"] for trace in figure["data"]} == {"coloraxis"}
    assert (figure["layout"]["coloraxis"]["cmin"], figure["layout"]["coloraxis"]["cmax"]) == (-6, 6)


# --- speed of learning --------------------------------------------------------------------------


def test_speed_shows_five_layers_from_first_to_last(plain: Run) -> None:
    (panel,) = speed_info(plain)
    assert [curve.number for curve in panel.curves] == [1, 3, 6, 9, 11]
    first, last = panel.curves[0], panel.curves[-1]
    fall = 1.0 / (1.0 + np.arange(60) / 500.0)
    np.testing.assert_allclose(first.values, 0.05 / 8 * 1e-12 * fall, rtol=1e-4)
    np.testing.assert_allclose(last.values, 0.05 / 8 * fall, rtol=1e-4)


def test_a_layer_that_does_not_move_is_said_so(tmp_path: Path) -> None:
    update = np.full((4, 3), 0.1)
    update[1, 0] = 0
    panels = speed_info(write_with(tmp_path / "stuck", 3, 4, update_norm=update, weight_norm=1.0))
    assert "stuck: layer 1 stands still at times (change of exactly 0)" in speed_caption(panels)


# --- flow map -----------------------------------------------------------------------------------


def test_a_plain_net_is_one_road_that_narrows(plain: Run) -> None:
    (road,) = flow_map_info(plain)
    assert road.forks == []
    signal = [station.signal for station in road.stations]
    np.testing.assert_allclose(signal, 10.0 ** np.linspace(-12, 0, 11), rtol=1e-5)
    assert road.arrives == pytest.approx(1e-12, rel=1e-5)
    widths = [width(value) for value in signal]
    assert widths == sorted(widths)
    assert widths[0] == 1.0


def test_a_residual_net_forks_at_its_blocks(residual: Run) -> None:
    (road,) = flow_map_info(residual)
    assert len(road.forks) == len(residual.shortcuts)
    scale = 1.0 / (1.0 + 59 / 500.0)
    fork = road.forks[3]
    np.testing.assert_allclose(
        [fork.shortcut * scale, fork.branch * scale, fork.share, fork.ratio],
        [0.4 * scale, 0.3 * scale, 0.64, 0.25],
        rtol=1e-5,
    )
    for fork in road.forks:
        inside = [s for s in road.stations if fork.start < s.x < fork.stop]
        assert inside
        assert all(station.on_branch for station in inside)


def test_deep_nets_are_grouped(tmp_path: Path) -> None:
    plain = load(synthetic.write_run(tmp_path / "plain", n_layers=301, n_steps=2))
    deep = load(synthetic.write_run(tmp_path / "deep", n_layers=301, n_steps=2, residual=True))
    roads = flow_map_info([plain, deep])
    assert [station.layers for station in roads[0].stations] == [3] * 50 + [1]
    assert len(roads[1].stations) <= len(roads[1].forks) + 2
    assert "a group of layers" in flow_map_caption(roads)


def test_no_road_leads_through_zero_or_nan() -> None:
    assert [width(value) for value in (0.0, np.nan)] == [0.0, 0.0]
    assert width(np.inf) == width(1e30) > width(1.0)


# --- ledger, slopes, training, history, table ---------------------------------------------------


def test_the_ledger_adds_up_to_the_decades(plain: Run) -> None:
    (panel,) = ledger_info(plain)
    hidden = 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11)[[0, -2]]
    assert panel.total == pytest.approx(np.log10(hidden[0] / hidden[1]), abs=1e-3)
    assert panel.step is None
    assert ledger_info(plain, step=7)[0].step == 7


def test_slopes_are_shown_with_their_bound(plain: Run) -> None:
    (line,) = derivatives_info(plain)
    np.testing.assert_allclose(line.values, 0.6, rtol=1e-6)
    assert set(line.bounds) == {1.0}
    assert len(line.names) == 10


def test_training_shows_the_logged_losses(plain: Run) -> None:
    curves = training_info(plain)
    assert {(curve.part, curve.measure) for curve in curves} == {("train", "loss"), ("val", "loss")}
    train = next(curve for curve in curves if curve.part == "train")
    assert train.steps.tolist() == list(range(60))
    assert train.values[-1] < train.values[0]


def test_the_history_of_a_layer_is_read_by_its_name(plain: Run, residual: Run) -> None:
    curves = history_info([plain, residual], "blocks.0.fc")
    assert [(curve.run, curve.metric.name) for curve in curves[:4]] == [
        ("plain-50", "signal_norm"),
        ("plain-50", "grad_norm"),
        ("plain-50", "update_ratio"),
        ("plain-50", "activation_std"),
    ]
    np.testing.assert_allclose(curves[0].values, 1e-12, rtol=1e-5)
    assert history_info(plain, "no such layer") == []


def test_an_activation_has_a_history_too(plain: Run) -> None:
    curves = history_info(plain, "blocks.0.act")
    assert [curve.metric.name for curve in curves] == ["signal_norm", "activation_std"]


def test_the_worst_layers_come_first(tmp_path: Path, plain: Run) -> None:
    table = layer_table(plain)
    assert table["number"].tolist() == list(range(1, 12))
    signal = np.array([1e-3, 1, np.nan, 1, 0.1, 1, 1e5, 1, 1])
    table = layer_table(write_with(tmp_path / "odd", 9, 2, signal_norm=signal))
    assert table["number"].tolist() == [2, 4, 1, 3, 5]


def test_a_table_without_runs_has_its_columns() -> None:
    assert "signal_norm" in layer_table([]).columns


# --- every figure -------------------------------------------------------------------------------

FIGURES = {
    "depth_profile": lambda runs, theme: depth_profile_figure(depth_profile_info(runs), theme),
    "survival": lambda runs, theme: survival_figure(survival_info(runs), theme, marked=3),
    "heatmap": lambda runs, theme: heatmap_figure(heatmap_info(runs), theme),
    "speed": lambda runs, theme: speed_figure(speed_info(runs), theme),
    "flow_map": lambda runs, theme: flow_map_figure(flow_map_info(runs), theme),
    "ledger": lambda runs, theme: ledger_figure(ledger_info(runs), theme),
    "derivatives": lambda runs, theme: derivatives_figure(derivatives_info(runs), theme),
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
@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark", "narrow"])
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


def test_a_layer_without_a_speed_is_labelled_where_its_marks_are(tmp_path: Path) -> None:
    run = write_with(tmp_path / "nan", 7, 3, update_norm=np.nan)
    figure = speed_figure(speed_info(run))
    marks = max(trace["y"][0] for trace in figure["data"] if "markers" in trace["mode"])
    (label,) = [a for a in figure["layout"]["annotations"] if a["text"] == "layer 1, input"]
    assert label["y"] == pytest.approx(np.log10(marks))
    assert "nan: layers 1, 2, 3 and 4 with NaN or inf." in speed_caption(speed_info(run))


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


def test_the_heatmap_of_a_run_that_grew_is_that_of_the_whole_run(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    synthetic.extend(writer, np.arange(5000))
    writer.flush()
    run = load(tmp_path / "run")
    heatmap_info(run, first=10, last=4000)
    assert heatmap_info(run).panels[0].total == 5000
    synthetic.extend(writer, np.arange(5000, 9000))
    writer.close()
    run.refresh()
    for where in ({}, {"first": 10, "last": 4000}):
        (panel,), (expected,) = (heatmap_info(r, **where).panels for r in (run, load(run.path)))
        np.testing.assert_array_equal(panel.steps, expected.steps)
        np.testing.assert_array_equal(panel.values, expected.values)


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

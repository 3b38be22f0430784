"""The profile over the depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gradscope.plots as plots
import handmade
import synthetic
from gradscope.diagnosis.verdict import diagnose
from gradscope.errors import GradscopeError
from gradscope.plots import lettering
from gradscope.plots.depth_profile import (
    depth_profile_caption,
    depth_profile_figure,
    depth_profile_info,
)
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from synthetic import write_with


def test_the_profile_shows_the_weight_layers_relative_to_the_last_hidden_one(plain: Run) -> None:
    (line,) = depth_profile_info(plain).lines
    assert line.names[0] == "blocks.0.fc"
    assert line.names[-1] == "head"
    assert all("act" not in name for name in line.names)
    # behind its activation the last hidden layer gets 0.9 of the output layer's signal
    expected = 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11) / 0.9
    np.testing.assert_allclose(line.values, expected, rtol=1e-5)
    np.testing.assert_allclose(line.low, expected, rtol=1e-5)
    assert line.x.tolist() == list(range(1, 12))
    assert line.cut is None
    assert line.arrives == pytest.approx(10 ** diagnose(plain).decades)


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


def test_the_label_is_the_reading_of_the_point_and_the_caption_tells_the_verdicts(
    residual: Run, plain: Run
) -> None:
    info = depth_profile_info(plain)
    (line,) = info.lines
    assert line.arrives > 1.25 * line.values[0]  # behind its activation, as the verdict looks
    labels = [note["text"] for note in depth_profile_figure(info)["layout"]["annotations"]]
    assert any(lettering.times(line.values[0]) in text for text in labels)
    told = f"{lettering.times(line.arrives)} arrives at {line.early}"
    assert not any(lettering.times(line.arrives) in text for text in labels)
    assert told in depth_profile_caption(info)
    assert "arrives at" not in depth_profile_caption(depth_profile_info(residual))


def test_a_shared_axis_says_how_it_counts_where_the_layers_have_other_numbers(
    plain: Run, tmp_path: Path
) -> None:
    layers = handmade.chain(3)
    bare = [row for row in layers if row["parameters"]]
    bare = [{**row, "layer": i} for i, row in enumerate(bare)]
    runs = [
        handmade.make_run(tmp_path / name, rows, {"signal_norm": 1.0})
        for name, rows in (("with", layers), ("without", bare))
    ]
    assert "counts weight layers" in depth_profile_caption(depth_profile_info(runs))
    assert "counts weight layers" not in depth_profile_caption(depth_profile_info([plain, plain]))
    ticks = depth_profile_figure(depth_profile_info(plain), replace(plots.LIGHT, narrow=True))
    assert set(ticks["layout"]["xaxis"]["ticktext"]) <= set(map(str, range(0, 21, 2)))


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


def test_the_cut_line_is_relative_to_the_uncut_signal(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "cut", n_layers=5, residual=True)
    rows = synthetic.layer_rows(5, np.arange(3), decades=0.0)
    rows["cut_signal_norm"] = rows["signal_norm"].copy().reshape(3, 5)
    rows["cut_signal_norm"][:, :2] *= 1e-3
    rows["cut_signal_norm"][1:] = np.nan
    rows["cut_signal_norm"] = rows["cut_signal_norm"].ravel()
    writer.add_rows("layers", rows)
    writer.add_rows("shortcuts", synthetic.shortcut_rows(2, np.arange(3)))
    writer.add_rows("steps", synthetic.step_rows(np.arange(3), 0.1))
    writer.close()
    info = depth_profile_info(load(tmp_path / "cut"))
    np.testing.assert_allclose(info.lines[0].cut, np.array([1e-3, 1, 1]) / 0.4, rtol=1e-5)
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


def test_within_a_factor_of_two_the_label_is_the_verdicts_number(tmp_path: Path) -> None:
    signal = synthetic.signal(21, np.arange(3), 3.0)
    for less, told in ((1.5, True), (5.0, False)):
        signal[:, 0] = signal[:, 1] / less  # the verdicts look behind the activation
        run = write_with(tmp_path / str(less), 21, 3, signal_norm=signal)
        (line,) = depth_profile_info(run).lines
        assert less < line.arrives / line.values[0] < 1.3 * less
        assert line.first == (line.arrives if told else line.values[0])


def test_ticks_lie_evenly_apart_but_for_the_last(tmp_path: Path) -> None:
    run = load(synthetic.write_run(tmp_path / "run", n_layers=23, n_steps=2))  # 12 weight layers
    ticks = depth_profile_figure(depth_profile_info(run))["layout"]["xaxis"]["tickvals"]
    assert ticks == [1, 3, 5, 7, 9, 12]


def test_roles_are_a_line_each_only_where_they_lie_apart(tmp_path: Path) -> None:
    names = [f"blocks.{i}.{role}" for i in range(4) for role in ("one", "two")]
    layers = [
        {**row, "name": name} for row, name in zip(handmade.chain(8)[::2], names, strict=True)
    ]
    layers = [{**row, "layer": i} for i, row in enumerate(layers)]
    drawn = {}
    for name, signal in (("apart", np.tile([1.0, 0.01], 4)), ("even", np.logspace(0, 9, 8))):
        run = handmade.make_run(tmp_path / name, layers, {"signal_norm": signal}, n_steps=2)
        figure = depth_profile_figure(depth_profile_info(run))
        drawn[name] = {trace.get("name") for trace in figure["data"]}
    assert {"one", "two"} <= drawn["apart"]
    assert not {"one", "two"} & drawn["even"]

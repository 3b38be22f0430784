"""A sweep: a setting of the runs by layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

import gradscope.plots as plots
from gradscope.plots.sweep_map import sweep_map_caption, sweep_map_figure, sweep_map_info
from gradscope.plots.sweep_order import sweep_key
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.storage.writer import RunWriter
from handmade import chain, falling, make_run


def run_of(folder: Path, lr: float, decades: float, loss: np.ndarray, **settings: object) -> Run:
    layers = chain(6)
    readings = {"signal_norm": falling(len(layers), decades, 40), "weight_norm": 2.0}
    readings |= {"update_norm": 2 * lr}
    path = make_run(
        folder / f"lr {lr} {settings}", layers, readings, n_steps=40, steps={"train_loss": loss}
    ).path
    writer = RunWriter(path, {}, resume=True)
    writer.update(config={"lr": lr, "seed": 0, **settings})
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


def test_what_broke_is_named_once_over_neighbours(tmp_path: Path) -> None:
    falls, lost = np.linspace(2, 0.5, 40), np.full(40, np.nan)
    runs = [run_of(tmp_path, lr, 0.1, falls) for lr in (1e-3, 1e-2)]
    runs += [run_of(tmp_path, lr, 0.1, lost) for lr in (1.0, 10.0)]
    for theme in (plots.LIGHT, plots.LIGHT.for_page((0, 1, 2, 3), narrow=True)):
        notes = sweep_map_figure(sweep_map_info(runs), theme)["layout"]["annotations"]
        assert [note["x"] for note in notes if note["text"] == "NaN"] == [2.5]
        assert any("decades" in note["text"] for note in notes)  # what the colours are


def test_the_trainable_settings_are_outlined_and_told(sweep: list[Run]) -> None:
    info = sweep_map_info(sweep)
    assert "Trainable: lr = 0.001 to 0.01, 2 of 4 runs." in sweep_map_caption(info)
    assert "Read so far: 4 of 9 runs; of these: Trainable" in sweep_map_caption(info, unread=5)
    figure = sweep_map_figure(info)
    (frame,) = figure["layout"]["shapes"]  # and no line between groups
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


@pytest.fixture
def grid(tmp_path: Path) -> list[Run]:
    falls, rises = np.linspace(2, 0.5, 40), np.linspace(2, 9, 40)
    return [
        run_of(tmp_path, lr, 0.1, rises if lr * width > 1 else falls, width=width)
        for lr in (0.01, 0.05, 0.2)
        for width in (32, 8)
    ]


def test_of_two_settings_each_value_of_the_other_has_a_line_of_its_own(grid: list[Run]) -> None:
    info = sweep_map_info(grid)
    assert info is not None
    assert info.values == [0.01, 0.05, 0.2] * 2
    assert info.groups == ["width = 8"] * 3 + ["width = 32"] * 3
    figure = sweep_map_figure(info)
    lines = [trace for trace in figure["data"] if trace["type"] == "scatter"]
    assert [line["x"] for line in lines] == [[0, 1, 2], [3, 4, 5]]
    assert all("lines" in line["mode"] for line in lines)
    frames = [(s["x0"], s["x1"]) for s in figure["layout"]["shapes"] if s["type"] == "rect"]
    assert frames == [(-0.5, 1.5), (2.5, 3.5)]
    said = sweep_map_caption(info)
    assert "width = 8: lr = 0.01 to 0.05; width = 32: lr = 0.01, 3 of 6 runs." in said
    assert "at lr = 0.01, width = " in said


def test_runs_that_hardly_share_a_setting_have_no_line(tmp_path: Path) -> None:
    loss = np.linspace(2, 0.5, 40)
    runs = [run_of(tmp_path, 0.01 * i, 0.1, loss, momentum=i / 7) for i in range(1, 5)]
    info = sweep_map_info(runs)
    assert info is not None
    assert info.groups == []
    lines = [t for t in sweep_map_figure(info)["data"] if t["type"] == "scatter"]
    assert [line["mode"] for line in lines] == ["markers"]


def test_columns_are_labelled_above_and_below(grid: list[Run]) -> None:
    layout = sweep_map_figure(sweep_map_info(grid))["layout"]
    for axis, side in (("xaxis", "top"), ("xaxis2", None)):
        assert layout[axis]["ticktext"] == ["0.01", "0.05", "0.2"] * 2
        assert layout[axis].get("side") == side
    words = [note["text"] for note in layout["annotations"]]
    assert {"<b>width = 8</b>", "<b>width = 32</b>", "<b>lr</b>"} <= set(words)


def test_a_seed_is_a_setting_only_where_nothing_else_differs(tmp_path: Path) -> None:
    loss = np.linspace(2, 0.5, 40)
    runs = [run_of(tmp_path, lr, 0.1, loss, seed=s) for lr in (0.1, 0.2) for s in (1, 2, 3)]
    assert sweep_key(runs) == "lr"
    assert sweep_key(runs[:3]) == "seed"


def test_the_key_names_what_no_scale_holds(sweep: list[Run], tmp_path: Path) -> None:
    def key_of(runs: list[Run]) -> str:
        figure = sweep_map_figure(sweep_map_info(runs), plots.LIGHT)
        return " ".join(str(note["text"]) for note in figure["layout"]["annotations"])

    still = {"signal_norm": 1.0, "update_norm": 0.0, "weight_norm": 2.0}
    stands = make_run(tmp_path / "stands", chain(6), still, n_steps=40)
    assert "exactly 0" not in key_of(sweep)
    assert "exactly 0" in key_of([*sweep, stands])


def test_a_loss_that_falls_by_less_than_a_tenth_is_not_called_trainable(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path, lr, 0.1, np.linspace(2.5, end, 40))
        for lr, end in ((1e-3, 2.4), (1e-2, 1.0))
    ]
    assert sweep_map_info(runs).good == [False, True]

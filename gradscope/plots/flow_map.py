"""Which way the gradient took: a road from the output to the input, as wide as what arrives.

A plain net is one road. Where a residual block splits the gradient, blue is the part through the
shortcut and orange the part through the branch. Widths are logarithmic and each part has its own:
norms of parts do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from gradscope.arithmetic import Array, last_reading, over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.plots import lettering
from gradscope.plots.drawn import DrawnMetric, as_runs, drawn_metric
from gradscope.plots.flow_map_picture import road_figure
from gradscope.plots.metrics import METRICS
from gradscope.plots.theme import LIGHT, FigureDict, Theme, nothing_to_show, titled
from gradscope.runs.run import Run

TITLE = "Which way did the gradient take?"
MOST_STATIONS = 60
"""Deeper nets are drawn a block, or a group of layers, at a time."""
_NORMS = ("total_norm", "shortcut_norm", "branch_norm", "other_norm")
_OTHERS = ("cosine", "energy_share", "branch_ratio")


@dataclass(frozen=True)
class Station:
    """A layer, or a group of `layers` layers, on the trunk or on the branch of a block.

    `x` counts from 1 at the input, `signal` is over the output layer's.
    """

    x: float
    name: str
    signal: float
    layers: int
    on_branch: bool


@dataclass(frozen=True)
class Fork:
    """A residual block from `start` (towards the input) to `stop`, in units of x.

    `total`, `shortcut`, `branch` and `other` are norms over the output layer's signal, `share` is
    the shortcut's share of the energy, `ratio` the forward size of branch over shortcut.
    """

    name: str
    form: str
    start: float
    stop: float
    total: float
    shortcut: float
    branch: float
    other: float
    cosine: float
    share: float
    ratio: float


@dataclass(frozen=True)
class Road:
    """One run at one step; `arrives` is what reaches the input, over the output layer's."""

    place: int
    run: str
    step: int
    stations: list[Station]
    forks: list[Fork]
    length: float
    arrives: float


def flow_map_info(runs: Run | Sequence[Run], *, step: int | None = None) -> list[Road]:
    """Return the gradient's ways through each run at `step`; None is each run's latest.

    Runs without a recorded step are left out.
    """
    roads = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, METRICS["signal_norm"])
        if not data.empty:
            roads.append(_road(place, run, data, data.row(step)))
    return roads


def _road(place: int, run: Run, data: DrawnMetric, row: int) -> Road:
    signal = data.values(row, row + 1)[0].astype(float)
    forks, inside = _forks(run, data, row)
    grouped = len(signal) > MOST_STATIONS
    stations: list[Station] = []
    placed: list[Fork] = []
    x = 0.0
    layer = 0
    size = -(-int((inside < 0).sum()) // MOST_STATIONS) if grouped else 1
    while layer < len(signal):
        fork = int(inside[layer])
        stop = layer + 1
        most = len(signal) if fork >= 0 else layer + size
        while stop < min(most, len(signal)) and inside[stop] == fork:
            stop += 1
        if fork >= 0:
            start = x + 0.5
            if grouped:
                x += 1
                stations.append(_station(x, data.names, signal, layer, stop, True))
            else:
                for i in range(layer, stop):
                    x += 1
                    stations.append(_station(x, data.names, signal, i, i + 1, True))
            placed.append(_moved(forks[fork], start, x + 0.5))
        else:
            x += 1
            stations.append(_station(x, data.names, signal, layer, stop, False))
        layer = stop
    arrives = stations[0].signal
    if placed and placed[0].start == 0.5:
        arrives = placed[0].total
    return Road(place, run.name, int(data.steps[row]), stations, placed, x, arrives)


def _station(
    x: float, names: list[str], signal: Array, first: int, stop: int, on_branch: bool
) -> Station:
    """Return the layers `first` to `stop` as one station, its signal that nearest to the input."""
    name = names[first] if stop == first + 1 else f"{names[first]} … {names[stop - 1]}"
    return Station(x, name, float(signal[first]), stop - first, on_branch)


def _forks(run: Run, data: DrawnMetric, row: int) -> tuple[list[Fork], np.ndarray]:
    """Return the residual blocks, and for each layer the one that it lies in, -1 for none."""
    inside = np.full(len(data.layers), -1)
    blocks = residual_blocks(run)
    forks: list[Fork] = []
    if not blocks:
        return forks, inside
    step = int(data.steps[row])
    output = last_reading(data.read(row, row + 1))[0]
    read = {name: run.shortcut_matrix(name, step, step)[1][0] for name in (*_NORMS, *_OTHERS)}
    read |= {name: over_reference(read[name], output) for name in _NORMS}
    for block in blocks:
        held = (data.layers >= block.first) & (data.layers < block.after) & (inside < 0)
        if not held.any():
            continue
        inside[held] = len(forks)
        parts = [float(read[name][block.shortcut]) for name in (*_NORMS, *_OTHERS)]
        forks.append(Fork(block.name, block.form, 0, 0, *parts))
    return forks, inside


def _moved(fork: Fork, start: float, stop: float) -> Fork:
    fields = {**fork.__dict__, "start": start, "stop": stop}
    return Fork(**fields)


def flow_map_caption(roads: list[Road]) -> str:
    """Return how to read the figure, in a few sentences."""
    text = (
        "The gradient enters on the right; the road is as wide as what arrives, on a log scale,"
        " down to a hairline."
    )
    if any(road.forks for road in roads):
        text += (
            " Where a block splits it, blue goes through the shortcut and orange through the"
            " branch; the percentage is the shortcut's share of the gradient's energy."
        )
    if any(station.layers > 1 for road in roads for station in road.stations):
        text += " A square is a block or a group of layers."
    for road in roads:
        signal = np.array([station.signal for station in road.stations])
        if found := lettering.specials(signal).replace("layers", "squares"):
            text += f" {road.run} at step {road.step}: {found}."
    return text


def flow_map_figure(roads: list[Road], theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `roads` as a dict for plotly, one road below the other."""
    if not roads:
        return nothing_to_show(theme, "No step has been recorded yet.")
    return road_figure(roads, theme)


def flow_map(
    runs: Run | Sequence[Run], *, step: int | None = None, theme: Theme = LIGHT
) -> go.Figure:
    """Draw the gradient's way through each run at one step, one road a run.

    Parameters
    ----------
    runs : Run or sequence of Run
    step : int, optional
        The last recorded step up to this one; the latest without it.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    roads = flow_map_info(runs, step=step)
    return titled(flow_map_figure(roads, theme), TITLE, flow_map_caption(roads), theme)

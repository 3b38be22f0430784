"""Which way the gradient took: a path from the output to the input, as wide as what arrives.

In a plain net there is one path. Where a residual block splits the gradient, blue is the part
through the shortcut and orange the part through the branch. The width of the whole is logarithmic,
and the parts share it by their energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go

from gradscope.arithmetic import Array, over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.plots import lettering
from gradscope.plots.drawn import DrawnMetric, arrives, as_runs, drawn_metric
from gradscope.plots.flow_map_picture import DrawnBlock, Lane, Square, lanes_figure
from gradscope.plots.metrics import METRICS
from gradscope.plots.panels import shown_panels
from gradscope.plots.theme import LIGHT, FigureDict, Theme, nothing_to_show, titled
from gradscope.runs.run import Run

TITLE = "Which way did the gradient go?"
SAID = 4
"""Of so many runs a caption says what is odd."""
MOST_SQUARES = 60
"""Deeper nets are drawn a block, or a group of layers, at a time."""
_NORMS = ("total_norm", "shortcut_norm", "branch_norm", "other_norm")
_OTHERS = ("cosine", "energy_share", "branch_ratio")


def flow_map_info(runs: Run | Sequence[Run], *, step: int | None = None) -> list[Lane]:
    """Return the gradient's ways through each run at `step`; None is each run's latest.

    Runs without a recorded step are left out.
    """
    lanes = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, METRICS["signal_norm"])
        if not data.empty:
            lanes.append(_lane(place, run, data, data.row(step)))
    return lanes


def _lane(place: int, run: Run, data: DrawnMetric, row: int) -> Lane:
    signal = data.values(row, row + 1)[0].astype(float)
    blocks, inside = _blocks(run, data, row)
    grouped = len(signal) > MOST_SQUARES
    squares: list[Square] = []
    placed: list[DrawnBlock] = []
    x = 0.0
    layer = 0
    size = -(-int((inside < 0).sum()) // MOST_SQUARES) if grouped else 1
    while layer < len(signal):
        number = int(inside[layer])
        stop = layer + 1
        most = len(signal) if number >= 0 else layer + size
        while stop < min(most, len(signal)) and inside[stop] == number:
            stop += 1
        if number >= 0:
            start = x + 0.5
            for first in [layer] if grouped else range(layer, stop):
                x += 1
                after = stop if grouped else first + 1
                squares.append(_square(x, data, signal, first, after, True))
            placed.append(replace(blocks[number], start=start, stop=x + 0.5))
        else:
            x += 1
            squares.append(_square(x, data, signal, layer, stop, False))
        layer = stop
    return Lane(place, run.name, int(data.steps[row]), squares, placed, x, arrives(data, row))


def _square(
    x: float, data: DrawnMetric, signal: Array, first: int, stop: int, on_branch: bool
) -> Square:
    """Return the layers `first` to `stop` as one square, its signal that nearest to the input."""
    names = data.names
    name = names[first] if stop == first + 1 else f"{names[first]} … {names[stop - 1]}"
    layer = int(data.layers[first])
    return Square(x, layer, name, float(signal[first]), stop - first, on_branch)


def _blocks(run: Run, data: DrawnMetric, row: int) -> tuple[list[DrawnBlock], np.ndarray]:
    """Return the residual blocks, not yet placed, and the number of each layer's, -1 for none."""
    inside = np.full(len(data.layers), -1)
    blocks = residual_blocks(run)
    drawn: list[DrawnBlock] = []
    if not blocks:
        return drawn, inside
    step = int(data.steps[row])
    output = data.late(row, row + 1)
    read = {name: run.shortcut_matrix(name, step, step)[1][0] for name in (*_NORMS, *_OTHERS)}
    read |= {name: over_reference(read[name], output) for name in _NORMS}
    for block in blocks:
        held = (data.layers >= block.first) & (data.layers < block.after) & (inside < 0)
        if not held.any():
            continue
        inside[held] = len(drawn)
        parts = [float(read[name][block.shortcut]) for name in (*_NORMS, *_OTHERS)]
        drawn.append(DrawnBlock(block.name, block.form, 0, 0, *parts))
    return drawn, inside


def flow_map_caption(lanes: list[Lane]) -> str:
    """Return how to read the figure, in a few sentences."""
    text = (
        "The gradient enters on the right; its path is as wide as what arrives, on a log scale,"
        " down to a hairline."
    )
    if any(lane.blocks for lane in lanes):
        text += (
            " Where a block splits the gradient, blue goes through the shortcut and orange through"
            " the branch, each as wide as its share of the gradient's energy; the percentage is the"
            " shortcut's."
        )
    if any(square.layers > 1 for lane in lanes for square in lane.squares):
        text += " A square is a block or a group of layers."
    shown, left_out = shown_panels(lanes)
    text += left_out
    for lane in shown if len(shown) <= SAID else ():
        signal = np.array([square.signal for square in lane.squares])
        if found := lettering.specials(signal).replace("layers", "squares"):
            text += f" {lane.run} at step {lane.step}: {found}."
    return text


def flow_map_figure(lanes: list[Lane], theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `lanes` as a dict for plotly, one lane a run."""
    if not lanes:
        return nothing_to_show(theme, "No step has been recorded yet.")
    return lanes_figure(shown_panels(lanes)[0], theme)


def flow_map(
    runs: Run | Sequence[Run], *, step: int | None = None, theme: Theme = LIGHT
) -> go.Figure:
    """Draw the gradient's way through each run at one step, one lane a run.

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
    lanes = flow_map_info(runs, step=step)
    return titled(flow_map_figure(lanes, theme), TITLE, flow_map_caption(lanes), theme)

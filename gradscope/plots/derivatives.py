"""How steep the activation functions are where the batches put them, against their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.kinds import BOTH_SIDES, BOUNDS, canonical
from gradscope.plots import lettering
from gradscope.plots.drawn import as_runs, drawn_metric
from gradscope.plots.metrics import Metric
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    add_key,
    annotation,
    axis,
    base_layout,
    nothing_to_show,
    titled,
)
from gradscope.runs.run import Run

TITLE = "How much gradient do the activation functions let through?"
_METRIC = Metric("derivative_mean", TITLE, layers="activations")


@dataclass(frozen=True)
class DerivativeLine:
    """The `place`-th given run at one step.

    `depth` in percent and `values`, mean |phi'(z)|, have the shape (n_activations,); `bounds`
    holds the largest slope of functions that flatten out on both sides, NaN for others.
    """

    place: int
    run: str
    step: int
    names: list[str]
    depth: NDArray[np.float64]
    values: NDArray[np.float64]
    bounds: NDArray[np.float64]


def derivatives_info(runs: Run | Sequence[Run], *, step: int | None = None) -> list[DerivativeLine]:
    """Return the mean slope of each activation of each run at `step`; None is the latest."""
    lines = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, _METRIC)
        if data.empty:
            continue
        functions = run.functions
        layers = np.union1d(data.layers, np.array(sorted(functions), dtype=int))
        names = [str(name) for name in run.layers["name"].to_numpy()[layers]]
        data = replace(data, layers=layers, names=names, kinds=[""] * len(names))
        row = data.row(step)
        values = data.values(row, row + 1)[0].astype(float)
        read = run.was_read(_METRIC.name, data.layers)
        if not read.any():
            continue
        modules = run.layers["kind"].to_numpy()
        kinds = [canonical(functions.get(i, str(modules[i]))) for i in layers.tolist()]
        bounds = np.array([BOUNDS[kind] if kind in BOTH_SIDES else np.nan for kind in kinds])
        depth = (data.layers + 0.5) / len(run.layers) * 100
        names = [data.names[i] for i in np.flatnonzero(read)]
        lines.append(
            DerivativeLine(
                place,
                run.name,
                int(data.steps[row]),
                names,
                depth[read],
                values[read],
                bounds[read],
            )
        )
    return lines


def derivatives_caption(lines: list[DerivativeLine]) -> str:
    """Return how to read the figure, in a few sentences."""
    text = (
        "The mean slope of each activation function where the data lie: backpropagation"
        " multiplies the gradient by it, layer by layer. For ReLU it is the share of units that"
        " are on."
    )
    if any((line.bounds == 0.25).any() for line in lines):
        text += " A sigmoid's slope is 1/4 at most, so that every layer loses gradient."
    for line in lines:
        if found := lettering.specials(line.values):
            text += f" {line.run} at step {line.step}: {found}."
    return text


def derivatives_figure(lines: list[DerivativeLine], theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `lines` as a dict for plotly."""
    if not lines:
        return nothing_to_show(theme, "No activation's slope has been recorded.")
    layout = base_layout(theme, 280)
    data: list[dict[str, Any]] = []
    for line in lines:
        style = theme.line(line.place, 2)
        name = lettering.safe(line.run)
        data.append(
            {
                "type": "scatter",
                "name": name,
                "x": line.depth.tolist(),
                "y": [value if np.isfinite(value) else None for value in line.values],
                "mode": "lines+markers",
                "line": style,
                "marker": {"size": 5, "color": style["color"]},
                "customdata": [
                    [lettering.safe(layer), lettering.number(value), layer]
                    for layer, value in zip(line.names, line.values, strict=True)
                ],
                "hovertemplate": f"<b>%{{customdata[0]}}</b><br>{_METRIC.label} %{{customdata[1]}}"
                f"<extra>{name}</extra>",
            }
        )
        finite = line.values[np.isfinite(line.values)]
        if len(finite) and not theme.many:
            layout["annotations"].append(
                annotation(
                    theme,
                    f"<b>{theme.short(line.run)}</b>",
                    x=1,
                    xref="paper",
                    xanchor="left",
                    xshift=6,
                    y=float(finite[-1]),
                    font={"color": theme.label(line.place)},
                )
            )
    _spread(layout["annotations"])
    for bound, text in ((0.25, "a sigmoid's largest slope, 1/4"), (1.0, "largest slope of tanh")):
        if any((line.bounds == bound).any() for line in lines):
            layout["shapes"].append(
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": bound,
                    "y1": bound,
                    "line": {"color": theme.muted, "width": 1, "dash": "dot"},
                }
            )
            layout["annotations"].append(
                annotation(theme, text, x=0.5, xref="paper", y=bound, yanchor="bottom")
            )
    if not theme.many:
        layout["margin"]["r"] = 160 if not theme.narrow else 104
    layout["xaxis"] = axis(theme, "depth, input 0% → output 100%", range=[0, 100])
    layout["yaxis"] = axis(theme, _METRIC.axis_title, rangemode="tozero")
    add_key(layout, theme)
    return {"data": data, "layout": layout}


def derivatives(
    runs: Run | Sequence[Run], *, step: int | None = None, theme: Theme = LIGHT
) -> go.Figure:
    """Draw the mean slope of the activation functions over the depth, one line a run.

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
    lines = derivatives_info(runs, step=step)
    return titled(derivatives_figure(lines, theme), TITLE, derivatives_caption(lines), theme)


def _spread(labels: list[dict[str, Any]]) -> None:
    """Move the labels at the right end apart; an axis of about 1 has about 210 pixels."""
    heights = np.array([label["y"] * 210 for label in labels])
    for label, shift in zip(labels, lettering.spread(heights, 16) - heights, strict=True):
        label["yshift"] = float(shift)

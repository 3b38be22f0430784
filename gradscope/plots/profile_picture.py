"""The depth profile's picture: lines, bands, marks for odd readings, labels beside the lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.arithmetic import Array
from gradscope.plots import lettering
from gradscope.plots.metrics import Metric
from gradscope.plots.panels import odd_marks
from gradscope.plots.theme import (
    FigureDict,
    Theme,
    add_key,
    annotation,
    axis,
    base_layout,
    label_margin,
    log_axis,
    translucent,
)

HEIGHT = 350
FEW_LAYERS = 10
NORMAL = 100.0
"""Within this factor of the last hidden layer's gradient the background is shaded."""


@dataclass(frozen=True)
class ProfileLine:
    """One run at one step.

    Parameters
    ----------
    place : int
        Which of the given runs it is.
    run : str
    step : int
        The recorded step that is drawn.
    names : list of str
        Layers from input to output.
    x : array, shape (n_layers,)
        Number of the layer from 1, or its relative depth in percent.
    values, low, high : array, shape (n_layers,)
        The reading, and the 10th and 90th percentile over the steps around it.
    cut : array, shape (n_layers,), or None
        The signal with the gradient through the cut edges set to zero.
    arrives : float
        What of the gradient is left at the first layer, as the verdicts tell it.
    cut_edges : str
        What was cut: `shortcuts` or `branches`.
    """

    place: int
    run: str
    step: int
    names: list[str]
    x: Array
    values: Array
    low: Array
    high: Array
    cut: Array | None
    arrives: float
    cut_edges: str


@dataclass(frozen=True)
class ProfileInfo:
    """What the depth profile draws; `aligned` is true where x is the relative depth."""

    metric: Metric
    lines: list[ProfileLine]
    aligned: bool


def profile_figure(info: ProfileInfo, theme: Theme) -> FigureDict:
    """Return the figure of `info`, which has a line at least."""
    layout = base_layout(theme, HEIGHT)
    floor, ceiling = _ends(info)
    data: list[dict[str, Any]] = []
    for line in info.lines:
        data += _traces(info, line, theme, floor, ceiling)
    layout["annotations"] = [] if theme.many else _labels(info, theme, floor, ceiling)
    _axes(info, theme, layout, floor, ceiling)
    add_key(layout, theme)
    return {"data": data, "layout": layout}


def _ends(info: ProfileInfo) -> tuple[float, float]:
    """Return where exact zeros and infinities are drawn: beyond all finite values."""
    parts = [part for line in info.lines for part in (line.values, line.cut) if part is not None]
    values = np.concatenate(parts)
    values = values[np.isfinite(values) & ((values > 0) | (not info.metric.log))]
    if not info.metric.log:
        return 0.0, 1.0
    low, high = (values.min(), values.max()) if len(values) else (1.0, 1.0)
    if info.metric.relative:
        low, high = min(low, 1 / NORMAL), max(high, NORMAL)
    return float(10 ** (np.log10(low) - 0.5)), float(10 ** (np.log10(high) + 0.5))


def _traces(
    info: ProfileInfo, line: ProfileLine, theme: Theme, floor: float, ceiling: float
) -> list[dict[str, Any]]:
    """Return a run's band, line, marks for what is no number, and cut line."""
    style = theme.line(line.place)
    name = lettering.safe(line.run)
    names = [lettering.safe(layer) for layer in line.names]
    drawn = _drawable(line.values, info.metric.log)
    traces: list[dict[str, Any]] = []
    known = np.isfinite(_drawable(line.low, info.metric.log))
    if known.any() and not theme.many:
        traces.append(
            {
                "type": "scatter",
                "x": np.concatenate([line.x[known], line.x[known][::-1]]).tolist(),
                "y": np.concatenate([line.high[known], line.low[known][::-1]]).tolist(),
                "fill": "toself",
                "fillcolor": translucent(style["color"], 0.15),
                "line": {"width": 0},
                "mode": "lines",
                "hoverinfo": "skip",
            }
        )
    traces.append(
        {
            "type": "scatter",
            "name": name,
            "x": line.x.tolist(),
            "y": [value if np.isfinite(value) else None for value in drawn],
            "customdata": [
                [
                    layer,
                    lettering.times(value) if info.metric.relative else lettering.number(value),
                    raw,
                ]
                for layer, value, raw in zip(names, line.values, line.names, strict=True)
            ],
            "mode": "lines" if len(line.x) > 40 else "lines+markers",
            "marker": {"size": 5, "color": style["color"]},
            "line": style,
            "hovertemplate": f"<b>%{{customdata[0]}}</b><br>%{{customdata[1]}}"
            f"<extra>{name}</extra>",
        }
    )
    traces += odd_marks(
        line.x,
        line.values,
        ends=(floor, ceiling),
        color=style["color"],
        theme=theme,
        hover=f"<b>%{{customdata[0]}}</b><br>{{said}}<extra>{name}</extra>",
        customdata=[[lettering.safe(layer), layer] for layer in line.names],
        log=info.metric.log,
        name=name,
    )
    if line.cut is not None and not theme.many:
        cut = _drawable(line.cut, True)
        traces.append(
            {
                "type": "scatter",
                "name": name,
                "x": line.x.tolist(),
                "y": [value if np.isfinite(value) else floor for value in cut],
                "customdata": [
                    [layer, lettering.times(value), raw]
                    for layer, value, raw in zip(names, line.cut, line.names, strict=True)
                ],
                "mode": "lines",
                "line": {**style, "width": 1},
                "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}"
                f"<extra>{name}, {line.cut_edges} cut</extra>",
            }
        )
    return traces


def _drawable(values: Array, log: bool) -> Array:
    """Return `values` with NaN for what the axis cannot show."""
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def _labels(info: ProfileInfo, theme: Theme, floor: float, ceiling: float) -> list[dict[str, Any]]:
    """Return each run's name and first value beside the left end of its line, kept apart."""
    said: list[tuple[int, str, float]] = []
    lines = len(info.lines) + sum(line.cut is not None for line in info.lines)
    between, gap = ("<br>", 32) if lines <= 6 else (" ", 17)
    for line in info.lines:
        value = lettering.times if info.metric.relative else lettering.number
        name = f"<b>{theme.short(line.run)}</b>"
        said.append((line.place, f"{name}{between}{value(line.arrives)}", line.values[0]))
        if line.cut is not None:
            said.append(
                (
                    line.place,
                    f"{line.cut_edges} cut{between}{value(line.cut[0])}",
                    line.cut[0],
                )
            )

    def height_of(value: float) -> float:
        if np.isnan(value) or np.isposinf(value):
            value = ceiling
        elif info.metric.log:
            value = max(value, floor)
        return float(np.log10(value)) if info.metric.log else float(value)

    heights = np.array([height_of(value) for _, _, value in said])
    low, high = height_of(floor), height_of(ceiling)
    pixels = (HEIGHT - 70) / max(high - low, 1e-9)
    shifts = lettering.spread(heights * pixels, gap) - heights * pixels
    labels = [
        annotation(
            theme,
            text,
            x=float(info.lines[0].x[0]),
            y=height,
            xshift=-8,
            yshift=float(shift),
            xanchor="right",
            align="right",
            font={"color": theme.label(place)},
        )
        for (place, text, _), height, shift in zip(said, heights, shifts, strict=True)
    ]
    return labels


def _axes(
    info: ProfileInfo, theme: Theme, layout: FigureDict, floor: float, ceiling: float
) -> None:
    """Add both axes and, for a gradient, the shaded normal range."""
    title = "depth, input 0 % → output 100 %" if info.aligned else "layer, input → output"
    left = min(line.x[0] for line in info.lines)
    right = max(line.x[-1] for line in info.lines)
    edge = max((right - left) * 0.01, 0.5 if left == right else 0)
    layout["xaxis"] = axis(theme, title, range=[left - edge, right + edge], showline=True)
    if not info.aligned and right - left < FEW_LAYERS:
        layout["xaxis"]["dtick"] = 1  # there is no layer 1.5
    layout["margin"]["l"] = label_margin(theme, (line.run for line in info.lines))
    metric = info.metric
    if metric.log:
        decades = float(np.log10(ceiling / floor))
        layout["yaxis"] = log_axis(theme, metric.axis_title, decades, side="right")
    else:
        layout["yaxis"] = axis(theme, metric.axis_title, side="right", rangemode="tozero")
    if metric.relative:
        layout["shapes"] = [
            {
                "type": "rect",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 1 / NORMAL,
                "y1": NORMAL,
                "fillcolor": theme.band,
                "line": {"width": 0},
                "layer": "below",
            },
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 1,
                "y1": 1,
                "line": {"color": theme.muted, "width": 1, "dash": "dot"},
                "layer": "below",
            },
        ]
        layout["annotations"].append(
            annotation(
                theme,
                f"within {NORMAL:.0f} × of the last hidden layer",
                x=1,
                xref="paper",
                xanchor="right",
                y=float(np.log10(NORMAL)),
                yanchor="top",
                font={"size": 11},
            )
        )

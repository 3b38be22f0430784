"""The depth profile's picture: lines, bands, marks for odd readings, labels beside the lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.arithmetic import Array
from gradscope.plots import identity, lettering
from gradscope.plots.metrics import Metric
from gradscope.plots.panels import odd_key, odd_marks
from gradscope.plots.theme import (
    AXIS_ROOM,
    FigureDict,
    Theme,
    add_key,
    annotation,
    axis,
    base_layout,
    blend,
    label_margin,
    log_axis,
    translucent,
)

HEIGHT = 350
FEW_LAYERS = 10
NAMED = 8
"""So many layers are named under the axis."""
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
    layers : list of int
        Indices in `Run.layers`.
    names, kinds : list of str
        Layers from input to output.
    x : array, shape (n_layers,)
        Number of the layer from 1, or its relative depth in percent.
    values, low, high : array, shape (n_layers,)
        The reading, and the 10th and 90th percentile over the steps around it.
    cut : array, shape (n_layers,), or None
        The signal with the gradient through the cut edges set to zero.
    first : float
        What is said at the line's left end: its reading there.
    arrives : float
        What of the gradient is left at `early`, the first layer or block as the verdicts name it.
    early : str
    cut_edges : str
        What was cut: `shortcuts` or `branches`.
    """

    place: int
    run: str
    step: int
    layers: list[int]
    names: list[str]
    kinds: list[str]
    x: Array
    values: Array
    low: Array
    high: Array
    cut: Array | None
    first: float
    arrives: float
    early: str
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
    layout["annotations"] = (
        odd_key([line.values for line in info.lines], (floor, ceiling), theme, log=info.metric.log)
        if theme.many
        else _labels(info, theme, floor, ceiling)
    )
    _axes(info, theme, layout, floor, ceiling)
    add_key(layout, theme)
    layout["shapes"] += _blocks(info, theme)
    layout["annotations"] += _role_key(info, theme)
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
    names = [
        identity.title(layer, name, kind)
        for layer, name, kind in zip(line.layers, line.names, line.kinds, strict=True)
    ]
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
    by_role = _role_lines(info, line, drawn, theme)
    traces += by_role
    if by_role:  # the way from layer to layer jumps between roles
        style = {**style, "width": 1, "color": translucent(style["color"], 0.35)}
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


def roles_of(info: ProfileInfo, line: ProfileLine) -> dict[str, list[int]]:
    """Return the roles that are a line each: of one run alone, else there are too many lines."""
    if len(info.lines) > 1:
        return {}
    drawn = _drawable(line.values, info.metric.log)
    return identity.roles_apart(line.names, np.log10(drawn) if info.metric.log else drawn)


def _role_color(theme: Theme, rank: int, count: int) -> str:
    return blend(theme.sequence, rank / max(count - 1, 1))


def _role_lines(
    info: ProfileInfo, line: ProfileLine, drawn: Array, theme: Theme
) -> list[dict[str, Any]]:
    """Return a line for each role that layers play in blocks that repeat."""
    found = roles_of(info, line)
    return [
        {
            "type": "scatter",
            "name": lettering.safe(role),
            "x": line.x[places].tolist(),
            "y": [value if np.isfinite(value) else None for value in drawn[places]],
            "mode": "lines+markers",
            "marker": {"size": 6},
            "line": {"color": _role_color(theme, rank, len(found)), "width": 2.5},
            "hoverinfo": "skip",
        }
        for rank, (role, places) in enumerate(found.items())
    ]


def _role_key(info: ProfileInfo, theme: Theme) -> list[dict[str, Any]]:
    """Return what the lines of the roles are called."""
    found = roles_of(info, info.lines[0])
    if not found:
        return []
    words = [
        f'<span style="color: {_role_color(theme, rank, len(found))}">━━</span> '
        f"{lettering.safe(role, 24)}"
        for rank, role in enumerate(found)
    ]
    beside = 2 if theme.narrow else len(words)
    rows = ["   ".join(words[i : i + beside]) for i in range(0, len(words), beside)]
    text = "<br>".join(rows)
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": 0, "yref": "paper"}
    return [annotation(theme, text, **place, yanchor="bottom", yshift=8, align="left")]


def groups_of(info: ProfileInfo) -> list[identity.Group]:
    """Return the blocks that are marked under the lines: those of one net."""
    same = len({tuple(line.names) for line in info.lines}) == 1
    return identity.groups(info.lines[0].names) if same else []


def _blocks(info: ProfileInfo, theme: Theme) -> list[dict[str, Any]]:
    """Return a strip under the lines: the layers of a block side by side in one shade."""
    line = info.lines[0]
    half = (line.x[1] - line.x[0]) / 2 if len(line.x) > 1 else 0.5
    strip = {"type": "rect", "yref": "paper", "y0": 0, "y1": 0.014, "line": {"width": 0}}
    return [
        {
            **strip,
            "x0": float(line.x[group.first] - half),
            "x1": float(line.x[group.last] + half),
            "fillcolor": (theme.trunk, theme.grid)[rank % 2],
        }
        for rank, group in enumerate(groups_of(info))
    ]


def _name_ticks(info: ProfileInfo, theme: Theme) -> dict[str, Any]:
    """Return settings of the x axis that number or name about every eighth of the layers."""
    line = info.lines[0]
    if info.aligned or len({tuple(line.layers) for line in info.lines}) > 1:
        return {}
    named = not theme.narrow and len({tuple(line.names) for line in info.lines}) == 1
    count = len(line.names)
    few = min(count, NAMED)
    every = -(-(count - 1) // max(few - 1, 1)) or 1
    places = [*(i for i in range(0, count - 1, every) if count - 1 - i >= every), count - 1]
    return {
        "tickvals": [float(line.x[place]) for place in places],
        "ticktext": [
            f"{line.layers[place]}{f'<br>{lettering.tail(line.names[place])}' * named}"
            for place in places
        ],
        "tickangle": 0,
    }


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
        first = theme.broken(value(line.first))
        said.append((line.place, f"{name}{between}{first}", line.values[0]))
        if line.cut is not None:
            said.append(
                (
                    line.place,
                    f"{line.cut_edges} cut{between}{theme.broken(value(line.cut[0]))}",
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
    names = _name_ticks(info, theme)
    what = "layer" if names else "weight layer"
    title = "depth, input 0% → output 100%" if info.aligned else f"{what}, input → output"
    left = min(line.x[0] for line in info.lines)
    right = max(line.x[-1] for line in info.lines)
    edge = max((right - left) * 0.01, 0.5 if left == right else 0)
    layout["xaxis"] = axis(theme, title, range=[left - edge, right + edge], showline=True, **names)
    if not names and not info.aligned and right - left < FEW_LAYERS:
        layout["xaxis"]["dtick"] = 1  # there is no layer 1.5
    layout["margin"] |= {
        "l": label_margin(theme, (line.run for line in info.lines)),
        "r": AXIS_ROOM,
        "t": 22,
        "b": 48 if theme.narrow else 64,
    }
    metric = info.metric
    if metric.log:
        decades = float(np.log10(ceiling / floor))
        layout["yaxis"] = log_axis(theme, metric.axis_title, decades, side="right")
    else:
        layout["yaxis"] = axis(theme, metric.axis_title, side="right", rangemode="tozero")
    if metric.relative:
        # lines meet on the right, where one that explodes leaves the band; on the left it is above
        side = "left" if any(line.first > NORMAL for line in info.lines) else "right"
        layout["shapes"] += [
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
                f"normal: within {NORMAL:.0f} ×",
                x=int(side == "right"),
                xref="paper",
                xanchor=side,
                y=float(np.log10(NORMAL)),
                yanchor="top",
                bgcolor=translucent(theme.surface, 0.8),
                font={"size": 11},
            )
        )

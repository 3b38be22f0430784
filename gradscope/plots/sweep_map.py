"""A setting of many runs by layers: where, and at which values, the net can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.arithmetic import Array
from gradscope.diagnosis.summary import Summary, summarise
from gradscope.plots import lettering
from gradscope.plots.drawn import as_runs, drawn_metric
from gradscope.plots.metrics import METRICS
from gradscope.plots.panels import odd_cells, told
from gradscope.plots.sweep_columns import label_columns, outlines, stretches
from gradscope.plots.sweep_order import said, sweep_key, sweep_order
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    annotation,
    axis,
    base_layout,
    log_axis,
    nothing_to_show,
    titled,
)
from gradscope.runs.run import Run

TITLE = "At which settings can it be trained?"
TOLD = 8
"""Of so many groups of runs it is said which settings are good."""
FELL = 0.9
"""Share of the first loss below which one has fallen, for a run to be good."""
ROWS = 40
"""Deeper nets are put into so many rows of about equal depth."""


@dataclass(frozen=True)
class SweepInfo:
    """Runs in the order of `values` of the setting `key`, or of words for each.

    Attributes
    ----------
    key : str
    values : list, n_runs
    groups : list of str, n_runs
        The other settings in words, as `depth = 8`; empty where hardly two runs share them.
    runs : list of str
    depth : array, shape (n_rows,), percent
    signal, speed : array, shape (n_rows, n_runs)
        Median over the last fifth of the steps: gradient over the last hidden layer's, and share
        of the weights moved in a step.
    loss : array, shape (n_runs,)
        Last one that was logged.
    good : list of bool
        Healthy flow, and a loss that falls.
    """

    key: str
    values: list[Any]
    groups: list[str]
    runs: list[str]
    depth: NDArray[np.float64]
    signal: Array
    speed: Array
    loss: NDArray[np.float64]
    good: list[bool]


def sweep_map_info(
    runs: Run | Sequence[Run],
    *,
    key: str | None = None,
    summaries: Sequence[Summary] | None = None,
) -> SweepInfo | None:
    """Return the runs beside each other by the setting `key`; None if fewer than two have steps.

    Parameters
    ----------
    runs : Run or sequence of Run
    key : str, optional
        A name in `Run.config`; by default that with the most values.
    summaries : sequence of Summary, optional
        Of each run, where they are known already.
    """
    listed = as_runs(runs)
    known = list(summaries) if summaries is not None else [summarise(run) for run in listed]
    pairs = [pair for pair in zip(listed, known, strict=True) if pair[1].steps]
    if len(pairs) < 2:
        return None
    with_steps = [run for run, _ in pairs]
    order = sweep_order(with_steps, sweep_key(with_steps) if key is None else key)
    pairs = [pairs[i] for i in order.places]
    rows = min(ROWS, max(int(run.layers["depth"].max()) for run, _ in pairs))
    depth = np.linspace(0, 100, max(rows, 2))
    return SweepInfo(
        order.key,
        order.values,
        order.groups,
        [run.name for run, _ in pairs],
        depth,
        np.stack([_profile(run, "signal_norm", depth) for run, _ in pairs], axis=1),
        np.stack([_profile(run, "update_ratio", depth) for run, _ in pairs], axis=1),
        np.array([summary.last_loss for _, summary in pairs]),
        [_is_good(summary) for _, summary in pairs],
    )


def _is_good(summary: Summary) -> bool:
    learns = summary.loss is None or summary.loss.tone == "good"
    if len(summary.spark) and summary.spark[0] > 0 and np.isfinite(summary.last_loss):
        learns &= summary.last_loss < FELL * summary.spark[0]
    # a first step that was large did no harm where the loss fell since
    moves = summary.speed is None or summary.speed.tone == "good" or summary.jumped
    return bool(summary.flow.tone == "good" and learns and moves)


def _profile(run: Run, metric: str, depth: NDArray[np.float64]) -> Array:
    """Return the median of the last fifth of the steps at each depth, NaN for good where broken."""
    data = drawn_metric(run, METRICS[metric])
    if data.empty:
        return np.full(len(depth), np.nan)
    first = len(data.steps) - max(len(data.steps) // 5, 1)
    values = data.values(max(first, len(data.steps) - 1000)).astype(float)
    middle = np.median(values, axis=0)
    own = np.linspace(0, 100, len(middle)) if len(middle) > 1 else np.array([0.0])
    nearest = np.abs(own[:, None] - depth[None, :]).argmin(axis=0)
    return np.asarray(middle[nearest])


def sweep_map_caption(info: SweepInfo | None, unread: int = 0) -> str:
    """Return how to read the figure, and which settings are good.

    Parameters
    ----------
    info : SweepInfo or None
    unread : int
        Runs that are not in it yet: what is best of the others is then said of them alone.
    """
    if info is None:
        return "Choose two runs or more."
    text = (
        " A column a run, input on top: the gradient over the last hidden layer's, and how far a"
        " step moves the weights, medians over the last fifth of the training. The last loss lies"
        " on top. Outlined: gradient flow healthy, weights that move, a loss that falls by a"
        " tenth or more."
    )
    read = f"Read so far: {len(info.runs)} of {len(info.runs) + unread} runs; of these: "
    count = sum(info.good)
    if not count:
        return f"{read * bool(unread)}None of the runs can be trained.{text}"
    found = ""
    if np.isfinite(info.loss).any():
        best = int(np.nanargmin(np.where(np.isfinite(info.loss), info.loss, np.nan)))
        least, at = lettering.number(info.loss[best]), _setting(info, best)
        found = f" The lowest loss, {least}, at {at}."
    good = f"Trainable: {_trainable(info)}{count} of {len(info.runs)} runs.{found}"
    return f"{read * bool(unread)}{good}{text}"


def _trainable(info: SweepInfo) -> str:
    """Return which values of the setting are good, for each of the other settings."""
    groups = list(dict.fromkeys(info.groups))
    if not groups or len(groups) > TOLD:
        return ""
    parts = []
    for group in groups:
        good = [
            said(value)
            for value, fine, one in zip(info.values, info.good, info.groups, strict=True)
            if fine and one == group
        ]
        if good:
            ends = good[0] if len(good) == 1 else f"{good[0]} to {good[-1]}"
            parts.append(f"{f'{group}: ' * bool(group)}{info.key} = {ends}")
    return f"{'; '.join(parts)}, "


def _setting(info: SweepInfo, run: int) -> str:
    """Return the settings of the run in that column."""
    parts = [f"{info.key} = {said(info.values[run])}"]
    return ", ".join(parts + info.groups[run : run + 1] * any(info.groups))


def sweep_map_figure(info: SweepInfo | None, theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `info` as a dict for plotly: the loss, and two maps below it."""
    if info is None:
        return nothing_to_show(theme, "Choose two runs or more to see them beside each other.")
    layout = base_layout(theme, 640)
    layout["margin"] |= {"l": 90, "t": 46, "r": 120 if not theme.narrow else 16}
    layout["plot_bgcolor"] = "rgba(0,0,0,0)"
    count = len(info.runs)
    x = list(range(count))
    domains = {"yaxis": [0.84, 1.0], "yaxis2": [0.44, 0.79], "yaxis3": [0.0, 0.38]}
    finite = np.isfinite(info.loss) & (info.loss > 0)
    names = [
        f"<b>{lettering.safe(name)}</b><br>{lettering.safe(_setting(info, i))}"
        for i, name in enumerate(info.runs)
    ]
    dots = [theme.shortcut if good else theme.missing for good in info.good]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if info.groups else "markers",
            "x": x[first:stop],
            "y": [
                float(v) if ok else None
                for v, ok in zip(info.loss[first:stop], finite[first:stop], strict=True)
            ],
            "line": {"color": theme.text, "width": 2},
            "marker": {"color": dots[first:stop], "size": 9 if count <= 30 else 6},
            "customdata": names[first:stop],
            "text": told(info.loss[first:stop]),
            "hovertemplate": "%{customdata}<br>last loss %{text}<extra></extra>",
        }
        for first, stop in stretches(info.groups or [""] * count)
    ]
    broken = np.diff(np.r_[0, np.isnan(info.loss).astype(int), 0])
    layout["annotations"] += [
        annotation(
            theme,
            "NaN",
            x=(first + stop - 1) / 2,
            y=1,
            yref="paper",
            yanchor="top",
            font={"size": 12},
        )
        for first, stop in np.flatnonzero(broken).reshape(-1, 2).tolist()
    ]
    limit = _reach(info.signal)
    for number, (values, coloring) in enumerate(
        (
            (info.signal, {"zmin": -limit, "zmax": limit, "colorscale": theme.over_decades(limit)}),
            (info.speed, {"zmin": -7, "zmax": 0, "colorscale": _ramp(theme), "xaxis": "x2"}),
        ),
        start=2,
    ):
        data += _cells(info, values, coloring, names, theme, number)
    label_columns(info.key, info.values, info.groups, theme, layout)
    decades = _decades(info.loss[finite])
    layout["yaxis"] = log_axis(theme, "last loss", decades, nticks=3, domain=domains["yaxis"])
    for name, title in (("yaxis2", "gradient"), ("yaxis3", "update speed")):
        layout[name] = axis(
            theme,
            f"{title}<br>depth, input on top",
            autorange="reversed",
            showgrid=False,
            ticksuffix="%",
            nticks=4,
            domain=domains[name],
            anchor="x" if name == "yaxis2" else "x2",
        )
    layout["shapes"] += outlines(info.good, info.groups, theme)
    layout["annotations"] += _key(info, limit, domains, theme)
    return {"data": data, "layout": layout}


def _key(
    info: SweepInfo, limit: int, domains: dict[str, list[float]], theme: Theme
) -> list[dict[str, Any]]:
    """Return what the colours of both maps are: beside them, on a narrow page above each."""
    # the very ends of the first scale are both nearly black
    low, high = (theme.diverging[i][1] for i in (1, -2))
    slow, fast = (_ramp(theme)[i][1] for i in (0, -1))
    said = {
        "yaxis2": (f"{_square(low)} less", f"{_square(high)} more", f"± {limit} decades"),
        "yaxis3": (f"{_square(slow)} 10<sup>−7</sup> a step", f"{_square(fast)} 1 a step"),
    }
    for name, values in (("yaxis2", info.signal), ("yaxis3", info.speed)):
        odd = [(color, words) for mask, color, words in odd_cells(values, theme) if mask.any()]
        said[name] = (*said[name], *(f"{_square(color)} {words}" for color, words in odd))
    if theme.narrow:
        place = {"x": 1, "xref": "paper", "xanchor": "right", "yref": "paper", "yanchor": "bottom"}
        return [
            annotation(
                theme,
                "   ".join(words),
                y=domains[name][1],
                font={"size": 11},
                bgcolor=theme.surface,
                **place,
            )
            for name, words in said.items()
        ]
    place = {"x": 1, "xref": "paper", "xanchor": "left", "yref": "paper", "xshift": 8}
    return [
        annotation(theme, "<br>".join(words), y=sum(domains[name]) / 2, align="left", **place)
        for name, words in said.items()
    ]


def sweep_map(
    runs: Run | Sequence[Run], *, key: str | None = None, theme: Theme = LIGHT
) -> go.Figure:
    """Draw the runs of a sweep beside each other: last loss, gradient and update speed by depth.

    Parameters
    ----------
    runs : Run or sequence of Run
        Two or more.
    key : str, optional
        The setting to order them by, a name in `Run.config`; that with the most values without it.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    info = sweep_map_info(runs, key=key)
    return titled(sweep_map_figure(info, theme), TITLE, sweep_map_caption(info), theme)


def _cells(
    info: SweepInfo,
    values: Array,
    coloring: dict[str, Any],
    names: list[str],
    theme: Theme,
    number: int,
) -> list[dict[str, Any]]:
    """Return the cells of a map, and cells of their own for what has no logarithm."""
    where = {
        "type": "heatmap",
        "x": list(range(len(names))),
        "y": info.depth.tolist(),
        "yaxis": f"y{number}",
        "xgap": 1,
        "hoverongaps": False,
        "showscale": False,
    }
    fine = np.isfinite(values) & (values > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.where(fine, np.log10(values), np.nan).astype(np.float32)
    if "xaxis" in coloring:
        where["xaxis"] = coloring["xaxis"]
    text = "%{customdata}<br>depth %{y:.0f}%: %{z:+.1f} decades<extra></extra>"
    hover = np.tile(np.array(names, dtype=object), (len(info.depth), 1)).tolist()
    cells = [{**where, **coloring, "z": decades, "customdata": hover, "hovertemplate": text}]
    for mask, color, words in odd_cells(values, theme):
        if mask.any():
            cells.append(
                {
                    **where,
                    "z": np.where(mask, 1, np.nan).astype(np.float32),
                    "colorscale": [[0, color], [1, color]],
                    "customdata": hover,
                    "hovertemplate": f"%{{customdata}}<br>{words}<extra></extra>",
                }
            )
    return cells


def _decades(loss: NDArray[np.float64]) -> float:
    """Return how many decades the losses span, three times: their axis has room for three."""
    return 3 * float(np.log10(loss.max() / loss.min())) if len(loss) else 0.0


def _reach(values: Array) -> int:
    known = values[np.isfinite(values) & (values > 0)]
    reach = float(np.percentile(np.abs(np.log10(known)), 97)) if len(known) else 0
    return int(np.clip(np.ceil(reach), 2, 12))


def _ramp(theme: Theme) -> list[list[Any]]:
    return [[i / (len(theme.sequence) - 1), color] for i, color in enumerate(theme.sequence)]


def _square(color: str) -> str:
    return f'<span style="color: {color}">■</span>'

"""Speed of learning: how far each step moves five layers spread over the depth.

The figure of Nielsen, Neural Networks and Deep Learning, chapter 5, with the true update of the
weights in place of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.plots import lettering
from gradscope.plots.drawn import as_runs, drawn_metric
from gradscope.plots.metrics import METRICS
from gradscope.plots.panels import (
    PanelAxes,
    banded,
    drawable,
    in_panels,
    odd_marks,
    rows_of,
    shown_panels,
    title_limit,
    told,
)
from gradscope.plots.sampling import STRETCHES, Band, band, extremes
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    annotation,
    base_layout,
    log_axis,
    nothing_to_show,
    step_axis,
    titled,
    translucent,
)
from gradscope.runs.run import Run
from gradscope.wording import setting

TITLE = "How fast does each layer learn?"
LAYERS = 5
POINTS = 250
SAID = 4
"""Of so many runs a caption says which layers stand still."""
USUAL = (1e-4, 1e-2)
"""Update speeds that are usually seen in nets that train well (CS231n); advice, not a limit."""


@dataclass(frozen=True)
class SpeedCurve:
    """Update speed of one layer: `number` in `Run.layers`, `steps` and `values` of shape (n_kept,).

    `band` is there if it is too long for a line.
    """

    name: str
    number: int
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    band: Band | None


@dataclass(frozen=True)
class SpeedPanel:
    """Curves of the `place`-th given run from the input to the output."""

    place: int
    run: str
    curves: list[SpeedCurve]
    total: int


def speed_info(runs: Run | Sequence[Run], *, layers: int = LAYERS) -> list[SpeedPanel]:
    """Return the update speeds of `layers` layers spread evenly over the depth of each run."""
    panels = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, METRICS["update_ratio"])
        if data.empty:
            continue
        picked = np.unique(np.linspace(0, len(data.layers) - 1, layers).round().astype(int))
        curves = []
        series = data.series(data.layers[picked].tolist())
        for column, read in zip(picked, series, strict=True):
            values = read.astype(float)
            with np.errstate(divide="ignore"):
                kept = extremes(np.log10(values), POINTS)
            curves.append(
                SpeedCurve(
                    data.names[column],
                    int(data.layers[column]),
                    data.steps[kept],
                    values[kept],
                    band(data.steps, values),
                )
            )
        panels.append(SpeedPanel(place, run.name, curves, len(data.steps)))
    return panels


def speed_caption(panels: list[SpeedPanel]) -> str:
    """Return how to read the figure, and what was left out of it."""
    text = (
        "Update speed = |change of the weights| ÷ |weights| in one step. Lines that lie apart are"
        f" layers that learn at different speeds. Shaded: {setting(USUAL[0])} to"
        f" {setting(USUAL[1])}, usual in nets that train well."
    )
    dropped = max((panel.total for panel in panels if panel.total > 2 * POINTS), default=0)
    if dropped:
        text += (
            f" Drawn: median and extremes of each of {STRETCHES} stretches of {dropped:,} steps."
        )
    shown, left_out = shown_panels(panels)
    said = [] if len(panels) > SAID else filter(None, map(_standing, shown))
    return " ".join([text + left_out, *said])


def _standing(panel: SpeedPanel) -> str:
    """Return which layers do not move, or not by a number, in words; empty if all do."""
    never = [str(curve.number) for curve in panel.curves if (curve.values == 0).all()]
    at_times = [
        str(curve.number)
        for curve in panel.curves
        if (curve.values == 0).any() and (curve.values != 0).any()
    ]
    said = [f"{_named(never)} never move{'s' * (len(never) == 1)}"] if never else []
    if at_times:
        said.append(f"{_named(at_times)} stand{'s' * (len(at_times) == 1)} still at times")
    text = f"{panel.run}: {', '.join(said)} (change of exactly 0)." if said else ""
    odd = [str(c.number) for c in panel.curves if not np.isfinite(c.values).all()]
    return f"{text} {panel.run}: {_named(odd)} with NaN or inf.".strip() if odd else text


def _named(numbers: list[str]) -> str:
    *others, last = numbers
    return f"layers {', '.join(others)} and {last}" if others else f"layer {last}"


def speed_figure(panels: list[SpeedPanel], theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `panels` as a dict for plotly, one panel a run on one scale."""
    if not panels:
        return nothing_to_show(theme, "No weight update has been recorded yet.")
    panels, _ = shown_panels(panels)
    rows = rows_of(len(panels), theme)
    height = 460 if rows == 1 else 230 * rows + 60
    layout = base_layout(theme, height if not theme.narrow else 320 * len(panels) + 40)
    layout["margin"]["t"] = 30
    low, high = _range(panels)
    decades = float(np.log10(high / low))
    data: list[dict[str, Any]] = []
    for axes, panel in in_panels(panels, theme, beside=0.03, below=0.14):
        for rank, curve in enumerate(panel.curves):
            share = rank / max(len(panel.curves) - 1, 1)
            color = theme.sequence[round(share * (len(theme.sequence) - 1))]
            data += _curve(curve, color, theme, (low, high), axes)
        axes.add_to(
            layout,
            step_axis(
                theme,
                [curve.steps for curve in panel.curves],
                showline=True,
                autorangeoptions=_room_for_labels(panel),
            ),
            log_axis(
                theme,
                "|update| ÷ |weights| per step" if axes.leftmost else "",
                decades,
                showticklabels=axes.leftmost,
                **({"matches": "y"} if axes.number else {}),
            ),
        )
        layout["shapes"].append(
            {
                "type": "rect",
                "xref": f"{axes.x} domain",
                "x0": 0,
                "x1": 1,
                "yref": axes.y,
                "y0": USUAL[0],
                "y1": USUAL[1],
                "fillcolor": theme.band,
                "line": {"width": 0},
                "layer": "below",
            }
        )
        layout["annotations"].append(
            axes.run_title(theme, panel.run, panel.place, limit=title_limit(len(panels)))
        )
        height = (layout["height"] - 90) * (axes.down[1] - axes.down[0])
        layout["annotations"] += _labels(panel, theme, axes, (low, high), height)
    return {"data": data, "layout": layout}


def speed(runs: Run | Sequence[Run], *, layers: int = LAYERS, theme: Theme = LIGHT) -> go.Figure:
    """Draw the update speed of layers spread evenly over the depth, one panel a run.

    Parameters
    ----------
    runs : Run or sequence of Run
    layers : int
        How many layers to draw, the first and the last among them.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    panels = speed_info(runs, layers=layers)
    return titled(speed_figure(panels, theme), TITLE, speed_caption(panels), theme)


def _drawable(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.isfinite(values) & (values > 0)


def _room_for_labels(panel: SpeedPanel) -> dict[str, float]:
    """Return how to stretch the axis to the right: the labels lie beyond the lines."""
    first, last = int(panel.curves[0].steps[0]), int(panel.curves[0].steps[-1])
    if first == last:
        return {}  # plotly puts a single point into the middle
    return {"minallowed": first, "include": last + 0.25 * (last - first)}


def _range(panels: list[SpeedPanel]) -> tuple[float, float]:
    """Return the ends of the scale; zeros and infinities are drawn there."""
    values = np.concatenate([curve.values for panel in panels for curve in panel.curves])
    values = values[_drawable(values)]
    low, high = (values.min(), values.max()) if len(values) else USUAL
    if len(panels) > 1 and len(values):  # one that explodes leaves the others their room
        high = min(high, float(np.percentile(values, 97)) * 10)
    return float(min(low, USUAL[0]) / 2), float(max(high, USUAL[1]) * 2)


def _curve(
    curve: SpeedCurve, color: str, theme: Theme, ends: tuple[float, float], axes: PanelAxes
) -> list[dict[str, Any]]:
    """Return a layer's line, and marks where the speed is zero or no number."""
    name = f"{curve.number} · {lettering.safe(curve.name)}"
    where: dict[str, Any] = {"name": name, **axes.of_trace}
    line: dict[str, Any] = {
        **where,
        "type": "scatter",
        "x": curve.steps.tolist(),
        "y": drawable(curve.values),
        "text": told(curve.values),
        "mode": "lines" if len(curve.steps) > 1 else "markers",
        "line": {"color": color, "width": 2},
        "marker": {"color": color, "size": 7},
        "customdata": [[name, curve.name]] * len(curve.steps),
        "hovertemplate": "<b>%{customdata[0]}</b><br>step %{x}: %{text}<extra></extra>",
    }
    return [
        *banded(line, curve.band, color),
        *odd_marks(
            curve.steps,
            curve.values,
            ends=ends,
            color=color,
            theme=theme,
            hover="<b>%{customdata[0]}</b><br>step %{x}: {said}<extra></extra>",
            customdata=[[name, curve.name]] * len(curve.steps),
            **where,
        ),
    ]


def _labels(
    panel: SpeedPanel, theme: Theme, axes: PanelAxes, ends: tuple[float, float], height: float
) -> list[dict[str, Any]]:
    """Return the number of each layer at the right end of its line, kept apart."""
    low, high = ends
    lasts = []
    for curve in panel.curves:
        drawn, zero = curve.values[_drawable(curve.values)], (curve.values == 0).any()
        lasts.append(drawn[-1] if len(drawn) else low if zero else high)  # where the marks are
    heights = np.log10(lasts)
    pixels = height / np.log10(high / low)
    shifts = lettering.spread(heights * pixels, 15) - heights * pixels
    labels = []
    for rank, (curve, at, shift) in enumerate(zip(panel.curves, heights, shifts, strict=True)):
        share = rank / max(len(panel.curves) - 1, 1)
        end = {0.0: f"layer {curve.number}, input", 1.0: f"{curve.number}, output"}.get(
            share, str(curve.number)
        )
        labels.append(
            annotation(
                theme,
                end,
                x=1,
                xref=f"{axes.x} domain",
                y=float(at),
                yref=axes.y,
                xanchor="right",
                yanchor="bottom",
                bgcolor=translucent(theme.surface, 0.7),
                yshift=float(shift),
                font={"color": theme.sequence[round(share * (len(theme.sequence) - 1))]},
            )
        )
    return labels

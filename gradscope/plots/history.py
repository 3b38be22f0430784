"""One layer over the whole training: its gradient, its weights' speed, its activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.plots import lettering
from gradscope.plots.drawn import as_runs, drawn_metric
from gradscope.plots.metrics import METRICS, Metric
from gradscope.plots.panels import PanelAxes, banded, drawable, in_panels, odd_marks, told
from gradscope.plots.sampling import Band, band, extremes
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    base_layout,
    log_axis,
    nothing_to_show,
    step_axis,
    titled,
)
from gradscope.runs.run import Run

SHOWN = ("signal_norm", "grad_norm", "update_ratio", "activation_std")
POINTS = 300


@dataclass(frozen=True)
class HistoryCurve:
    """A metric of the layer in the `place`-th given run, `steps` and `values` (n_kept,).

    `band` is there if it is too long for a line.
    """

    place: int
    run: str
    metric: Metric
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    band: Band | None


def history_info(runs: Run | Sequence[Run], layer: str) -> list[HistoryCurve]:
    """Return the readings of the layer called `layer` at every step of the runs that have it."""
    curves = []
    for place, run in enumerate(as_runs(runs)):
        found = np.flatnonzero(run.layers["name"].to_numpy() == layer)
        if not len(found):
            continue
        for name in SHOWN:
            data = drawn_metric(run, METRICS[name])
            if data.empty:
                continue
            values = data.layer(found[0]).astype(float)
            if not np.isnan(values).all():
                with np.errstate(divide="ignore"):
                    kept = extremes(np.log10(values), POINTS)
                curves.append(
                    HistoryCurve(
                        place,
                        run.name,
                        METRICS[name],
                        data.steps[kept],
                        values[kept],
                        band(data.steps, values),
                    )
                )
    return curves


def history_caption(curves: list[HistoryCurve]) -> str:
    """Return what of the layer is no healthy number, in words; empty if all is."""
    texts = []
    for curve in curves:
        if found := lettering.specials(curve.values):
            texts.append(f"{curve.run}, {curve.metric.label}: {found.replace('layers', 'steps')}.")
    return " ".join(texts)


def history_figure(curves: list[HistoryCurve], theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `curves` as a dict for plotly, a panel a metric."""
    if not curves:
        return nothing_to_show(theme, "No selected run has readings of this layer.")
    metrics = [METRICS[name] for name in SHOWN if any(c.metric.name == name for c in curves)]
    layout = base_layout(theme, 250 if not theme.narrow else 230 * len(metrics))
    layout["margin"]["t"] = 30
    data: list[dict[str, Any]] = []
    for axes, metric in in_panels(metrics, theme, beside=0.05, below=0.09):
        mine = [curve for curve in curves if curve.metric is metric]
        values = np.concatenate([curve.values for curve in mine])
        good = values[np.isfinite(values) & (values > 0)]
        low, high = (good.min(), good.max()) if len(good) else (1.0, 1.0)
        # Zeros lie below all numbers, infinities and NaN above them.
        low, high = low / (high / low) ** 0.15 / 1.5, high * 1.2
        for curve in mine:
            data += _curve(curve, theme, axes, float(low), float(high))
        axes.add_to(
            layout,
            step_axis(theme, [curve.steps for curve in mine], showline=True),
            log_axis(
                theme, "", float(np.log10(high / low)), nticks=5, showticklabels=len(good) > 0
            ),
        )
        left = {"x": axes.across[0], "xanchor": "left", "font": {"color": theme.text}}
        layout["annotations"].append(axes.title(theme, f"<b>{metric.axis_title}</b>", **left))
    return {"data": data, "layout": layout}


def history(runs: Run | Sequence[Run], layer: str, *, theme: Theme = LIGHT) -> go.Figure:
    """Draw what was read of one layer over the steps, one panel a metric and one line a run.

    Parameters
    ----------
    runs : Run or sequence of Run
    layer : str
        Name of the layer, as in `Run.layers`.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    curves = history_info(runs, layer)
    title = f"Layer {lettering.safe(layer)}"
    return titled(history_figure(curves, theme), title, history_caption(curves), theme)


def _curve(
    curve: HistoryCurve, theme: Theme, axes: PanelAxes, low: float, high: float
) -> list[dict[str, Any]]:
    """Return a run's line, and marks where there is no number to draw."""
    style = theme.line(curve.place, 2)
    name = lettering.safe(curve.run)
    where: dict[str, Any] = {"name": name, **axes.of_trace}
    line: dict[str, Any] = {
        **where,
        "type": "scatter",
        "x": curve.steps.tolist(),
        "y": drawable(curve.values),
        "text": told(curve.values),
        "mode": "lines" if len(curve.steps) > 1 else "markers",
        "line": style,
        "marker": {"color": style["color"]},
        "hovertemplate": f"step %{{x}}: %{{text}}<extra>{name}</extra>",
    }
    return [
        *banded(line, curve.band, style["color"], filled=not theme.many),
        *odd_marks(
            curve.steps,
            curve.values,
            ends=(low, high),
            color=style["color"],
            theme=theme,
            hover=f"step %{{x}}: {{said}}<extra>{name}</extra>",
            **where,
        ),
    ]

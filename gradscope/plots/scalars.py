"""Everything that a run logged, and what was recorded of its steps: a small panel each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope import schema
from gradscope.diagnosis.curves import nan_to_the_end
from gradscope.plots import lettering
from gradscope.plots.drawn import as_runs
from gradscope.plots.panels import drawable, in_panels, rows_of, told
from gradscope.plots.sampling import extremes
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    add_key,
    axis,
    base_layout,
    log_axis,
    nothing_to_show,
    step_axis,
    titled,
)
from gradscope.runs.run import Run

TITLE = "What was logged, step by step"
POINTS = 300
MOST = 24
"""More names than this are left out, the last ones."""
_NO_CURVES = ("step", "time", "skipped")


@dataclass(frozen=True)
class ScalarCurve:
    """The scalar `name` of the `place`-th given run at `steps`, both of shape (n_kept,).

    `gap` is where it was NaN for good: the first such step and the last one, or None.
    """

    place: int
    run: str
    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    gap: tuple[int, int] | None


def scalars_info(runs: Run | Sequence[Run]) -> list[ScalarCurve]:
    """Return every scalar of the runs: those that were logged, then those of the steps.

    What never changes, such as the scale of a loss that is not scaled, is left out, unless it was
    logged.
    """
    recorded = [name for name in schema.names(schema.STEPS) if name not in _NO_CURVES]
    curves = []
    for place, run in enumerate(as_runs(runs)):
        steps = run.steps
        number = steps["step"].to_numpy()
        for name in steps.columns:
            if name in _NO_CURVES:
                continue
            values = steps[name].to_numpy(dtype=float)
            known = np.flatnonzero(~np.isnan(values))
            if not len(known) or (name in recorded and len(np.unique(values[known])) == 1):
                continue
            if name == "clipped_grad_norm" and np.array_equal(
                values, steps["grad_norm"].to_numpy(dtype=float), equal_nan=True
            ):
                continue
            kept = known[extremes(values[known], POINTS)]
            gap = nan_to_the_end(number, number[known])
            curve = ScalarCurve(place, run.name, str(name), number[kept], values[kept], gap)
            curves.append(curve)
    names = dict.fromkeys(curve.name for curve in curves)
    order = sorted(names, key=lambda name: name in recorded)[:MOST]
    return [curve for name in order for curve in curves if curve.name == name]


def scalars_caption(curves: list[ScalarCurve]) -> str:
    """Return how to read the figure, and where a scalar became NaN."""
    text = "All panels share the steps: a zoom into one is a zoom into all."
    broken = {f"{c.run}: {c.name} from step {c.gap[0]:,} on" for c in curves if c.gap}
    if broken:
        text += f" NaN is shaded, or its begin a cross: {'; '.join(sorted(broken)[:4])}."
    return text


def scalars_figure(
    curves: list[ScalarCurve], theme: Theme = LIGHT, *, log: bool = False
) -> FigureDict:
    """Return the figure of `curves` as a dict for plotly, a panel a name, in rows of four."""
    if not curves:
        return nothing_to_show(theme, "Nothing was logged. Log with scope.log(train_loss=loss).")
    names = list(dict.fromkeys(curve.name for curve in curves))
    rows = rows_of(len(names), theme)
    layout = base_layout(theme, 190 * rows + 70)
    layout["margin"] |= {"t": 30, "r": 16}
    layout["hovermode"] = "x"
    data: list[dict[str, Any]] = []
    for axes, name in in_panels(names, theme, beside=0.05, below=0.3 / rows):
        mine = [curve for curve in curves if curve.name == name]
        positive = all((c.values[np.isfinite(c.values)] > 0).all() for c in mine)
        for curve in mine:
            style = theme.line(curve.place, 2)
            run = lettering.safe(curve.run)
            data.append(
                {
                    "type": "scatter",
                    "name": run,
                    "x": curve.steps.tolist(),
                    "y": drawable(curve.values, log=log and positive),
                    "text": told(curve.values),
                    "mode": "lines" if len(curve.steps) > 1 else "markers",
                    "line": style,
                    "marker": {"color": style["color"]},
                    "hovertemplate": f"step %{{x}}: %{{text}}<extra>{run}</extra>",
                    **axes.of_trace,
                }
            )
        marked = [(c.place, c.steps, c.values, c.gap) for c in mine]
        shades, crosses = axes.mark_nan(marked, theme)
        layout["shapes"] += shades
        data += crosses
        spikes = {"showspikes": True, "spikemode": "across", "spikethickness": 1}
        x = step_axis(
            theme,
            [np.append(c.steps, c.gap or ()) for c in mine],
            "step" if axes.lowest else "",
            showline=True,
        )
        x |= {**spikes, "spikecolor": theme.muted}
        if axes.number:
            x["matches"] = "x"
        y = axis(theme, "", **_room(mine))
        if log and positive:
            values = np.concatenate([c.values[np.isfinite(c.values)] for c in mine])
            decades = float(np.log10(values.max() / values.min())) if len(values) else 0.0
            y = log_axis(theme, "", decades, nticks=5)
        axes.add_to(layout, x, y)
        left = {"x": axes.across[0], "xanchor": "left", "font": {"color": theme.text}}
        title = f"<b>{lettering.safe(name, 30)}</b>"
        layout["annotations"].append(axes.title(theme, title, **left))
    add_key(layout, theme)
    return {"data": data, "layout": layout}


def _room(curves: Sequence[ScalarCurve]) -> dict[str, Any]:
    """Return the range of an axis whose curves are one number all along: plotly's hides which."""
    values = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in curves])
    if not len(values) or values.min() != values.max() or values[0] == 0:
        return {}
    return {"range": sorted([0.0, 2 * float(values[0])])}


def scalars(runs: Run | Sequence[Run], *, log: bool = False, theme: Theme = LIGHT) -> go.Figure:
    """Draw everything that the runs logged over the steps, a panel each.

    Parameters
    ----------
    runs : Run or sequence of Run
    log : bool
        Draw on logarithmic scales what is above 0 throughout.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    curves = scalars_info(runs)
    return titled(scalars_figure(curves, theme, log=log), TITLE, scalars_caption(curves), theme)

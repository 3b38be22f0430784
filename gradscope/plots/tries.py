"""What was tried beside a run: the loss with each change, and without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.errors import GradscopeError
from gradscope.plots import lettering
from gradscope.plots.drawn import as_runs
from gradscope.plots.panels import told
from gradscope.plots.sampling import extremes
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    annotation,
    axis,
    base_layout,
    nothing_to_show,
    step_axis,
    titled,
    translucent,
)
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.runs.tries import FOLDER, Tried, read_tried

TITLE = "What if?"
NOTHING = (
    "Nothing was tried beside these runs. What tries is gradscope.what_if(model, loss_fn, batches,"
    " optimizer), or scope.what_if(loss_fn, batches)."
)
POINTS = 400
_NAMED = 4  # changes that get a colour and a name


@dataclass(frozen=True)
class TriedCurve:
    """The training loss of one try, `steps` and `values` of shape (n_kept,); `run` it is beside."""

    run: str
    tried: Tried
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def tries_info(runs: Run | Sequence[Run]) -> list[TriedCurve]:
    """Return the tries of the first of `runs` that has some, the unchanged copy first."""
    for run in as_runs(runs):
        curves = []
        for row in read_tried(run.path):
            try:
                steps = (load(run.path / FOLDER / row.folder) if row.folder else run).steps
            except GradscopeError:  # the try was removed, its numbers are still there
                continue
            if "train_loss" in steps:
                values = steps["train_loss"].to_numpy(dtype=np.float64)
                kept = extremes(values, POINTS)
                number = steps["step"].to_numpy(dtype=np.int64)
                curves.append(TriedCurve(run.name, row, number[kept], values[kept]))
        if curves:
            return curves
    return []


def tries_caption(curves: list[TriedCurve]) -> str:
    """Return how to read the figure."""
    if not curves:
        return ""
    helping = sum(curve.tried.helps for curve in curves)
    return (
        f"Training loss of copies of the net of {lettering.safe(curves[0].run)}, each with one"
        " change, on the same batches; dashed, the copy that was left as it was, grey, what does"
        f" not help. {helping} of {len(curves) - 1} changes help: the loss is lower by more than"
        " its spread over the seeds, and what was found is cured or the loss fell by half as much"
        " again."
    )


def tries_figure(curves: list[TriedCurve], theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `curves` as a dict for plotly."""
    if not curves:
        return nothing_to_show(theme, NOTHING)
    layout = base_layout(theme, 380)
    layout["xaxis"] = step_axis(theme, [curve.steps for curve in curves], showline=True)
    layout["yaxis"] = axis(theme, "training loss", rangemode="tozero", range=_range(curves))
    layout["margin"]["r"] = 16
    data = []
    named = [c for c in curves[1:] if c.tried.helps and len(_finite(c))][:_NAMED]
    for curve in curves:
        name = lettering.safe(curve.tried.change)
        line = {"color": translucent(theme.muted, 0.5), "width": 1.0, "dash": "solid"}
        if curve is curves[0]:
            line = {"color": theme.text, "width": 2.0, "dash": "dash"}
        elif curve in named:
            line = {**theme.line(named.index(curve)), "dash": "solid"}
        data.append(
            {
                "type": "scatter",
                "name": name,
                "x": curve.steps.tolist(),
                "y": [value if np.isfinite(value) else None for value in curve.values],
                "text": told(curve.values),
                "mode": "lines",
                "line": line,
                "hovertemplate": f"step %{{x}}: %{{text}}<extra>{name}</extra>",
            }
        )
    top = layout["yaxis"]["range"][1]
    ends = [min(float(_finite(curve)[-1]), top) for curve in named]
    shifts = lettering.spread(heights := np.array(ends) / top * 300, 17) - heights
    layout["annotations"] += [
        annotation(
            theme,
            f"<b>{lettering.safe(curve.tried.change, 60)}</b>",
            x=1,
            xref="x domain",
            xanchor="right",
            y=end,
            yanchor="bottom",
            yshift=float(shift) + 3,
            bgcolor=translucent(theme.surface, 0.7),
            font={"color": theme.label(place)},
        )
        for place, (curve, end, shift) in enumerate(zip(named, ends, shifts, strict=True))
    ]
    return {"data": data, "layout": layout}


def tries(runs: Run | Sequence[Run], *, theme: Theme = LIGHT) -> go.Figure:
    """Draw the loss of what was tried beside a run: the first of `runs` that has some.

    Parameters
    ----------
    runs : Run or sequence of Run
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    curves = tries_info(runs)
    return titled(tries_figure(curves, theme), TITLE, tries_caption(curves), theme)


def _finite(curve: TriedCurve) -> NDArray[np.float64]:
    return curve.values[np.isfinite(curve.values)]


def _range(curves: list[TriedCurve]) -> list[float]:
    """Return up to where the losses are drawn: one that explodes leaves the others their room."""
    tops = [float(_finite(c).max(initial=0)) for c in curves]
    first = [float(c.values[0]) for c in curves if len(c.values) and np.isfinite(c.values[0])]
    return [0.0, 1.05 * min(max(tops), 2 * float(np.median(first or tops)))]

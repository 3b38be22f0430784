"""How much of the gradient survives the way to the first layer, over the whole training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.plots import lettering
from gradscope.plots.drawn import ONE_LAYER, as_runs, drawn_metric, path_of
from gradscope.plots.metrics import METRICS
from gradscope.plots.panels import banded, drawable, odd_key, odd_marks
from gradscope.plots.sampling import STRETCHES, Band, band, extremes
from gradscope.plots.theme import (
    AXIS_ROOM,
    LIGHT,
    FigureDict,
    Theme,
    add_key,
    annotation,
    base_layout,
    label_margin,
    log_axis,
    nothing_to_show,
    step_axis,
    titled,
)
from gradscope.runs.run import Run

TITLE = "How much of it survives to the first layer, step by step?"
CAPTION = "1 means that the whole gradient arrives."
POINTS = 400
HEIGHT = 150


@dataclass(frozen=True)
class SurvivalLine:
    """The `place`-th given run: `ratio` of the first to the last hidden layer's signal at `steps`.

    Both have the shape (n_kept_steps,): the ends and extremes of `total` recorded steps.
    `band` is there if it is too long for a line. `compared` is false of a net of one layer.
    """

    place: int
    run: str
    steps: NDArray[np.int64]
    ratio: NDArray[np.float64]
    total: int
    band: Band | None
    compared: bool


def survival_info(runs: Run | Sequence[Run]) -> list[SurvivalLine]:
    """Return the ratio of the first to the last hidden layer's signal of each run with a step.

    It is that of the verdicts, 10 ** `SignalPath.decades`.
    """
    lines = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, METRICS["signal_norm"])
        if not data.empty:
            path = path_of(run)
            if path is None or np.isnan(path.decades).all():
                ratio = data.layer(data.layers[0]).astype(float)
            else:
                ratio = 10 ** path.decades[: len(data.steps)]
            with np.errstate(divide="ignore"):
                kept = extremes(np.log10(ratio), POINTS)
            steps = data.steps[kept]
            lines.append(
                SurvivalLine(
                    place,
                    run.name,
                    steps,
                    ratio[kept],
                    len(ratio),
                    band(data.steps, ratio),
                    len(data.layers) > 1,
                )
            )
    return lines


def survival_figure(
    lines: list[SurvivalLine], theme: Theme = LIGHT, *, marked: int | None = None
) -> FigureDict:
    """Return the figure of `lines`, with a vertical line at the step `marked`."""
    if not lines:
        return nothing_to_show(theme, "No step has been recorded yet.")
    if not any(line.compared for line in lines):
        return nothing_to_show(theme, ONE_LAYER)
    layout = base_layout(theme, HEIGHT)
    layout["hovermode"] = "x"  # a click anywhere means the step below it
    layout["margin"] = {
        "l": label_margin(theme, (line.run for line in lines)),
        "r": AXIS_ROOM,
        "t": 8,
        "b": 44,
    }
    ratios = [line.ratio for line in lines]
    finite = np.concatenate(ratios)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    low, high = (finite.min(), finite.max()) if len(finite) else (1.0, 1.0)
    low, high = min(low, 0.1), max(high, 10.0)
    data: list[dict[str, Any]] = []
    for line in lines:
        name = lettering.safe(line.run)
        curve: dict[str, Any] = {
            "type": "scatter",
            "name": name,
            "x": line.steps.tolist(),
            "y": drawable(line.ratio),
            "mode": "lines" if len(line.steps) > 1 else "markers",
            "line": theme.line(line.place, 2),
            "marker": {"color": theme.line(line.place)["color"]},
            "customdata": [[lettering.times(value)] for value in line.ratio],
            "hovertemplate": f"step %{{x}}: %{{customdata[0]}}<extra>{name}</extra>",
        }
        if line.band is not None:
            curve["customdata"] = [[lettering.times(value)] for value in line.band.middle]
        color = theme.line(line.place)["color"]
        data += banded(curve, line.band, color, filled=not theme.many)
        data += odd_marks(
            line.steps,
            line.ratio,
            ends=(float(low), float(high)),
            color=theme.line(line.place)["color"],
            theme=theme,
            hover=f"step %{{x}}: {{said}}<extra>{name}</extra>",
            name=name,
        )
    layout["xaxis"] = step_axis(
        theme,
        [line.steps for line in lines],
        showline=True,
        autorangeoptions={"minallowed": min(int(line.steps[0]) for line in lines)},
    )
    decades = float(np.log10(high / low))
    layout["yaxis"] = log_axis(
        theme,
        "",
        decades,
        dtick=max(1, round(decades / 3)),
        side="right",
        range=[np.log10(low) - 0.3, np.log10(high) + 0.3],
    )
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": 1,
            "y1": 1,
            "line": {"color": theme.muted, "width": 1, "dash": "dot"},
        }
    ]
    layout["annotations"] = (
        odd_key(ratios, (float(low), float(high)), theme) if theme.many else [_axis_label(theme)]
    )
    if marked is not None:
        layout["shapes"].append(
            {
                "type": "line",
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "x0": marked,
                "x1": marked,
                "line": {"color": theme.text, "width": 2},
            }
        )
    add_key(layout, replace(theme, key=theme.key[:1] and ((" ", theme.surface),), key_title=""))
    return {"data": data, "layout": layout}


def _axis_label(theme: Theme) -> dict[str, Any]:
    place = {"x": 0, "xref": "paper", "xanchor": "right", "y": 0.5, "yref": "paper"}
    text = "first ÷ last<br>hidden layer"
    return annotation(theme, text, **place, xshift=-8, align="right")


def survival_caption(lines: list[SurvivalLine]) -> str:
    """Return how to read the figure, and what was left out of it."""
    text = CAPTION
    left_out = [line for line in lines if len(line.steps) < line.total]
    if left_out:
        most = max(left_out, key=lambda line: line.total)
        text += (
            f" The {most.total:,} steps lie in {STRETCHES} stretches; drawn: the median and the"
            " extremes of each."
        )
    return text


def survival(runs: Run | Sequence[Run], *, theme: Theme = LIGHT) -> go.Figure:
    """Draw the first over the last hidden layer's gradient signal at every step, one line a run.

    Parameters
    ----------
    runs : Run or sequence of Run
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    lines = survival_info(runs)
    return titled(survival_figure(lines, theme), TITLE, survival_caption(lines), theme)

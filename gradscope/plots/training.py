"""Losses and errors of the runs: degradation with depth, and the gap to validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.diagnosis.curves import logged_curves, nan_to_the_end
from gradscope.plots import lettering
from gradscope.plots.drawn import as_runs
from gradscope.plots.panels import PanelAxes, in_panels, told
from gradscope.plots.sampling import extremes
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    add_key,
    annotation,
    axis,
    base_layout,
    nothing_to_show,
    step_axis,
    titled,
    translucent,
)
from gradscope.plots.timeline import Event, gathered, timeline_info
from gradscope.runs.run import Run

TITLE = "Does it learn?"
POINTS = 400
EXPLODED = 10
"""A curve that rises above so many times the others' tops leaves them their room."""
MEASURES = {"loss": "loss", "error": "error, share of wrong answers"}
SETS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class TrainingCurve:
    """A logged scalar of the `place`-th given run, smoothed by a running median.

    `part` is `train` or `val`, `measure` is `loss` or `error`; `steps` and `values` have the
    shape (n_kept,), the ends and extremes of `total` logged ones. `gap` is where it was NaN for
    good: the first such step and the last one, or None; `last` is the last value, not smoothed.
    """

    place: int
    run: str
    part: str
    measure: str
    column: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    total: int
    gap: tuple[int, int] | None
    last: float


def training_info(runs: Run | Sequence[Run]) -> list[TrainingCurve]:
    """Return the losses and errors that the runs logged, told by their names."""
    curves = []
    for place, run in enumerate(as_runs(runs)):
        for (part, measure), curve in logged_curves(run).items():
            kept = extremes(curve.values, POINTS)
            curves.append(
                TrainingCurve(
                    place,
                    run.name,
                    part,
                    measure,
                    curve.column,
                    curve.steps[kept],
                    curve.values[kept],
                    len(curve.values),
                    nan_to_the_end(run.steps["step"].to_numpy(), curve.steps),
                    float(curve.raw[-1]),
                )
            )
    return curves


def training_events(runs: Run | Sequence[Run]) -> list[tuple[int, Event]]:
    """Return where learning rates changed and what was marked, each with its run's place."""
    found = [
        (place, event) for place, run in enumerate(as_runs(runs)) for event in timeline_info(run)
    ]
    return sorted(
        ((place, event) for place, event in found if event.kind in ("rate", "mark")),
        key=lambda pair: pair[1].step,
    )


def training_caption(curves: list[TrainingCurve]) -> str:
    """Return how to read the figure, in a few sentences."""
    text = ""
    if len({curve.part for curve in curves}) > 1:
        text += "Thick: training; thin: validation, which overfits where it rises away. "
    if len({curve.place for curve in curves}) > 1:
        text += "Where the deeper net has the higher TRAINING error, that is degradation. "
    text += "Running medians are drawn: small stairs are theirs, not the loss's."
    for curve in curves:
        if curve.gap:
            how = "shaded" if all(c.gap for c in curves if c.measure == curve.measure) else "×"
            text += f" {curve.run}: {curve.column} is NaN from step {curve.gap[0]:,} on, {how}"
            text += f", and was {lettering.number(curve.last)} before."
        bad = int((~np.isfinite(curve.values)).sum())
        if bad:
            text += f" {curve.run}: {curve.column} is NaN or inf at {bad} of the drawn steps."
    for measure in MEASURES:
        mine = [curve for curve in curves if curve.measure == measure]
        if mine and _room(mine):
            most = max(mine, key=lambda curve: _highest(curve))
            rose = lettering.number(_highest(most))
            text += f" The axis ends before {most.run}, whose {measure} rises to {rose}."
    return text


def _highest(curve: TrainingCurve) -> float:
    return float(np.max(curve.values[np.isfinite(curve.values)], initial=0))


def _room(curves: list[TrainingCurve]) -> dict[str, Any]:
    """Return the range of an axis where some of `curves` explode, but not all; else nothing."""
    tops = sorted(_highest(curve) for curve in curves)
    first = max(float(curve.values[0]) for curve in curves)
    usual = max(tops[(len(tops) - 1) // 2], first) if tops else 0.0
    if len(tops) < 2 or not np.isfinite(usual) or not 0 < usual < tops[-1] / EXPLODED:
        return {}
    return {"range": [0, 2 * usual]}


def training_figure(
    curves: list[TrainingCurve],
    theme: Theme = LIGHT,
    events: Sequence[tuple[int, Event]] = (),
) -> FigureDict:
    """Return the figure of `curves` as a dict for plotly, a panel each for loss and error.

    Each of `events` is a thin line, with a word where there is room for it.
    """
    if not curves:
        return nothing_to_show(
            theme, "No loss was logged. Log one with scope.log(train_loss=loss, val_loss=...)."
        )
    measures = [m for m in MEASURES if any(curve.measure == m for curve in curves)]
    layout = base_layout(theme, 430 if not theme.narrow else 330 * len(measures))
    layout["margin"]["r"] = 16
    data: list[dict[str, Any]] = []
    for axes, measure in in_panels(measures, theme, beside=0.08, below=0.16):
        mine = [curve for curve in curves if curve.measure == measure]
        shades, crosses = axes.mark_nan([(c.place, c.steps, c.values, c.gap) for c in mine], theme)
        layout["shapes"] += shades
        data += crosses
        for curve in mine:
            style = theme.line(curve.place, 2.5 if curve.part == "train" else 1.2)
            name = f"{lettering.safe(curve.run)}, {SETS[curve.part]}"
            data.append(
                {
                    "type": "scatter",
                    "name": name,
                    "x": curve.steps.tolist(),
                    "y": [value if np.isfinite(value) else None for value in curve.values],
                    "text": told(curve.values),
                    "mode": "lines" if len(curve.steps) > 1 else "markers",
                    "line": style,
                    "marker": {"color": style["color"]},
                    **axes.of_trace,
                    "hovertemplate": f"step %{{x}}: %{{text}}<extra>{name}</extra>",
                }
            )
        axes.add_to(
            layout,
            step_axis(theme, [np.append(c.steps, c.gap or ()) for c in mine], showline=True),
            axis(theme, MEASURES[measure], rangemode="tozero", **_room(mine)),
        )
        if not theme.many:
            layout["annotations"] += _labels(mine, theme, axes)
            _add_events(layout, events, max(int(c.steps[-1]) for c in mine), theme, axes)
    add_key(layout, theme)
    return {"data": data, "layout": layout}


def training(runs: Run | Sequence[Run], *, theme: Theme = LIGHT) -> go.Figure:
    """Draw the losses and errors that the runs logged, training thick and validation thin.

    Parameters
    ----------
    runs : Run or sequence of Run
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    curves = training_info(runs)
    figure = training_figure(curves, theme, training_events(runs))
    return titled(figure, TITLE, training_caption(curves), theme)


def _add_events(
    layout: FigureDict,
    events: Sequence[tuple[int, Event]],
    last: int,
    theme: Theme,
    axes: PanelAxes,
) -> None:
    """Add a line for each event to a panel, and on top of it its words; of neighbours together."""
    wide = (290 if theme.narrow else 1250) * (axes.across[1] - axes.across[0])
    places = {id(event): place for place, event in events}

    def words(some: list[Event]) -> str:
        told = dict.fromkeys(event.short for event in some)  # several runs may do alike
        return "<br>".join(lettering.safe(short, 24) for short in told)

    def room(some: list[Event]) -> float:
        return 7 * max(min(len(event.short), 24) for event in some) / wide

    shown = [event for _, event in events if event.step <= last]
    for event in shown:
        color = theme.label(places[id(event)])
        line = {"color": color, "width": 1, "dash": "dot"}
        where = {"xref": axes.x, "yref": f"{axes.y} domain", "x0": event.step, "x1": event.step}
        layout["shapes"].append({"type": "line", **where, "y0": 0, "y1": 1, "line": line})
    for group in gathered(shown, last, room):
        first = group.events[0]
        layout["annotations"].append(
            annotation(
                theme,
                words(group.events),
                x=first.step,
                xref=axes.x,
                xanchor="right" if group.at + room(group.events) > 1 else "left",
                y=1,
                yref=f"{axes.y} domain",
                yanchor="top",
                align="left",
                bgcolor=translucent(theme.surface, 0.7),
                font={"color": theme.label(places[id(first)]), "size": 11},
            )
        )


def _labels(curves: list[TrainingCurve], theme: Theme, axes: PanelAxes) -> list[dict[str, Any]]:
    """Return the runs' names at the right ends of their training lines, kept apart."""
    ends = []
    for place in sorted({curve.place for curve in curves}):
        of_run = [curve for curve in curves if curve.place == place]
        curve = next((c for c in of_run if c.part == "train"), of_run[0])
        finite = curve.values[np.isfinite(curve.values)]
        if len(finite):
            ends.append((curve, float(finite[-1])))
    if not ends:
        return []
    top = max(float(np.nanmax(c.values[np.isfinite(c.values)], initial=0)) for c in curves) or 1.0
    heights = np.array([value / top * 330 for _, value in ends])
    shifts = lettering.spread(heights, 17) - heights
    return [
        annotation(
            theme,
            f"<b>{lettering.safe(curve.run, 24)}</b>",
            x=1,
            xref=f"{axes.x} domain",
            xanchor="right",
            y=value,
            yref=axes.y,
            yanchor="bottom",
            bgcolor=translucent(theme.surface, 0.7),
            yshift=float(shift) + 3,
            font={"color": theme.label(curve.place)},
        )
        for (curve, value), shift in zip(ends, shifts, strict=True)
    ]

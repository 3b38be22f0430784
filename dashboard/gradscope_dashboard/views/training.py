"""Training: losses and errors, degradation with depth, the gap to validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from dash import Dash, html

from gradscope.diagnosis.comparison import Observation
from gradscope.plots.lettering import raised
from gradscope.plots.scalars import TITLE as SCALARS_TITLE
from gradscope.plots.scalars import scalars_caption, scalars_figure, scalars_info
from gradscope.plots.training import (
    TITLE,
    training_caption,
    training_events,
    training_figure,
    training_info,
)
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, aria, chart, draw_with

NAME = "training"
LABEL = "Training"
SAID = 4
"""Of so many runs all is said that they show beside each other."""
CONTROLS = ()


def layout(page: Page) -> html.Div:
    """Return the two charts."""
    pressed = aria(pressed=str(page.state.log).lower())
    switch = html.Button("Log scale", id={"set": "log", "to": "1"}, **pressed)
    return html.Div(
        [
            chart("training", TITLE, page, _draw),
            chart("scalars", SCALARS_TITLE, page, _draw_scalars, above=[switch]),
        ]
    )


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that draws it."""
    draw_with(app, library, views, "training", _draw)
    draw_with(app, library, views, "scalars", _draw_scalars)


def _draw(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    curves = training_info(page.runs)
    caption = training_caption(curves)
    compared = page.library.comparison(page.names) if curves else None
    if compared is not None:
        caption = " ".join([caption, *map(raised, told(compared.observations, len(page.runs)))])
    events = [] if page.theme.many else training_events(page.runs)
    return Drawing(training_figure(curves, page.theme, events), caption)


def told(observations: Sequence[Observation], runs: int) -> list[str]:
    """Return what a comparison of so many runs shows: of many, where depth harms most."""
    if runs <= SAID:
        return [seen.sentence for seen in observations]
    harmed = [seen for seen in observations if seen.kind == "degradation"]
    if not harmed:
        return []
    worst = max(harmed, key=_harm).sentence
    more = len(harmed) - 1
    return [worst, f"So it is with {more} more pair{'s' * (more != 1)} of runs."][: 1 + bool(more)]


def _harm(seen: Observation) -> float:
    shallow, deep, *_ = seen.evidence.values()
    return deep - shallow


def _draw_scalars(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    curves = scalars_info(page.runs)
    figure = scalars_figure(curves, page.theme, log=page.state.log)
    return Drawing(figure, scalars_caption(curves))


def table(page: Page) -> pd.DataFrame:
    """Return the points of the curves."""
    rows = [
        (curve.run, curve.name, step, value)
        for curve in scalars_info(page.runs)
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["run", "scalar", "step", "value"])


CLICKS: dict[str, Any] = {}

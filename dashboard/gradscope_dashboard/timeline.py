"""The strip under the slider: what happened when, a row a run; a click goes there."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from gradscope.plots import Theme
from gradscope.plots.timeline import Event, timeline_info
from gradscope_dashboard.cards import swatch
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import aria, mark_of, read_page

MOST_RUNS = 3
SIGNS = {
    "mark": "★",
    "rate": "◣",
    "clipped": "✂",
    "skipped": "↷",
    "verdict": "●",
    "broken": "✖",
}
LETTER = {False: 0.55, True: 2.2}
"""Share of the row's width, in percent, that a letter takes on a wide and on a narrow page."""


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that writes the strip."""

    @app.callback(
        Output("timeline", "children"),
        Output("timeline-drawn", "data"),
        Input("url", "search"),
        Input("library", "data"),
        Input("screen", "data"),
        State("timeline-drawn", "data"),
    )
    def write(search: str, _: Any, screen: dict[str, Any] | None, drawn: str | None) -> Any:
        if screen is None:
            raise PreventUpdate
        rows = draw(search, screen)
        mark = mark_of(rows)
        if mark == drawn:
            raise PreventUpdate
        return rows, mark

    def draw(search: str, screen: dict[str, Any]) -> list[Any]:
        page = read_page(search, screen, library, views)
        if len(page.runs) > MOST_RUNS:
            return []
        lasts = [int(run.steps["step"].iloc[-1]) for run in page.runs if len(run.steps)]
        last = max(lasts, default=0)
        rows = []
        for place, (name, run) in enumerate(zip(page.names, page.runs, strict=True)):
            summary = library.summary(name, patient=False)
            events = timeline_info(run, None if summary is None else summary.diagnosis)
            if events:
                rows.append(_row(name, events, last, page.theme, place))
        return rows


def _row(name: str, events: list[Event], last: int, theme: Theme, place: int) -> html.Div:
    """Return the row of a run: a button an event, with a word where there is room."""
    points = []
    free = 0.0
    for number, event in enumerate(events):
        at = 100 * event.step / max(last, 1)
        later = [100 * other.step / max(last, 1) for other in events[number + 1 :]]
        room = min([*later, 100.0]) - at
        long = LETTER[theme.narrow] * (len(event.short) + 3)
        label = f"{SIGNS[event.kind]} {event.short}" if long <= room and at >= free else None
        if label is not None:
            free = at + long
        points.append(
            html.Button(
                label or SIGNS[event.kind],
                id={"do": "step", "to": str(event.step), "of": f"{name},{number}"},
                title=f"step {event.step:,}: {event.words}",
                className=f"event {event.kind}",
                style={"left": f"{min(at, 99):.2f}%"},
                **aria(label=f"{name}, step {event.step:,}: {event.words}"),
            )
        )
    whose = html.Span([swatch(theme.slot(place), theme), name], className="caption")
    return html.Div([html.Div(points), whose], className="row")

"""The strip under the slider: what happened when, a row a run; a click goes there."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from gradscope.plots import Theme
from gradscope.plots.timeline import Event, gathered, timeline_info
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
GRAVEST = ("broken", "verdict", "mark", "rate", "skipped", "clipped")
LETTER = {False: 0.85, True: 2.7}
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
    """Return the row of a run: a button an event, with a word where there is room.

    Those that lie too near to each other share one, which goes to the first and tells of all.
    """
    letter = LETTER[theme.narrow] / 100
    groups = gathered(events, last, lambda some: letter * (len(_signs(some)) + 2))
    points, free = [], 0.0
    for number, (at, some) in enumerate(groups):
        room = (groups[number + 1].at if number + 1 < len(groups) else 1.0) - at
        before = at - free
        whole = " · ".join(f"{SIGNS[event.kind]} {event.short}" for event in some)
        first = f"{SIGNS[some[0].kind]} {some[0].short} + {len(some) - 1}"
        text, side = next(
            (
                (text, side)
                for text in (whole, first)
                for side, space in (("", room), ("leftward", before))
                if letter * (len(text) + 1) <= space
            ),
            (_signs(some), ""),
        )
        if side and len(some) == 1:  # the sign stands at the step
            text = f"{some[0].short} {SIGNS[some[0].kind]}"
        free = at + letter * (2 if side else len(text) + 2)
        told = "; ".join(f"step {event.step:,}: {event.words}" for event in some)
        kind = min((event.kind for event in some), key=GRAVEST.index)
        left = f"{min(100 * at, 99):.2f}%"
        data: dict[str, Any] = {"data-step": str(some[0].step), "data-left": left}
        points.append(
            html.Button(
                text,
                id={"do": "step", "to": str(some[0].step), "of": f"{name},{number}"},
                title=told,
                className=f"event {kind} {side}",
                style={"left": left},
                **aria(label=f"{name}, {told}"),
                **data,
            )
        )
    whose = html.Span([swatch(theme.slot(place), theme), name], className="caption", title=name)
    return html.Div([html.Div(points), whose], className="row")


def _signs(events: list[Event]) -> str:
    """Return what stands for `events` where there is no room for words."""
    if len(events) > 3:
        return f"{len(events)} events"
    return "".join(SIGNS[event.kind] for event in events)

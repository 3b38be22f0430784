"""Header, run and metric buttons, step, tabs: what changes the address, and what follows it."""

from __future__ import annotations

import json
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from gradscope.plots import DARK, LIGHT, METRICS, Theme
from gradscope_dashboard import state
from gradscope_dashboard.cards import swatch
from gradscope_dashboard.exports import links
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import MANY, aria, read_page
from gradscope_dashboard.state import SHOWN_AT_FIRST
from gradscope_dashboard.views import VIEWS

POLL_SECONDS = 0.8
STATES = {
    "running": "training, step",
    "stalled": "paused? last step",
    "crashed": "crashed after step",
    "closed": "finished, step",
}
"""What the header says of the runs of each state, the liveliest first."""
NAMES = [view.NAME for view in VIEWS]
CLICKS = {graph: clicked for view in VIEWS for graph, clicked in view.CLICKS.items()}


def header() -> html.Header:
    """Return the bar on top: name, live state, pause, exports, theme."""
    return html.Header(
        [
            html.H1("gradscope"),
            html.Span(id="live", role="status"),
            html.Button("Pause", id="pause", **aria(pressed="false")),
            html.Span(id="exports"),
            _button("theme", "other", "Dark"),
        ]
    )


def controls() -> html.Section:
    """Return the choice of runs, metric and step."""
    return html.Section(
        className="controls",
        **aria(label="what to show"),
        children=[
            html.Div(id="runs", className="choice", role="group", **aria(label="runs")),
            html.Details(
                [
                    html.Summary("Runs", id="runs-summary", className="button"),
                    html.Div(id="runs-table"),
                ],
                id="runs-panel",
            ),
            html.Div(id="timeline", role="group", **aria(label="what happened when")),
            dcc.Store(id="chosen"),
            html.Div(
                [_button("metric", m.name, m.label, m.definition) for m in METRICS.values()],
                id="metrics",
                className="choice",
                role="group",
                **aria(label="quantity"),
            ),
            html.Div(
                id="steps",
                children=[
                    dcc.Slider(
                        id="step",
                        min=0,
                        max=1,
                        step=1,
                        value=0,
                        marks=None,
                        included=False,
                        updatemode="mouseup",
                        allow_direct_input=False,
                    ),
                    # Dash's own field forgets what it shows: its buttons are off, and who asks for
                    # the same step again is not heard
                    html.Div(id="step-field"),
                    dcc.Store(id="step-shown"),
                    dcc.Store(id="step-drawn"),
                    _button("step", "latest", "Follow latest"),
                ],
            ),
        ],
    )


def tabs() -> html.Nav:
    """Return the buttons of the views."""
    buttons = [_button("view", view.NAME, view.LABEL) for view in VIEWS]
    return html.Nav(buttons, id="tabs", **aria(label="views"))


def register(app: Dash, library: Library) -> None:
    """Add the callbacks of the bar and the controls."""

    @app.callback(
        Output("names", "data"),
        Output("library", "data"),
        Input("poll", "n_intervals"),
        Input("asked-runs", "data"),
        State("url", "search"),
        State("names", "data"),
        State("library", "data"),
    )
    def poll(_: int, __: Any, search: str, known_names: Any, known: Any) -> Any:
        """Look for new runs, and for new steps of the selected ones.

        Not whenever the address changes: all that draws would wait for it.
        """
        names = library.rescan()
        shown = library.shown(state.parse(search, NAMES, names))
        marks = library.refresh(shown)
        found = {"shown": shown, "marks": marks, "worked_out": library.worked_out}
        return (
            no_update if names == known_names else names,
            no_update if found == known else found,
        )

    @app.callback(
        Output("poll", "disabled"),
        Output("pause", "aria-pressed"),
        Output("pause", "children"),
        Input("pause", "n_clicks"),
        prevent_initial_call=True,
    )
    def pause(clicks: int) -> tuple[bool, str, str]:
        paused = clicks % 2 == 1
        return paused, str(paused).lower(), "Resume" if paused else "Pause"

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("gradscope", "screen"),
        Output("screen", "data"),
        Input("url", "search"),
        Input("resized", "n_clicks"),
        State("screen", "data"),
    )

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("gradscope", "queue"),
        Output("clicks", "data"),
        Input({"set": ALL, "to": ALL}, "n_clicks"),
        Input({"do": ALL, "to": ALL, "of": ALL}, "n_clicks"),
        State("clicks", "data"),
        prevent_initial_call=True,
    )

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("gradscope", "stepField"),
        Output("step-drawn", "data"),
        Input("step-shown", "data"),
    )

    @app.callback(
        Output("url", "search"),
        Output("step", "max"),
        Output("step", "value"),
        Output("step-shown", "data"),
        Output("asked-runs", "data"),
        Output("handled", "data"),
        Input("url", "search"),
        Input("library", "data"),
        Input("step", "value"),
        Input("clicks", "data"),
        Input("chosen", "data"),
        *[Input(graph, "clickData", allow_optional=True) for graph in CLICKS],
        State("asked-runs", "data"),
        State("handled", "data"),
        State("screen", "data"),
        prevent_initial_call=True,
    )
    def navigate(search: str, found: Any, *rest: Any) -> tuple[Any, ...]:
        """Follow clicks, the slider, or the address; the address says what is shown.

        Clicks wait in a queue of the browser until they are handled: of a callback that is asked
        for again, as by new steps, it drops what is on its way.
        """
        clicks, handled, screen = rest[1] or [], rest[-2] or 0, rest[-1]
        names = library.names
        now = new = state.parse(search, NAMES, names)
        marks = (found or {}).get("marks", {})
        latest = max((mark[1] for mark in marks.values() if mark[1] is not None), default=0)
        opening = library.opening(library.shown(now))
        for button in clicks[handled:]:
            new = _pressed(button, new, library, screen, None if opening is None else latest)
        if isinstance(rest[2], dict) and any(t["prop_id"] == "chosen.data" for t in ctx.triggered):
            new = _chosen(rest[2], new, names, latest, opening is None)
        for trigger in ctx.triggered:
            by, value = ctx.triggered_prop_ids.get(trigger["prop_id"]), trigger["value"]
            if by == "step" and value is not None:
                new = new.but(step=_wanted(value, latest, opening is None))
            elif isinstance(by, str) and by in CLICKS and value:
                with library.lock:
                    page = read_page(search, screen, library, NAMES)
                    new = new.but(**CLICKS[by](value["points"][0], page))
        step = (latest if opening is None else opening) if new.step is None else new.step
        step = min(step, latest)
        address = new.search(NAMES[0])
        asked = list(new.runs)
        return (
            address if address != now.search(NAMES[0]) else no_update,
            max(latest, 1),
            step,
            [step, latest],
            no_update if asked == (rest[-3] or []) else asked,
            len(clicks),
        )

    @app.callback(
        Output("runs", "children"),
        Output("runs-panel", "hidden"),
        Input("names", "data"),
        Input("screen", "data"),
    )
    def list_runs(names: list[str] | None, screen: dict[str, Any] | None) -> Any:
        """Offer a button a run where they are few; of many there is the table."""
        if screen is None or names is None:
            raise PreventUpdate
        theme = DARK if screen["theme"] == "dark" else LIGHT
        few = names if len(names) <= MANY else []
        return [_run_button(name, theme, library) for name in few], len(names) <= SHOWN_AT_FIRST

    @app.callback(
        Output("runs-summary", "children"),
        Output("runs-panel", "data-shown"),
        Input("url", "search"),
        Input("library", "data"),
        State("runs-panel", "data-shown"),
    )
    def count_runs(search: str, _: Any, known: str | None) -> tuple[str, Any]:
        """Say how many are shown, and which: of many the worst is not known at first."""
        names = library.names
        shown = library.shown(state.parse(search, NAMES, names))
        found = json.dumps(shown)
        counted = f"Runs: {len(shown)} of {len(names)}"
        return counted, no_update if found == known else found

    @app.callback(
        Output({"set": ALL, "to": ALL}, "aria-pressed"),
        Input("url", "search"),
        Input("runs", "children"),
        Input("screen", "data"),
        Input("library", "data"),
    )
    def press(search: str, _: Any, screen: dict[str, Any] | None, *__: Any) -> list[str]:
        """Show as pressed what is chosen; the buttons themselves stay, and keep the focus."""
        names = library.names
        now = state.parse(search, NAMES, names)
        shown = library.shown(now)
        chosen = {("run", name) for name in shown}
        chosen |= {("metric", now.metric), ("view", now.view)}
        if now.log:
            chosen.add(("log", "1"))
        if now.step is None and library.opening(shown) is None:
            chosen.add(("step", "latest"))
        if screen and screen["theme"] == "dark":
            chosen.add(("theme", "other"))
        ids = [output["id"] for output in ctx.outputs_list]
        return [str((button["set"], button["to"]) in chosen).lower() for button in ids]

    @app.callback(
        Output("live", "children"),
        Output("live", "className"),
        Output("metrics", "hidden"),
        Output("steps", "hidden"),
        Input("url", "search"),
        Input("library", "data"),
    )
    def show(search: str, found: Any) -> tuple[Any, ...]:
        """Say how far the runs are, and offer the controls that the view heeds."""
        if found is None:
            raise PreventUpdate
        now = state.parse(search, NAMES, library.names)
        used = VIEWS[NAMES.index(now.view)].CONTROLS
        words, kind = _live(found["marks"])
        return words, kind, "metric" not in used, "step" not in used

    @app.callback(
        Output("exports", "children"),
        Input("url", "search"),
        Input("names", "data"),
        Input("runs-panel", "data-shown"),
    )
    def offer(search: str, names: list[str] | None, _: str | None) -> Any:
        """Offer what can be downloaded: an open menu stays while the runs grow."""
        if names is None:
            raise PreventUpdate
        return links(search, library.shown(state.parse(search, NAMES, names)))

    @app.callback(
        Output("view", "children"),
        Output("shown-view", "data"),
        Input("url", "search"),
        Input("screen", "data"),
        State("shown-view", "data"),
    )
    def open_view(search: str, screen: dict[str, Any] | None, shown: str | None) -> tuple[Any, str]:
        wanted = state.parse(search, NAMES, ()).view
        if screen is None or wanted == shown:
            raise PreventUpdate
        with library.lock:
            page = read_page(search, screen, library, NAMES)
            return VIEWS[NAMES.index(wanted)].layout(page), wanted


def _pressed(
    button: Any, now: state.State, library: Library, screen: dict[str, Any], latest: int | None
) -> state.State:
    """Return the state after the button with the id `button` was pressed.

    `latest` is the step that the button for it shows, None to follow the runs.
    """
    key, to = button.get("set") or button["do"], button["to"]
    if key == "run":
        return now.toggled(to, library.shown(now), library.names)
    if key == "theme":
        return now.but(theme="light" if screen["theme"] == "dark" else "dark")
    if key == "step":
        return now.but(step=latest if to == "latest" else int(to))
    if key == "finding":
        step, layer = to.split(",", 1)
        return now.but(step=int(step), layer=layer or None)
    if key == "layer":
        return now.but(layer=to or None)
    if key == "log":
        return now.but(log=not now.log)
    return now.but(**{key: to})


def _wanted(value: Any, latest: int, follow: bool) -> int | None:
    """Return the step to show where `value` was asked for; None to follow the latest."""
    step = max(int(value), 0)
    return None if step >= latest and follow else min(step, latest)


def _chosen(
    wanted: dict[str, Any], now: state.State, names: list[str], latest: int, follow: bool
) -> state.State:
    """Return the state after something was chosen in what the page draws itself."""
    if "step" in wanted:
        return now.but(step=_wanted(wanted["step"], latest, follow))
    if "layer" in wanted:
        return now.but(layer=str(wanted["layer"]))
    if "sort" in wanted:
        return now.but(sort=str(wanted["sort"]))
    if "rows" in wanted:
        return now.but(rows=min(int(wanted["rows"]), state.MOST_ROWS))
    return now.choosing(list(map(str, wanted.get("runs") or [])), names)


def _button(key: str, to: str, label: Any, title: str | None = None) -> html.Button:
    """Return a button that sets `key` of the state to `to`."""
    return html.Button(label, id={"set": key, "to": to}, title=title, **aria(pressed="false"))


def _run_button(name: str, theme: Theme, library: Library) -> html.Button:
    """Return the button that shows or hides a run, with a sample of its line."""
    label = [swatch(library.slot(name), theme), name]
    return _button("run", name, label, library.problem(name))


def _live(marks: dict[str, list[Any]]) -> tuple[str, str]:
    """Return in words how far the shown runs are, and the class of the sign before it."""
    if not any(mark[1] is not None for mark in marks.values()):
        return "no step recorded yet", "waiting"
    said = []
    for status, words in STATES.items():
        lasts = [mark[1] for mark in marks.values() if mark[2] == status and mark[1] is not None]
        if lasts:
            count = f"{len(lasts)} " if len(marks) > 1 and len(lasts) < len(marks) else ""
            silent = {mark[3] for mark in marks.values() if mark[2] == status and mark[3]}
            ago = f", {silent.pop()} ago" if len(silent) == 1 else ""
            said.append(f"{count}{words} {max(lasts):,}{ago}")
    statuses = {mark[2] for mark in marks.values()}
    kind = next((kind for kind in STATES if kind in statuses), "closed")
    return " · ".join(said), kind

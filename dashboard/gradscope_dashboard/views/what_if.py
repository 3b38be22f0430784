"""What if: what was tried beside a run, and, where it was allowed, a button that tries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from dash import Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from gradscope.plots.tries import TITLE, tries_caption, tries_figure, tries_info
from gradscope.runs.run import Run
from gradscope.runs.tries import HEADS, Tried, cells, read_tried
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, aria, chart, draw_with, read_page
from gradscope_dashboard.state import parse

NAME = "what-if"
LABEL = "What if"
CONTROLS = ()
CLICKS: dict[str, Any] = {}


def layout(page: Page) -> html.Div:
    """Return the button, the chart and the table."""
    return html.Div(
        [
            chart("tries", TITLE, page, _draw, None),
            html.Div(id="tries-start", className="chart", **aria(live="polite")),
            dcc.Store(id="tries-state"),
            html.Div(id="tries-table", className="scroll", tabIndex=0, role="region",
                     **aria(label="what was tried")),
        ]
    )  # fmt: skip


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callbacks that draw, write the table, and start where that is allowed."""
    draw_with(app, library, views, "tries", _draw, Input("tries-state", "data"))

    @app.callback(
        Output("tries-state", "data"),
        Output("tries-start", "children"),
        Input("poll", "n_intervals"),
        Input("url", "search"),
        State("tries-state", "data"),
    )
    def look(_: Any, search: str, before: str | None) -> tuple[str, Any]:
        """Notice what was tried since: the run beside it need not have changed."""
        with library.lock:
            runs = library.get(library.names)
            marks = [(run.name, _written(run)) for run in runs]
        starting = library.starter
        state = repr((marks, None if starting is None else starting.state, search))
        if state == before:
            raise PreventUpdate
        if starting is not None:
            return state, _start(starting.state, starting.script)
        with library.lock:
            shown = library.get(library.shown(parse(search, views, library.names)))
        return state, [] if _tried(shown) else _how(library.folder)

    @app.callback(
        Output("tries-table", "children"),
        Input("url", "search"),
        Input("library", "data"),
        Input("screen", "data"),
        Input("tries-state", "data"),
    )
    def write(search: str, _: Any, screen: dict[str, Any] | None, __: Any) -> Any:
        if screen is None:
            raise PreventUpdate
        with library.lock:
            page = read_page(search, screen, library, views)
            if page.state.view != NAME:
                raise PreventUpdate
            return _table(_tried(page.runs))

    @app.callback(
        Output("tries-started", "children"),
        Input("tries-try", "n_clicks"),
        prevent_initial_call=True,
    )
    def start(clicks: int | None) -> str:
        """Start a try: somebody has asked for it, on a page of a server that allows it."""
        if not clicks or library.starter is None:
            raise PreventUpdate
        return library.starter.start()


def _start(state: str, script: str) -> list[Any]:
    """Return the button, and how far the tries are."""
    button = html.Button(
        f"Try what would help {script}", id="tries-try", disabled=state == "running"
    )
    said = {"": "", "running": "Trying, in a process of its own; this takes a while."}
    return [button, html.Span(f" {said.get(state, state)}"), html.Span(id="tries-started")]


def _how(folder: Path | None) -> list[Any]:
    """Return how something is tried, to be pasted."""
    code = (
        "scope.what_if(loss_fn, batches)     # in the script of this training, after some steps\n"
        "gradscope what-if train.py:setup    # in a terminal; setup() returns model, loss_fn,"
        " batches, optimizer"
    )
    if folder is not None:
        code += (
            f"\ngradscope dashboard {folder} --what-if train.py:setup    # then a button here tries"
        )
    return [
        html.P("To try what would help, any of these:"),
        html.Pre(code, tabIndex=0),
    ]


def _written(run: Run) -> float:
    file = run.path / "what-if" / "tried.json"
    return file.stat().st_mtime if file.exists() else 0.0


def _tried(runs: list[Run]) -> list[Tried]:
    return next((found for run in runs if (found := read_tried(run.path))), [])


def _table(tried: list[Tried]) -> Any:
    if not tried:
        return []
    unchanged, *changes = tried
    rows = [
        html.Tr([html.Td(cell.replace("->", "→")) for cell in cells(row, unchanged)])
        for row in (*changes, unchanged)
    ]
    named = {"D": "first ÷ last, decades", "": "does it help?"}
    heads = [html.Th(named.get(head, head), scope="col") for head in HEADS]
    return html.Table([html.Thead(html.Tr(heads)), html.Tbody(rows)])


def _draw(page: Page, _: Any) -> Drawing | None:
    if page.state.view != NAME:
        return None
    curves = tries_info(page.runs)
    return Drawing(tries_figure(curves, page.theme), tries_caption(curves))


def table(page: Page) -> pd.DataFrame:
    """Return what was tried, a row a change, the unchanged copy first."""
    return pd.DataFrame([vars(row) for row in _tried(page.runs)])

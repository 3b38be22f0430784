"""The layers as a table, worst first; a click on a name opens the layer's history."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import Dash, Input, Output, html
from dash.exceptions import PreventUpdate

from gradscope.plots import METRICS
from gradscope.plots.layer_table import SHOWN, layer_table
from gradscope.plots.lettering import number, times
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Page, aria, read_page
from gradscope_dashboard.state import TABLE_COLUMNS

NAME = "layers"
LABEL = "Layers"
CONTROLS = ("step",)
HEADS = {
    "run": "run",
    "number": "no.",
    "name": "layer",
    "kind": "kind",
    "parameters": "size",
    **{name: METRICS[name].label for name in SHOWN},
}


def layout() -> html.Div:
    """Return the place of the table."""
    return html.Div(html.Section(id="layer-table", className="chart"))


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that fills the table."""

    @app.callback(
        Output("layer-table", "children"),
        Input("url", "search"),
        Input("library", "data"),
        Input("screen", "data"),
    )
    def fill(search: str, _: Any, screen: dict[str, Any] | None) -> Any:
        if screen is None:
            raise PreventUpdate
        with library.lock:
            page = read_page(search, screen, library, views)
            rows = table(page)
        return _content(rows, page)


def table(page: Page) -> pd.DataFrame:
    """Return the rows in the order that the page asks for."""
    rows = layer_table(page.runs, step=page.step)
    if page.state.sort:
        column = page.state.sort.lstrip("-")
        descending = page.state.sort.startswith("-")
        rows = rows.sort_values(column, ascending=not descending, kind="stable")
    return rows


def _content(rows: pd.DataFrame, page: Page) -> list[Any]:
    shown = rows.head(page.state.rows)
    order = f"sorted by {HEADS[page.state.sort.lstrip('-')]}" if page.state.sort else "worst first"
    records: list[dict[Any, Any]] = shown.to_dict("records")
    content: list[Any] = [
        html.H2("Which layers are worst off?"),
        html.P(
            f"{len(shown)} of {len(rows)} weight layers, {order}. Gradients are over the last"
            " hidden layer's. A click on a layer shows its whole history.",
            className="caption",
        ),
        html.Div(
            html.Table([_head(page.state.sort), html.Tbody(list(map(_row, records)))]),
            className="scroll",
            tabIndex=0,
            role="region",
            **aria(label="layers"),
        ),
    ]
    if len(shown) < len(rows):
        content.append(html.Button("25 more", id={"do": "rows", "to": "more", "of": ""}))
    return content


def _head(sort: str | None) -> html.Thead:
    """Return the row of heads; a click sorts, a second one the other way round."""
    cells = []
    for name in TABLE_COLUMNS:
        state, to = "none", name
        if sort == name:
            state, to = "ascending", f"-{name}"
        elif sort == f"-{name}":
            state = "descending"
        mark = {"ascending": " ▲", "descending": " ▼", "none": ""}[state]
        title = METRICS[name].definition if name in METRICS else None
        button = html.Button(HEADS[name] + mark, id={"do": "sort", "to": to, "of": ""}, title=title)
        kind = "" if name in ("run", "name", "kind") else "number"
        cells.append(html.Th(button, scope="col", className=kind, **aria(sort=state)))
    return html.Thead(html.Tr(cells))


def _row(row: dict[Any, Any]) -> html.Tr:
    cells: list[Any] = [html.Td(row["run"]), html.Td(row["number"], className="number")]
    link = html.Button(row["name"], id={"do": "layer", "to": row["name"], "of": row["run"]})
    cells += [html.Td(link), html.Td(row["kind"])]
    cells.append(html.Td(f"{row['parameters']:,}", className="number"))
    for name in SHOWN:
        value = float(row[name])
        say = times if METRICS[name].relative else number
        odd = " odd" if value == 0 or value != value or abs(value) == float("inf") else ""
        cells.append(html.Td(say(value), className=f"number{odd}"))
    return html.Tr(cells)


CLICKS: dict[str, Any] = {}

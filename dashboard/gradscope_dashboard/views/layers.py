"""The layers as a table, worst first; a click on a name opens the layer's history.

assets/layers.js draws it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from dash import ClientsideFunction, Dash, Input, Output, dcc, html
from dash.exceptions import PreventUpdate

from gradscope.plots import METRICS
from gradscope.plots.layer_table import SHOWN, layer_table
from gradscope.plots.lettering import fitting, number, times
from gradscope.runs.run import Run
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Page, read_page
from gradscope_dashboard.state import ROWS, TABLE_COLUMNS

NAME = "layers"
LABEL = "Layers"
CONTROLS = ("step",)
CAPTION = (
    " A click on a layer shows its whole history. Gradients are read at each layer's output, over"
    " the last hidden layer's; a verdict also looks behind the activation, and tells the lesser"
    " loss."
)
HEADS = {
    "run": "run",
    "number": "no.",
    "name": "layer",
    "kind": "kind",
    "parameters": "size",
    **{name: METRICS[name].label for name in SHOWN},
}


def layout(_: Page) -> html.Div:
    """Return the place of the table."""
    return html.Div(
        [
            html.Section(id="layer-table", className="chart"),
            dcc.Store(id="layers-data"),
            dcc.Store(id="layers-drawn"),
        ]
    )


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callbacks that fill the table and that draw it."""

    @app.callback(
        Output("layers-data", "data"),
        Input("url", "search"),
        Input("library", "data"),
        Input("screen", "data"),
    )
    def fill(search: str, _: Any, screen: dict[str, Any] | None) -> Any:
        if screen is None:
            raise PreventUpdate
        with library.lock:
            page = read_page(search, screen, library, views)
            if page.state.view != NAME:
                raise PreventUpdate
            rows = table(page)
        return _content(rows, page)

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("gradscope", "layers"),
        Output("layers-drawn", "data"),
        Input("layers-data", "data"),
    )


def table(page: Page) -> pd.DataFrame:
    """Return the rows in the order that the page asks for."""
    rows = layer_table(page.runs, step=page.step)
    if page.state.sort:
        column = page.state.sort.lstrip("-")
        descending = page.state.sort.startswith("-")
        rows = rows.sort_values(column, ascending=not descending, kind="stable")
    return rows


def _content(rows: pd.DataFrame, page: Page) -> dict[str, Any]:
    """Return the heads and cells: what differs between the layers first."""
    shown = rows.head(page.state.rows)
    order = f"sorted by {HEADS[page.state.sort.lstrip('-')]}" if page.state.sort else "worst first"
    differs = [column for column in TABLE_COLUMNS if rows[column].nunique(dropna=False) > 1]
    columns = [*differs, *(column for column in TABLE_COLUMNS if column not in differs)]
    cells = zip(*(_say(column, shown, page.runs) for column in columns), strict=True)
    return {
        "title": "Which layers are worst off?",
        "caption": fitting(f"{len(shown)} of {len(rows)} weight layers, {order}.{CAPTION}", 0),
        "heads": [_head(column, page.state.sort) for column in columns],
        "rows": list(cells),
        "odd": ["exactly 0", "NaN", "inf", "-inf"],
        "more": page.state.rows + ROWS if len(shown) < len(rows) else None,
    }


def _head(name: str, sort: str | None) -> dict[str, Any]:
    """Return a head; a click sorts, a second one the other way round."""
    state = {name: "ascending", f"-{name}": "descending"}.get(sort or "", "none")
    return {
        "name": name,
        "label": HEADS[name],
        "title": METRICS[name].definition if name in METRICS else None,
        "kind": "" if name in ("run", "name", "kind") else "number",
        "sorted": state,
        "to": f"-{name}" if state == "ascending" else name,
    }


def _say(column: str, rows: pd.DataFrame, runs: list[Run]) -> list[str]:
    """Return the cells of a column; a dash where a layer has no such reading, as tied weights."""
    if column == "parameters":
        return [f"{count:,}" for count in rows[column]]
    if column not in METRICS:
        return list(map(str, rows[column]))
    say = times if METRICS[column].relative else number
    recorded = "update_norm" if column == "update_ratio" else column
    read = {run.name: run.was_read(recorded) for run in runs}
    where = zip(rows[column].astype(float), rows["run"], rows["number"], strict=True)
    return [
        "–" if np.isnan(value) and not read[run][layer] else say(value)
        for value, run, layer in where
    ]


CLICKS: dict[str, Any] = {}

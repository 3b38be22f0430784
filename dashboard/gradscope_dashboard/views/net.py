"""The net with its gradient on it: modules as boxes, ways past them as arcs.

The picture is an SVG of our own (assets/net.js): boxes stay in the order of the data flow and open
in place, which layouts of a general graph library do not keep, and nothing is to be loaded for it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import ClientsideFunction, Dash, Input, Output, dcc, html
from dash.exceptions import PreventUpdate

from gradscope.plots.net_graph import TITLE, Module, net_graph_info, reach
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Page, aria, captioned, read_page, worst

NAME = "net"
LABEL = "Net"
CONTROLS = ("step",)
MOST = 4
CAPTION = (
    "Blue: little of the gradient arrives; red: it grew; no colour: normal. It comes from the"
    " right, where the output is. A line is as wide as the gradient that passes, an arc as the"
    " shortcut's share of it, dashed where that is not known. A ring and a bar below mark what a"
    " finding names. A click on a box with ▸ opens it, on a layer its history."
)


def layout(_: Page) -> html.Div:
    """Return the place of the picture."""
    return html.Div(
        html.Section(
            [
                html.H2(TITLE),
                html.Div(captioned(CAPTION), className="caption"),
                html.Div(id="net", role="group", **aria(label="modules of the nets")),
                dcc.Store(id="net-data"),
                dcc.Store(id="net-drawn"),
            ],
            className="chart",
        )
    )


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callbacks that work it out and that draw it."""

    @app.callback(
        Output("net-data", "data"),
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
            drawn = worst(page, MOST)
            summaries = [library.summary(page.names[i], patient=False) for i in drawn]
            runs = [page.runs[i] for i in drawn]
            graphs = net_graph_info(runs, step=page.step, summaries=summaries)
        return {
            "graphs": [
                {**graph.as_dict(), "color": page.theme.label(drawn[graph.place])}
                for graph in graphs
            ],
            "left_out": max(len(page.runs) - MOST, 0),
            "limit": (limit := reach(graphs)),
            "scale": page.theme.over_decades(limit),
            "zero": page.theme.zero,
            "infinite": page.theme.infinite,
            "missing": page.theme.missing,
            "shortcut": page.theme.shortcut,
            "trunk": page.theme.trunk,
        }

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("gradscope", "net"),
        Output("net-drawn", "data"),
        Input("net-data", "data"),
    )


def table(page: Page) -> pd.DataFrame:
    """Return the modules of all levels, with what reaches them."""
    rows: list[tuple[Any, ...]] = []

    def add(run: str, step: int, module: Module) -> None:
        rows.append((run, step, module.name, module.kind, module.value))
        for child in module.children:
            add(run, step, child)

    for graph in net_graph_info(page.runs, step=page.step):
        for module in graph.modules:
            add(graph.run, graph.step, module)
    return pd.DataFrame(rows, columns=["run", "step", "module", "kind", "signal"])


CLICKS: dict[str, Any] = {}

"""The drawer at the bottom of the page: the whole history of the layer that was clicked."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from gradscope.plots.history import history_caption, history_figure, history_info
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, aria, chart, draw_with, read_page


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callbacks that open the drawer and that draw in it."""

    @app.callback(
        Output("drawer", "children"),
        Output("drawer", "hidden"),
        Input("url", "search"),
        Input("screen", "data"),
        State("history-title", "children", allow_optional=True),
    )
    def open_drawer(
        search: str, screen: dict[str, Any] | None, opened: str | None
    ) -> tuple[Any, bool]:
        if screen is None:
            raise PreventUpdate
        with library.lock:
            page = read_page(search, screen, library, views)
            layer = page.state.layer
            if layer is None or not any((run.layers["name"] == layer).any() for run in page.runs):
                if opened is None:
                    raise PreventUpdate
                return None, True
            if opened == f"Layer {layer}":
                raise PreventUpdate
            section = chart("history", f"Layer {layer}", page, _draw)
        section.children.append(
            html.Button(
                "Close", id={"do": "layer", "to": "", "of": ""}, **aria(label="Close layer")
            )
        )
        return section, False

    draw_with(app, library, views, "history", _draw)


def _draw(page: Page) -> Drawing | None:
    if page.state.layer is None:
        return None
    curves = history_info(page.runs, page.state.layer)
    return Drawing(history_figure(curves, page.theme), history_caption(curves))

"""Speed of learning of five layers spread over the depth."""

from __future__ import annotations

from typing import Any

from dash import Dash, html

from gradscope.plots.speed import TITLE, speed_caption, speed_figure, speed_info
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, chart, draw_with

NAME = "speed"
LABEL = "Speed of learning"
CONTROLS = ()


def layout() -> html.Div:
    """Return the chart."""
    return html.Div([chart("speed", TITLE)])


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that draws it."""
    draw_with(app, library, views, "speed", _draw)


def _draw(page: Page) -> Drawing:
    panels = speed_info(page.runs)
    return Drawing(speed_figure(panels, page.theme), speed_caption(panels))


CLICKS: dict[str, Any] = {}

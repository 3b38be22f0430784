"""Speed of learning of five layers spread over the depth."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import Dash, html

from gradscope.plots.speed import TITLE, speed_caption, speed_figure, speed_info
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, chart, draw_with, of_worst

NAME = "speed"
LABEL = "Speed of learning"
CONTROLS = ()


def layout(page: Page) -> html.Div:
    """Return the chart."""
    return html.Div([chart("speed", TITLE, page, _draw)])


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that draws it."""
    draw_with(app, library, views, "speed", _draw)


def _draw(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    panels, left_out = of_worst(page, speed_info)
    return Drawing(speed_figure(panels, page.theme), speed_caption(panels) + left_out)


def table(page: Page) -> pd.DataFrame:
    """Return the points of the curves."""
    frames = [
        pd.DataFrame(
            {"run": p.run, "layer": curve.name, "step": curve.steps, "update_ratio": curve.values}
        )
        for p in speed_info(page.runs)
        for curve in p.curves
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run"])


def _layer_at(point: dict[str, Any], page: Page) -> dict[str, Any]:
    return {"layer": point["customdata"][-1]}


CLICKS = {"speed": _layer_at}

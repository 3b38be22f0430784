"""Flow map: the gradient's way through shortcuts and branches."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
from dash import Dash, html

from gradscope.plots.flow_map import TITLE, flow_map_caption, flow_map_figure, flow_map_info
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, chart, draw_with, of_worst

NAME = "flow"
LABEL = "Flow map"
CONTROLS = ("step",)


def layout(page: Page) -> html.Div:
    """Return the chart."""
    return html.Div([chart("flow", TITLE, page, _draw)])


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that draws it."""
    draw_with(app, library, views, "flow", _draw)


def _draw(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    lanes, left_out = of_worst(page, lambda runs: flow_map_info(runs, step=page.step))
    return Drawing(flow_map_figure(lanes, page.theme), flow_map_caption(lanes) + left_out)


def table(page: Page) -> pd.DataFrame:
    """Return the layers and, with their forms, the residual blocks of each run."""
    rows = []
    for lane in flow_map_info(page.runs, step=page.step):
        rows += [{"run": lane.run, "step": lane.step, **asdict(square)} for square in lane.squares]
        rows += [{"run": lane.run, "step": lane.step, **asdict(block)} for block in lane.blocks]
    return pd.DataFrame(rows, columns=None if rows else ["run"])


def _layer_at(point: dict[str, Any], page: Page) -> dict[str, Any]:
    return {"layer": point["customdata"][-1]}


CLICKS = {"flow": _layer_at}

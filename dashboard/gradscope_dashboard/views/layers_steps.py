"""Heatmap of layers over steps, binned again where the user zooms in."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from dash import Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from gradscope.plots.heatmap import (
    TITLE,
    HeatmapInfo,
    HeatmapPanel,
    heatmap_caption,
    heatmap_figure,
    heatmap_info,
    heatmap_title,
    row_name,
)
from gradscope.plots.metrics import metric_named
from gradscope.runs.run import Run
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, chart, draw_with, of_worst

NAME = "heatmap"
LABEL = "Layers × steps"
CONTROLS = ("metric",)


def layout(page: Page) -> html.Div:
    """Return the chart and the memory of its zoom."""
    return html.Div(
        [
            chart("heatmap", TITLE, page, _draw, {}),
            dcc.Store(id="heatmap-zoom", data={}),
        ]
    )


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callbacks that draw it and that remember the zoom of each panel."""
    draw_with(app, library, views, "heatmap", _draw, Input("heatmap-zoom", "data"))

    @app.callback(
        Output("heatmap-zoom", "data"),
        Input("heatmap", "relayoutData"),
        State("heatmap-zoom", "data"),
        prevent_initial_call=True,
    )
    def remember_zoom(change: dict[str, Any] | None, zoom: dict[str, Any]) -> dict[str, Any]:
        moved = False
        for key, value in (change or {}).items():
            if match := re.fullmatch(r"xaxis(\d*)\.range\[([01])\]", key):
                panel = str(int(match[1] or 1) - 1)
                zoom.setdefault(panel, [None, None])[int(match[2])] = value
                moved = True
            elif match := re.fullmatch(r"xaxis(\d*)\.autorange", key):
                moved |= zoom.pop(str(int(match[1] or 1) - 1), None) is not None
        if not moved:
            raise PreventUpdate
        return zoom


def _draw(page: Page, zoom: dict[str, list[float]]) -> Drawing | None:
    if page.state.view != NAME:
        return None

    def cells(runs: list[Run]) -> list[HeatmapPanel]:
        found: list[HeatmapPanel] = []
        for place, run in enumerate(runs):
            first, last = zoom.get(str(place), [None, None])
            info = heatmap_info(
                run,
                metric=page.state.metric,
                first=None if first is None else int(first),
                last=None if last is None else int(last) + 1,
            )
            found += [replace(panel, place=place) for panel in info.panels]
        return found

    panels, left_out = of_worst(page, cells)
    info = HeatmapInfo(metric_named(page.state.metric), panels)
    title = heatmap_title(info.metric)
    return Drawing(heatmap_figure(info, page.theme), heatmap_caption(info) + left_out, title)


def table(page: Page) -> pd.DataFrame:
    """Return the cells, one row a run, layer and bin of steps."""
    info = heatmap_info(page.runs, metric=page.state.metric)
    frames = [
        pd.DataFrame(
            {
                "run": panel.run,
                "layer": np.repeat(panel.names, len(panel.steps)),
                "step": np.tile(panel.steps, len(panel.names)),
                info.metric.name: panel.values.ravel(),
            }
        )
        for panel in info.panels
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run"])


def _layer_at(point: dict[str, Any], page: Page) -> dict[str, Any]:
    for panel in heatmap_info(page.runs, metric=page.state.metric, bins=1).panels:
        for layer, name in zip(panel.layers, panel.names, strict=True):
            if row_name(layer, name) == point["y"]:
                return {"layer": name}
    return {}


CLICKS = {"heatmap": _layer_at}

"""Sweep: the shown runs beside each other, by the setting that tells them apart."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import Dash, html

from gradscope.plots.sweep_map import (
    TITLE,
    SweepInfo,
    sweep_map_caption,
    sweep_map_figure,
    sweep_map_info,
)
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, chart, draw_with

NAME = "sweep"
LABEL = "Sweep"
CONTROLS = ()


def layout(page: Page) -> html.Div:
    """Return the chart."""
    return html.Div([chart("sweep", TITLE, page, _draw)])


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that draws it."""
    draw_with(app, library, views, "sweep", _draw)


def _info(page: Page) -> SweepInfo | None:
    """Return what is drawn, of the runs whose summaries are known."""
    known = [
        (run, summary)
        for name, run in zip(page.names, page.runs, strict=True)
        if (summary := page.library.summary(name, patient=False)) is not None
    ]
    return sweep_map_info([run for run, _ in known], summaries=[summary for _, summary in known])


def _draw(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    info = _info(page)
    known = None if info is None else info.runs
    unread = 0 if known is None else len(page.runs) - len(known)
    caption = sweep_map_caption(info, unread)
    return Drawing(sweep_map_figure(info, page.theme), caption, of=known)


def table(page: Page) -> pd.DataFrame:
    """Return a row a run and depth."""
    info = _info(page)
    if info is None:
        return pd.DataFrame(columns=["run"])
    frames = [
        pd.DataFrame(
            {
                "run": run,
                info.key if info.key != "run" else "order": value,
                "loss": info.loss[i],
                "depth": info.depth,
                "signal_norm": info.signal[:, i],
                "update_ratio": info.speed[:, i],
            }
        )
        for i, (run, value) in enumerate(zip(info.runs, info.values, strict=True))
    ]
    return pd.concat(frames, ignore_index=True)


CLICKS: dict[str, Any] = {}

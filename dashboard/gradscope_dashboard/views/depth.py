"""Depth profile, and under it the survival of the gradient over the training."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import Dash, html

from gradscope.plots.depth_profile import (
    depth_profile_caption,
    depth_profile_figure,
    depth_profile_info,
)
from gradscope.plots.survival import TITLE as SURVIVAL_TITLE
from gradscope.plots.survival import survival_caption, survival_figure, survival_info
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, chart, draw_with

NAME = "depth"
LABEL = "Depth profile"
CONTROLS = ("metric", "step")


def layout(page: Page) -> html.Div:
    """Return the two charts."""
    return html.Div(
        [
            chart("profile", "", page, _draw_profile),
            chart("survival", SURVIVAL_TITLE, page, _draw_survival),
        ]
    )


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callbacks that draw them."""
    draw_with(app, library, views, "profile", _draw_profile)
    draw_with(app, library, views, "survival", _draw_survival)


def _draw_profile(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    info = depth_profile_info(page.runs, metric=page.state.metric, step=page.step)
    figure = depth_profile_figure(info, page.theme)
    return Drawing(figure, depth_profile_caption(info), info.metric.question)


def _draw_survival(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    lines = survival_info(page.runs)
    step = page.step
    if step is None and lines:
        step = max(int(line.steps[-1]) for line in lines)
    figure = survival_figure(lines, page.theme, marked=step)
    return Drawing(figure, f"{survival_caption(lines)} Click to look at that moment.")


def table(page: Page) -> pd.DataFrame:
    """Return the points of the profile."""
    info = depth_profile_info(page.runs, metric=page.state.metric, step=page.step)
    frames = [
        pd.DataFrame(
            {
                "run": line.run,
                "step": line.step,
                "layer": line.names,
                info.metric.name: line.values,
                "percentile_10": line.low,
                "percentile_90": line.high,
                **({} if line.cut is None else {"cut": line.cut}),
            }
        )
        for line in info.lines
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run"])


def _layer_at(point: dict[str, Any], page: Page) -> dict[str, Any]:
    return {"layer": point["customdata"][-1]}


def _step_at(point: dict[str, Any], page: Page) -> dict[str, Any]:
    return {"step": int(point["x"])}


CLICKS = {"profile": _layer_at, "survival": _step_at}

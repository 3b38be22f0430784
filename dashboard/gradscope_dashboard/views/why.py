"""Why: where the gradient was lost or won, and how steep the activation functions are."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import Dash, html

from gradscope.plots.derivatives import TITLE as DERIVATIVES_TITLE
from gradscope.plots.derivatives import derivatives_caption, derivatives_figure, derivatives_info
from gradscope.plots.ledger import TITLE, ledger_caption, ledger_figure, ledger_info
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import Drawing, Page, chart, draw_with, of_worst

NAME = "why"
LABEL = "Why"
CONTROLS = ("step",)


def layout(page: Page) -> html.Div:
    """Return the two charts."""
    return html.Div(
        [
            chart("ledger", TITLE, page, _draw_ledger),
            chart("derivatives", DERIVATIVES_TITLE, page, _draw_derivatives),
        ]
    )


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callbacks that draw them."""
    draw_with(app, library, views, "ledger", _draw_ledger)
    draw_with(app, library, views, "derivatives", _draw_derivatives)


def _draw_ledger(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    panels, left_out = of_worst(page, lambda runs: ledger_info(runs, step=page.step))
    return Drawing(ledger_figure(panels, page.theme), ledger_caption(panels) + left_out)


def _draw_derivatives(page: Page) -> Drawing | None:
    if page.state.view != NAME:
        return None
    lines = derivatives_info(page.runs, step=page.step)
    return Drawing(derivatives_figure(lines, page.theme), derivatives_caption(lines))


def table(page: Page) -> pd.DataFrame:
    """Return what the ledger shows."""
    panels = ledger_info(page.runs, step=page.step)
    rows = [(p.run, p.step, kind, value) for p in panels for kind, value in p.decades.items()]
    return pd.DataFrame(rows, columns=["run", "step", "kind", "decades"])


def _layer_at(point: dict[str, Any], page: Page) -> dict[str, Any]:
    return {"layer": point["customdata"][-1]}


CLICKS = {"derivatives": _layer_at}

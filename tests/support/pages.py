"""What a test does with a page of the dashboard in a browser."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

Browse = Callable[..., Any]
Serve = Callable[..., str]

PROFILE = "document.querySelector('#profile .js-plotly-plot')"


def drawn(page: Any, graph: str) -> None:
    """Wait until the figure `graph` has traces and nothing is on its way."""
    page.wait_for_function(
        """graph => {
            const plot = document.querySelector(`#${graph} .js-plotly-plot`);
            return plot && plot.data && plot.data.length && plot.querySelector('.main-svg')
                && !document.querySelector('.dash-graph--pending');
        }""",
        arg=graph,
    )


def traces(page: Any, graph: str) -> list[str]:
    """Return the names of the traces of a figure."""
    return page.evaluate(
        "graph => document.querySelector(`#${graph} .js-plotly-plot`).data.map(t => t.name)", graph
    )


def x_range(page: Any, graph: str) -> list[float]:
    """Return the range that the x axis of a figure shows."""
    return page.evaluate(
        "graph => document.querySelector(`#${graph} .js-plotly-plot`)._fullLayout.xaxis.range",
        graph,
    )


def zoom(page: Any, graph: str, low: float, high: float) -> None:
    """Drag over a figure from the shares `low` to `high` of its width."""
    box = page.locator(f"#{graph} .nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + low * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + high * box["width"], middle, steps=5)
    page.mouse.up()


def ask(url: str, **headers: str) -> Any:
    """Return the answer to a request, an error's too."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        return error

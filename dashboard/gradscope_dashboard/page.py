"""What every view draws from, and the callback that draws it again without losing the zoom."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from dash import Dash, Input, Output, Patch, State, dcc, html, no_update
from dash.exceptions import PreventUpdate
from numpy.typing import NDArray
from plotly.io.json import to_json_plotly

from gradscope.plots import DARK, LIGHT, Theme
from gradscope.plots.lettering import fitting
from gradscope.plots.panels import MOST_PANELS
from gradscope.plots.plotlyjs import PRIVATE
from gradscope.plots.sweep_order import sweep_key
from gradscope.runs.run import Run
from gradscope_dashboard import state
from gradscope_dashboard.library import Library

MANY = 6
"""More runs than this are coloured by one of their settings."""

GRAPH_CONFIG: Any = {
    **PRIVATE,
    "displaylogo": False,
    "displayModeBar": "hover",
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg"},
}

NOT_YET: Any = {
    "xaxis": {"visible": False},
    "yaxis": {"visible": False},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}
"""Layout until there is a figure."""


@dataclass(frozen=True)
class Page:
    """What the user looks at: the state, its runs, the colours, the step (None is the latest).

    `screen` says which colours are asked for, and whether it is narrow.
    """

    state: state.State
    names: list[str]
    runs: list[Run]
    theme: Theme
    library: Library
    screen: dict[str, Any]
    step: int | None = None

    @property
    def mark(self) -> str:
        """What differs where something else may be drawn."""
        now = self.library.mark(self.runs)
        return mark_of([asdict(self.state), self.names, self.screen, self.step, now])


@dataclass(frozen=True)
class Drawing:
    """A figure, the sentences above it, and its title where that changes.

    Where `of` is another, what it is of, the figure is drawn anew, with other axes.
    """

    figure: dict[str, Any]
    caption: str
    title: str | None = None
    of: Any = None


def read_page(search: str | None, screen: dict[str, Any], library: Library, views: Any) -> Page:
    """Return what the address `search` and the size and colours of the screen ask for."""
    names = library.names
    wanted = state.parse(search, views, names)
    shown = [name for name in library.shown(wanted) if library.get([name])]
    theme = DARK if screen["theme"] == "dark" else LIGHT
    runs = library.get(shown)
    return Page(
        wanted,
        shown,
        runs,
        theme_for(theme, runs, [library.slot(name) for name in shown], bool(screen["narrow"])),
        library,
        screen,
        library.opening(shown) if wanted.step is None else wanted.step,
    )


def worst(page: Page, most: int) -> list[int]:
    """Return the places of the runs to draw: of many the `most` worst off, in their order."""
    places = range(len(page.runs))
    if len(places) <= most:
        return list(places)
    badness = [page.library.badness(name) for name in page.names]
    return sorted(sorted(places, key=lambda place: badness[place], reverse=True)[:most])


def of_worst(page: Page, info: Callable[[list[Run]], list[Any]]) -> tuple[list[Any], str]:
    """Return `info` of as many runs as a figure has panels for, and what that leaves out."""
    places = worst(page, MOST_PANELS)
    found = info([page.runs[place] for place in places])
    left_out = len(places) < len(page.runs)
    said = f" The {len(places)} worst off of {len(page.runs)} runs are drawn." * left_out
    return [replace(item, place=places[item.place]) for item in found], said


def theme_for(theme: Theme, runs: Sequence[Run], slots: Sequence[int], narrow: bool) -> Theme:
    """Return the colours of `runs`: one each, or of many by the setting in which they differ."""
    theme = theme.for_page(tuple(slots), narrow)
    if len(runs) <= MANY:
        return theme
    key = sweep_key(runs)
    if key is None:
        return theme.for_many(list(range(1, len(runs) + 1)), "run")
    return theme.for_many([run.config.get(key, "none") for run in runs], key)


def aria(**attributes: str) -> dict[str, Any]:
    """Return ARIA attributes for a component: `aria(label="runs")`."""
    return {f"aria-{name}": value for name, value in attributes.items()}


def chart(
    graph: str,
    title: str,
    page: Page,
    draw: Callable[..., Drawing | None],
    *extra: Any,
    above: Sequence[Any] = (),
) -> html.Section:
    """Return a titled figure `graph` with its caption, and `above` between them.

    It comes with what `draw(page, *extra)` draws: a browser that is first given an empty one draws
    twice, and asks once more.
    """
    figure: dict[str, Any] = {"data": [], "layout": NOT_YET}
    caption: list[Any] = []
    drawn = None
    if (drawing := draw(page, *extra)) is not None:
        drawing, drawn = _prepared(page, drawing, extra)
        figure, caption, title = drawing.figure, captioned(drawing.caption), drawing.title or title
    return html.Section(
        className="chart",
        children=[
            html.H2(title, id=f"{graph}-title"),
            html.Div(caption, id=f"{graph}-caption", className="caption"),
            *above,
            dcc.Graph(id=graph, config=GRAPH_CONFIG, figure=figure),
            dcc.Store(id=f"{graph}-drawn", data=drawn),
        ],
    )


def captioned(text: str) -> list[Any]:
    """Return a caption of which a narrow page shows the first sentence, until asked for more."""
    first, rest = fitting(text, 0)
    if not rest:
        return [first]
    more = html.Button("more", className="link more", **aria(expanded="false"))
    return [first, " ", html.Span(rest, className="rest"), " ", more]


def draw_with(
    app: Dash,
    library: Library,
    views: list[str],
    graph: str,
    draw: Callable[..., Drawing | None],
    *extra: Input,
) -> None:
    """Let `draw(page, *extra)` draw the figure `graph` again whenever the page or its data change.

    It returns None where the page no longer shows the figure: Dash stumbles over answers for
    what is gone.

    A figure for other runs, another metric or other colours is sent whole. For another step, or
    for new data, only its content is sent: Dash forgets the zoom with every whole figure. What is
    there already is not sent again.
    """

    @app.callback(
        Output(graph, "figure"),
        Output(f"{graph}-caption", "children"),
        Output(f"{graph}-title", "children"),
        Output(f"{graph}-drawn", "data"),
        Input("url", "search"),
        Input("library", "data"),
        Input("screen", "data"),
        *extra,
        State(f"{graph}-drawn", "data"),
    )
    def redraw(search: str, _: Any, screen: dict[str, Any] | None, *rest: Any) -> Any:
        if screen is None:
            raise PreventUpdate
        *values, drawn = rest
        with library.lock:
            page = read_page(search, screen, library, views)
            if drawn and drawn["asked"] == [page.mark, *values]:
                raise PreventUpdate
            drawing = draw(page, *values)
        if drawing is None:
            raise PreventUpdate
        drawing, now = _prepared(page, drawing, values)
        if drawn and drawn["whole"] == now["whole"]:
            raise PreventUpdate
        title = no_update if drawing.title is None else drawing.title
        if not drawn or drawn["frame"] != now["frame"]:
            return drawing.figure, captioned(drawing.caption), title, now
        content = Patch()
        if drawn["data"] != now["data"]:
            content["data"] = drawing.figure["data"]
        content["layout"]["annotations"] = drawing.figure["layout"]["annotations"]
        content["layout"]["shapes"] = drawing.figure["layout"]["shapes"]
        return content, captioned(drawing.caption), title, now


def _prepared(page: Page, drawing: Drawing, extra: Sequence[Any]) -> tuple[Drawing, dict[str, Any]]:
    """Return `drawing` as it is sent, and by what another one is told from it."""
    if not drawing.figure["data"]:  # it says why, and there is nothing to explain
        drawing = replace(drawing, caption="")
    for trace in drawing.figure["data"]:
        trace |= {key: typed(item) for key, item in trace.items() if isinstance(item, np.ndarray)}
    frame = [
        page.names,
        page.state.metric,
        page.state.layer,
        page.state.log,
        page.screen,
        len(drawing.figure["data"]) > 0,
        _labelling(drawing.figure["layout"]),
        drawing.of,
    ]
    whole = mark_of([drawing.figure, drawing.caption, drawing.title])
    return drawing, {
        "asked": [page.mark, *extra],
        "frame": frame,
        "data": mark_of(drawing.figure["data"]),
        "whole": whole,
    }


def mark_of(content: Any) -> str:
    """Return what differs once components, or a figure, do."""
    return hashlib.sha256(to_json_plotly(content).encode()).hexdigest()[:16]


def _labelling(layout: dict[str, Any]) -> list[Any]:
    """Return how each axis is labelled: other labels need new axes."""
    axes = [layout[name] for name in layout if name.startswith(("xaxis", "yaxis"))]
    return [axis.get("dtick", len(axis.get("tickvals", ()))) for axis in axes]


def typed(values: NDArray[Any]) -> dict[str, str]:
    """Return float32 `values` as plotly's typed array, ten times faster to send than a list."""
    return {
        "dtype": "f4",
        "bdata": base64.b64encode(values.astype(np.float32).tobytes()).decode("ascii"),
        "shape": ", ".join(map(str, values.shape)),
    }

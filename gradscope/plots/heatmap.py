"""When and where the gradient vanished or exploded: layers from input (top) over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.arithmetic import Array
from gradscope.plots import identity, lettering
from gradscope.plots.drawn import ONE_LAYER, DrawnMetric, as_runs, drawn_metric
from gradscope.plots.metrics import Metric, metric_named
from gradscope.plots.panels import (
    PanelAxes,
    in_panels,
    odd_cells,
    rows_of,
    shown_panels,
    title_limit,
)
from gradscope.plots.sampling import bin_starts, farthest_from_one
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    annotation,
    axis,
    base_layout,
    nothing_to_show,
    step_axis,
    titled,
)
from gradscope.runs.run import Run

TITLE = "When and where did it vanish or explode?"
BINS = 400
ROWS_AT_ONCE = 2**12
"""About so many recorded steps are read at a time: a whole column of a long run takes memory."""
SAID = 4
"""Of so many runs a caption says what is odd."""
MOST_KEPT = 20
"""Binned pictures that are kept of a run, a megabyte each for 300 layers."""
NAMED = 2
"""Of so many runs the rows of the first have room for the layers' names."""
LETTER, TITLES, KEY = 7, 38, 130
"""Pixels of a letter of a label, of an axis' title and what is around it, and of the key."""

NORMAL = 2
"""So many decades either way are normal."""
PHONE = 350
"""Pixels that a run takes on a phone, where they lie below each other."""
LIMITS = (3, 4, 6, 8, 12, 16, 20)
"""The colour scale of a gradient ends so many decades below and above the last hidden layer's."""


_known: WeakKeyDictionary[Run, dict[tuple[Any, ...], Array]] = WeakKeyDictionary()


@dataclass(frozen=True)
class HeatmapPanel:
    """One run.

    Parameters
    ----------
    place : int
        Which of the given runs it is.
    run : str
    layers : list of int
        Indices in `Run.layers`, input first.
    names : list of str
        The layers' names.
    steps : array, shape (n_bins,)
        First recorded step of each bin.
    values : array, shape (n_layers, n_bins)
        The reading of each bin that lies farthest from 1.
    total : int
        Recorded steps behind the bins.
    """

    place: int
    run: str
    layers: list[int]
    names: list[str]
    steps: NDArray[np.int64]
    values: Array
    total: int


@dataclass(frozen=True)
class HeatmapInfo:
    """What the heatmap draws."""

    metric: Metric
    panels: list[HeatmapPanel]


def heatmap_info(
    runs: Run | Sequence[Run],
    *,
    metric: str = "signal_norm",
    first: int | None = None,
    last: int | None = None,
    bins: int = BINS,
) -> HeatmapInfo:
    """Return the readings of each run between the steps `first` and `last`, in at most `bins` bins.

    Runs without a step there are left out.
    """
    chosen = metric_named(metric)
    panels = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, chosen)
        start = 0 if first is None else int(np.searchsorted(data.steps, first))
        stop = len(data.steps) if last is None else int(np.searchsorted(data.steps, last, "right"))
        if data.empty or start >= stop:
            continue
        starts = bin_starts(stop - start, bins)
        farthest = _farthest(run, chosen, data, start, stop, starts)
        steps = data.steps[start + starts]
        layers = data.layers.tolist()
        panels.append(
            HeatmapPanel(place, run.name, layers, data.names, steps, farthest, stop - start)
        )
    return HeatmapInfo(chosen, panels)


def _farthest(
    run: Run, metric: Metric, data: DrawnMetric, start: int, stop: int, starts: NDArray[np.int64]
) -> Array:
    """Return the farthest reading of each layer and bin, (n_layers, n_bins), kept with the run."""
    known = _known.setdefault(run, {})
    # recorded steps never change, there only come new ones
    key = (metric.name, start, stop, len(starts), data.layers.tobytes())
    if key not in known:
        stops = [*starts[1:].tolist(), stop - start]
        known[key] = np.stack(_binned(data, start, starts.tolist(), stops), axis=1)
        for oldest in list(known)[:-MOST_KEPT]:
            known.pop(oldest, None)
    return known[key]


def _binned(data: DrawnMetric, start: int, starts: list[int], stops: list[int]) -> list[Array]:
    """Return the farthest reading of each bin; of a long run some bins are read at a time."""
    each = max(ROWS_AT_ONCE // (stops[0] - starts[0]), 1)
    farthest = []
    for place in range(0, len(starts), each):
        some = slice(place, place + each)
        first, last = starts[place], stops[some][-1]
        values = data.values(start + first, start + last)
        for begin, end in zip(starts[some], stops[some], strict=True):
            farthest.append(farthest_from_one(values[begin - first : end - first]))
    return farthest


def heatmap_title(metric: Metric) -> str:
    """Return what the figure answers."""
    return TITLE if metric.relative else f"{metric.label.capitalize()} of each layer at each step"


def heatmap_caption(info: HeatmapInfo) -> str:
    """Return how to read the figure, and what the bins hold."""
    if info.metric.relative:
        text = (
            "Each cell is a layer's gradient over the last hidden layer's: blue is less, red more,"
            " no colour as much. Up to 100 × either way is normal."
        )
        if any(_striped(panel) for panel in info.panels):
            text += (
                " Stripes that repeat are the roles of layers in a block, each at its own level; a"
                " gradient that is lost turns blue from the bottom to the top."
            )
    else:
        text = info.metric.sentence
    binned_panels = [panel for panel in info.panels if len(panel.steps) < panel.total]
    if binned_panels:
        most = max(binned_panels, key=lambda panel: panel.total)
        text += (
            f" Each cell holds the most extreme of about {most.total // len(most.steps)} recorded"
            f" steps ({most.total:,} in {len(most.steps)} cells); zoom in for more."
        )
    shown, left_out = shown_panels(info.panels)
    text += left_out
    for panel in shown[:SAID]:
        if found := lettering.specials(panel.values[:, -1], zeros=info.metric.log):
            text += f" {panel.run} ends with {found}{' (grey)' * found.endswith('NaN')}."
    return text


def _striped(panel: HeatmapPanel) -> bool:
    """Return whether roles that repeat from block to block each have a level of their own."""
    fine = np.isfinite(panel.values) & (panel.values > 0)
    heights = np.log10(np.where(fine, panel.values, 1.0)).mean(axis=1)
    return bool(identity.roles_apart(panel.names, heights))


def heatmap_figure(info: HeatmapInfo, theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `info` as a dict for plotly, one panel a run."""
    if not info.panels:
        return nothing_to_show(theme, "No step has been recorded yet.")
    if info.metric.relative and max(len(panel.names) for panel in info.panels) == 1:
        return nothing_to_show(theme, ONE_LAYER)
    panels, _ = shown_panels(info.panels)
    count = len(panels)
    rows = rows_of(count, theme)
    height = 500 if rows == 1 else 210 * rows + 80
    layout = base_layout(theme, height if not theme.narrow else PHONE * count + 60)
    layout["plot_bgcolor"] = theme.missing
    layout["margin"] = {"l": 56, "r": 16, "t": 30, "b": 56}
    if not theme.narrow:  # labels and the key, where plotly need not find out how wide they are
        labels = [_tick(panels[0], i, count <= NAMED) for i in range(len(panels[0].names))]
        layout["margin"] |= {"l": TITLES + LETTER * max(map(len, labels)), "r": KEY}
    layout["coloraxis"] = _color_axis(info, theme)
    data: list[dict[str, Any]] = []
    for axes, panel in in_panels(panels, theme, beside=0.03, below=0.09):
        data += _cells(panel, info.metric, theme, axes)
        # plotly puts the title of a lower panel into the panel
        x_title = "step" if axes.lowest and not theme.narrow else ""
        named = count <= NAMED and axes.leftmost and not theme.narrow
        ticks = _ticks(len(panel.names), 24 if named else 10 if rows == 1 or theme.narrow else 5)
        axes.add_to(
            layout,
            step_axis(theme, [panel.steps], x_title, showgrid=False),
            axis(
                theme,
                "layer, input on top" if axes.leftmost else "",
                autorange="reversed",
                type="category",
                tickmode="array",
                tickvals=[row_name(panel.layers[i], panel.names[i]) for i in ticks],
                ticktext=[_tick(panel, i, named) for i in ticks],
                showgrid=False,
            ),
        )
        layout["annotations"].append(
            axes.run_title(theme, panel.run, panel.place, limit=title_limit(count))
        )
        if theme.narrow:
            layout["annotations"].append(
                annotation(
                    theme,
                    "step",
                    x=0.5,
                    xref="paper",
                    y=axes.down[0],
                    yref="paper",
                    yanchor="top",
                    yshift=-20,
                )
            )
    layout["annotations"] += _swatches(info, theme)
    return {"data": data, "layout": layout}


def heatmap(
    runs: Run | Sequence[Run],
    *,
    metric: str = "signal_norm",
    first: int | None = None,
    last: int | None = None,
    bins: int = BINS,
    theme: Theme = LIGHT,
) -> go.Figure:
    """Draw a metric of every layer over the steps, one panel a run on one colour scale.

    Parameters
    ----------
    runs : Run or sequence of Run
    metric : str
        A name in `gradscope.plots.METRICS`.
    first, last : int, optional
        Steps to begin and end with.
    bins : int
        More recorded steps are put together, the most extreme reading of each bin is drawn.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    GradscopeError
        If no such metric exists.
    """
    info = heatmap_info(runs, metric=metric, first=first, last=last, bins=bins)
    return titled(
        heatmap_figure(info, theme), heatmap_title(info.metric), heatmap_caption(info), theme
    )


def _cells(
    panel: HeatmapPanel, metric: Metric, theme: Theme, axes: PanelAxes
) -> list[dict[str, Any]]:
    """Return the coloured cells, and cells of their own for what has no logarithm."""
    where = {
        "type": "heatmap",
        "x": panel.steps.tolist(),
        "y": [row_name(*row) for row in zip(panel.layers, panel.names, strict=True)],
        **axes.of_trace,
    }
    values = panel.values
    drawn = np.isfinite(values) & ((values > 0) | (not metric.log))
    with np.errstate(divide="ignore", invalid="ignore"):
        heights = np.log10(values) if metric.log else values
    unit = " beside the last hidden layer" if metric.relative else ""
    shown_value = "%{z:+.1f} decades" if metric.log else "%{z:.3f}"
    cells = [
        {
            **where,
            "z": np.where(drawn, heights, np.nan).astype(np.float32),
            "coloraxis": "coloraxis",
            "hoverongaps": False,
            "hovertemplate": f"%{{y}}<br>step %{{x}}: {shown_value}{unit}<extra></extra>",
        }
    ]
    for mask, color, said in odd_cells(values, theme):
        if mask.any() and (metric.log or said != "exactly 0"):
            cells.append(
                {
                    **where,
                    "z": np.where(mask, 1, np.nan).astype(np.float32),
                    "colorscale": [[0, color], [1, color]],
                    "showscale": False,
                    "hoverongaps": False,
                    "hovertemplate": f"%{{y}}<br>step %{{x}}: {said}<extra></extra>",
                }
            )
    return cells


def row_name(layer: int, name: str) -> str:
    """Return what the row of a layer is called, by its index and name: `0 · conv1`."""
    return f"{layer} · {lettering.safe(name)}"


def _tick(panel: HeatmapPanel, row: int, named: bool) -> str:
    """Return the label of a row: its layer's number and, where there is room, its name's end."""
    number = str(panel.layers[row])
    return f"{number} · {lettering.tail(panel.names[row])}" if named else number


def _ticks(layers: int, about: int) -> list[int]:
    """Return about so many rows to number, the first and the last among them."""
    every = max(round(layers / about), 1)
    inner = [i for i in range(every - 1, layers - 1, every) if layers - 1 - i >= every / 2]
    return [0, *(i for i in inner if i > every / 2), layers - 1] if layers > 1 else [0]


def _limit(info: HeatmapInfo) -> int:
    """Return how many decades the colour scale spans, as far as all but odd cells need it."""
    values = np.concatenate([panel.values.ravel() for panel in info.panels])
    values = values[np.isfinite(values) & (values > 0)]
    reach = float(np.percentile(np.abs(np.log10(values)), 99)) if len(values) else 0.0
    return next((limit for limit in LIMITS if limit >= reach - 0.3), LIMITS[-1])


def _swatches(info: HeatmapInfo, theme: Theme) -> list[dict[str, Any]]:
    """Return the colours of cells that no scale holds, as far as there are any."""
    said = []
    values = np.concatenate([panel.values.ravel() for panel in info.panels])
    for mask, color, name in odd_cells(values, theme):
        if mask.any() and (info.metric.log or name != "exactly 0"):
            said.append(f'<span style="color: {color}">■</span> {name}')
    if not said:
        return []
    corner = {"x": 1, "xref": "paper", "xanchor": "right", "y": 0, "yref": "paper"}
    text = "   ".join(said)
    return [annotation(theme, text, **corner, yanchor="top", yshift=-30, font={"size": 13})]


def _color_axis(info: HeatmapInfo, theme: Theme) -> dict[str, Any]:
    """Return the one colour scale of all panels."""
    bar: dict[str, Any] = {"outlinewidth": 0, "thickness": 14, "tickfont": {"size": 12}}
    if theme.narrow:  # over the first run's name
        over = 1 + 24 / (PHONE * len(shown_panels(info.panels)[0]))
        bar |= {"orientation": "h", "y": over, "yanchor": "bottom", "ypad": 0, "x": 0.5}
        bar["ticklabelposition"] = "outside top"
    if info.metric.relative:
        limit = _limit(info)
        top, even, bottom = f"10<sup>{limit}</sup>", "1", f"10<sup>−{limit}</sup>"
        if not theme.narrow:
            top, even, bottom = f"{top} more", f"{even} as much", f"{bottom} less"
        ticks = {-limit: bottom, 0: even, limit: top}
        if not theme.narrow or limit <= 2 * NORMAL:  # else they lie over that of 1
            ticks |= {-NORMAL: f"10<sup>−{NORMAL}</sup>", NORMAL: f"10<sup>{NORMAL}</sup>"}
        bar |= {"tickvals": list(ticks), "ticktext": list(ticks.values())}
        scale = theme.over_decades(limit)
        return {"cmin": -limit, "cmax": limit, "colorscale": scale, "colorbar": bar}
    colors = theme.sequence
    scale = [[i / (len(colors) - 1), color] for i, color in enumerate(colors)]
    bar["title"] = {"text": info.metric.axis_title, "side": "right"}
    if info.metric.log:
        bar |= {"tickprefix": "10<sup>", "ticksuffix": "</sup>"}
        return {"colorscale": scale, "colorbar": bar}
    return {"cmin": 0, "cmax": 1, "colorscale": scale, "colorbar": bar}

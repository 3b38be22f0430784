"""Where the gradient was lost or won: decades by kind of module, one bar a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from gradscope.diagnosis.ledger import decades_by_group, median_row
from gradscope.diagnosis.ledger import ledger as gains_of
from gradscope.plots import lettering
from gradscope.plots.drawn import ONE_LAYER, DrawnMetric, as_runs, drawn_metric, path_of
from gradscope.plots.metrics import METRICS
from gradscope.plots.panels import MOST_BESIDE, in_panels, rows_of, shown_panels, title_limit
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    axis,
    base_layout,
    nothing_to_show,
    titled,
)
from gradscope.runs.run import Run
from gradscope.wording import layer_label

TITLE = "In which modules was the gradient lost or won?"
LABELS = 124
"""Pixels for the names of the groups."""

GROUPS = {
    "weight": "weights",
    "activation": "activations",
    "normalisation": "normalisation",
    "shortcut": "residual blocks",
    "other": "the rest",
}


@dataclass(frozen=True)
class LedgerPanel:
    """The `place`-th given run: kind of module -> decades; `total` is their sum.

    `step` is the recorded step that was read, None for the run's middle one; `compared` is false of
    a net of one layer; `reached` is the first layer that the gradient reaches, None if that is the
    input's.
    """

    place: int
    run: str
    step: int | None
    decades: dict[str, float]
    total: float
    compared: bool
    reached: str | None = None


def ledger_info(runs: Run | Sequence[Run], *, step: int | None = None) -> list[LedgerPanel]:
    """Return the decades lost or won by kind of module, at `step` or at each run's middle one.

    Of a run that ends in values that are not finite, at the last step before. Runs without a
    recorded signal are left out.
    """
    panels = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, METRICS["signal_norm"])
        if data.empty:
            continue
        read = _before_the_end(run) if step is None else int(data.steps[data.row(step)])
        gains = gains_of(run, read)
        if len(gains):
            decades = decades_by_group(gains)
            there = set(gains["group"][gains["on_path"]])
            ordered = {GROUPS[name]: decades.get(name, 0.0) for name in GROUPS if name in there}
            total = sum(ordered.values())
            compared = len(data.layers) > 1
            path = path_of(run)
            row = median_row(path) if read is None and path is not None else data.row(read)
            reached = _reached(data, row)
            panels.append(LedgerPanel(place, run.name, read, ordered, total, compared, reached))
    return panels


def _before_the_end(run: Run) -> int | None:
    """Return the last step before a run's end in values that are not finite, None without one."""
    steps = run.steps[~run.steps["skipped"].to_numpy(dtype=bool)]
    good = np.flatnonzero(np.isfinite(steps["grad_norm"].to_numpy(dtype=np.float64)))
    if len(good) == 0 or good[-1] == len(steps) - 1:
        return None
    return int(steps["step"].iloc[good[-1]])


def _reached(data: DrawnMetric, row: int) -> str | None:
    """Return the first layer that gets a gradient, None where that is the first one."""
    signal = data.read(row, row + 1)[0]
    some = np.flatnonzero(signal > 0)
    if len(some) == 0 or not (signal[: some[0]] == 0).any():
        return None
    return layer_label(int(data.layers[some[0]]), data.names[some[0]], data.kinds[some[0]])


def ledger_caption(panels: list[LedgerPanel]) -> str:
    """Return how to read the figure, in a few sentences."""
    text = (
        "One decade is a factor of ten. Bars to the left are gradient lost on the way from the"
        " last to the first hidden layer, bars to the right gradient won; together they make the"
        " total."
    )
    text += shown_panels(panels)[1]
    if panels and panels[0].step is None:
        text += " Shown: the step with the run's median total, as the verdict tells it."
    for panel in panels:
        if panel.reached is not None:
            text += (
                f" {panel.run}: before layer {panel.reached} exactly 0 arrives, which is further"
                " down than any bar."
            )
    return text


def ledger_figure(panels: list[LedgerPanel], theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `panels` as a dict for plotly, one panel a run on one scale."""
    if panels and not any(panel.compared for panel in panels):
        return nothing_to_show(theme, ONE_LAYER)
    if not panels:
        return nothing_to_show(theme, "No gradient signal has been recorded yet.")
    names = list(GROUPS.values())[::-1]
    panels, _ = shown_panels(panels)
    rows = rows_of(len(panels), theme)
    height = 270 if rows == 1 else 200 * rows + 60
    layout = base_layout(theme, height if not theme.narrow else 230 * len(panels))
    layout["margin"] |= {"t": 44, "l": LABELS}
    values = [value for panel in panels for value in panel.decades.values()]
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    reach = max(map(abs, finite)) * (1.6 if theme.narrow else 1.35) + 0.2
    ends = [
        -reach if min(finite) < -0.05 else -reach / 4,
        reach if max(finite) > 0.05 else reach / 4,
    ]
    data: list[dict[str, Any]] = []
    for axes, panel in in_panels(panels, theme, beside=0.03, below=0.2):
        shown = [name for name in names if name in panel.decades]
        bars = [panel.decades[name] for name in shown]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": lettering.safe(panel.run),
                "y": shown,
                "x": bars,
                **axes.of_trace,
                "marker": {"color": [_color(value, theme) for value in bars]},
                "text": [
                    f"{value:+.1f}".replace("-0.0", "0").replace("+0.0", "0") for value in bars
                ],
                "textposition": "outside",
                "cliponaxis": False,
                "hovertemplate": "%{y}: %{x:+.2f} decades<extra></extra>",
            }
        )
        x_title = "decades" if axes.lowest else ""
        zero_line = {"zeroline": True, "zerolinecolor": theme.muted}
        axes.add_to(
            layout,
            axis(theme, x_title, range=ends, fixedrange=True, **zero_line),
            axis(
                theme,
                "",
                categoryorder="array",
                categoryarray=names,
                showgrid=False,
                fixedrange=True,
                showticklabels=axes.leftmost,
                range=[-0.6, len(names) - 0.4],
            ),
        )
        when = "its middle step" if panel.step is None else f"step {panel.step:,}"
        room = len(panels) < MOST_BESIDE and not theme.narrow
        then = ", then exactly 0" * (panel.reached is not None)
        total = f": {panel.total:+.1f} decades{then}{f', {when}' * room}"
        layout["annotations"].append(
            axes.run_title(
                theme, panel.run, panel.place, total, limit=title_limit(len(panels)) - 6, yshift=6
            )
        )
    return {"data": data, "layout": layout}


def ledger(
    runs: Run | Sequence[Run], *, step: int | None = None, theme: Theme = LIGHT
) -> go.Figure:
    """Draw the decades of gradient lost or won by kind of module, one panel a run.

    Parameters
    ----------
    runs : Run or sequence of Run
    step : int, optional
        The last recorded step up to this one. By default the step whose total is the run's
        median.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure
    """
    panels = ledger_info(runs, step=step)
    return titled(ledger_figure(panels, theme), TITLE, ledger_caption(panels), theme)


def _color(decades: float, theme: Theme) -> str:
    """Return blue for what was lost and red for what was won, as in the heatmap."""
    return theme.diverging[1][1] if decades < 0 else theme.diverging[-2][1]

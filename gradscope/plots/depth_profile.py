"""How much gradient reaches each layer: one line a run, input on the left, output on the right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from gradscope.arithmetic import Array, over_reference
from gradscope.plots import lettering
from gradscope.plots.drawn import (
    ONE_LAYER,
    DrawnMetric,
    arrives,
    as_runs,
    at_the_first_layer,
    drawn_metric,
    path_of,
)
from gradscope.plots.metrics import metric_named
from gradscope.plots.profile_picture import (
    ProfileInfo,
    ProfileLine,
    groups_of,
    profile_figure,
    roles_of,
)
from gradscope.plots.theme import (
    LIGHT,
    FigureDict,
    Theme,
    nothing_to_show,
    titled,
)
from gradscope.runs.run import Run

SAID = 4
"""Of so many runs a caption says what is odd."""
WINDOW = 10
"""The band spans this many recorded steps before and after the one drawn."""
BANDED = 6
"""Of so many runs each is told apart by a colour of its own, and has its band."""
SEEN = 1.2
"""A shade whose ends are this factor apart can be seen."""
CUT_WINDOW = 100
"""A cut is looked for in so many recorded steps before it is looked for in all of them."""


def depth_profile_info(
    runs: Run | Sequence[Run], *, metric: str = "signal_norm", step: int | None = None
) -> ProfileInfo:
    """Return the readings of each layer of each run at `step`; None is each run's latest.

    Runs without a recorded step are left out.
    """
    chosen = metric_named(metric)
    found = [(place, run, drawn_metric(run, chosen)) for place, run in enumerate(as_runs(runs))]
    found = [(place, run, data) for place, run, data in found if not data.empty]
    aligned = len({len(data.layers) for _, _, data in found}) > 1
    lines = []
    for place, run, data in found:
        row = data.row(step)
        first = max(row - WINDOW, 0)
        around = data.values(first, row + WINDOW + 1)
        low, high = _percentiles(around)
        count = len(data.layers)
        recorded = int(data.steps[row])
        x = np.arange(1, count + 1, dtype=float)
        if aligned:
            x = (x - 1) / max(count - 1, 1) * 100
        lines.append(
            ProfileLine(
                place=place,
                run=run.name,
                step=recorded,
                layers=data.layers.tolist(),
                names=data.names,
                kinds=data.kinds,
                x=x,
                values=around[row - first].astype(float),
                low=low,
                high=high,
                cut=_cut(run, data, recorded) if metric == "signal_norm" else None,
                first=at_the_first_layer(data, row),
                arrives=arrives(data, row),
                early="" if (path := path_of(run)) is None else path.early_name,
                cut_edges="branches" if run.meta.get("cut") == "branches" else "shortcuts",
            )
        )
    return ProfileInfo(chosen, lines, aligned)


def _percentiles(values: Array) -> tuple[Array, Array]:
    """Return the 10th and 90th percentile of each column's finite values, NaN without any."""
    finite = np.where(np.isfinite(values), values, np.nan)
    low = np.full(values.shape[1], np.nan)
    high = low.copy()
    some = ~np.isnan(finite).all(axis=0)
    if some.any():
        low[some], high[some] = np.nanpercentile(finite[:, some], [10, 90], axis=0)
    return low, high


def _cut(run: Run, data: DrawnMetric, step: int) -> Array | None:
    """Return the newest cut signal up to `step`, over the late end of the uncut signal then."""
    if run.shortcuts.empty or not run.meta.get("cut", True):
        return None
    before = run.steps["step"].to_numpy()
    near = int(before[max(int(np.searchsorted(before, step)) - CUT_WINDOW, 0)])
    for first in (near, None):
        steps, cut = run.matrix("cut_signal_norm", first, step)
        taken = np.flatnonzero(~np.isnan(cut).all(axis=1))
        if len(taken):
            break
    else:
        return None
    last = int(taken[-1])
    row = data.row(int(steps[last]))
    return over_reference(cut[last, data.layers], data.late(row, row + 1))


CUT_NOTE = (
    "The thin line is the same net with no gradient let through its {}. It is not the plain net:"
    " its forward pass is unchanged."
)


def depth_profile_caption(info: ProfileInfo) -> str:
    """Return how to read the figure, in a sentence or two."""
    if info.metric.relative:
        text = (
            "A line that falls to the left is a net whose early layers hardly learn. Each run is"
            " divided by what its own last hidden layer gets, or where it is residual what its last"
            " block gives back: 1, dotted. Grey is normal. " + _of_this_step(info)
        )
    else:
        text = info.metric.sentence
    spread = not info.metric.log or any((SEEN * line.low < line.high).any() for line in info.lines)
    if spread and len(info.lines) <= BANDED:
        text += f" In the pale band lie 80% of the {WINDOW} recorded steps before and after."
    if any(roles_of(info, line) for line in info.lines):
        text += (
            " Each role that repeats from block to block has a line; the pale one joins all layers."
        )
    if groups_of(info):
        text += " Bars on the axis bracket the layers of a block each."
    if not info.aligned and len({tuple(line.layers) for line in info.lines}) > 1:
        text += " The axis counts weight layers; verdicts number the others, too."
    cut_edges = dict.fromkeys(line.cut_edges for line in info.lines if line.cut is not None)
    if cut_edges:
        text += " " + CUT_NOTE.format(" or its ".join(cut_edges))
    for line in info.lines if len(info.lines) <= SAID else ():
        if info.metric.relative and line.arrives != line.first and np.isfinite(line.arrives):
            text += (
                f" {line.run}: {lettering.times(line.arrives)} arrives at {line.early}, which the"
                " verdict is about."
            )
        if found := lettering.specials(line.values, zeros=info.metric.log):
            text += f" {line.run} at step {line.step}: {found}."
    return text


def _of_this_step(info: ProfileInfo) -> str:
    """Return of which step the numbers are, as other places tell medians."""
    steps = {line.step for line in info.lines}
    which = f"step {steps.pop()}" if len(steps) == 1 else "the step"
    return f"Numbers are of {which}, in a verdict medians over all steps."


def depth_profile_figure(info: ProfileInfo, theme: Theme = LIGHT) -> FigureDict:
    """Return the figure of `info` as a dict for plotly."""
    if not info.lines:
        return nothing_to_show(theme, "No step has been recorded yet.")
    if info.metric.relative and max(len(line.layers) for line in info.lines) == 1:
        return nothing_to_show(theme, ONE_LAYER)
    return profile_figure(info, theme)


def depth_profile(
    runs: Run | Sequence[Run],
    *,
    metric: str = "signal_norm",
    step: int | None = None,
    theme: Theme = LIGHT,
) -> go.Figure:
    """Draw a metric of every layer at one step, one line a run.

    Parameters
    ----------
    runs : Run or sequence of Run
    metric : str
        A name in `gradscope.plots.METRICS`; gradients are shown over the last hidden layer's.
    step : int, optional
        The last recorded step up to this one; the latest without it.
    theme : Theme

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    GradscopeError
        If no such metric exists.
    """
    info = depth_profile_info(runs, metric=metric, step=step)
    return titled(
        depth_profile_figure(info, theme), info.metric.question, depth_profile_caption(info), theme
    )

"""The layers of runs as a table, the worst first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gradscope.plots.drawn import as_runs, drawn_metric
from gradscope.plots.metrics import METRICS
from gradscope.runs.run import Run

SHOWN = ("signal_norm", "grad_norm", "update_ratio", "weight_norm", "activation_std")


def layer_table(runs: Run | Sequence[Run], *, step: int | None = None) -> pd.DataFrame:
    """Return the readings of every weight layer of the runs at one step, the worst first.

    Parameters
    ----------
    runs : Run or sequence of Run
    step : int, optional
        The last recorded step up to this one; each run's latest without it.

    Returns
    -------
    DataFrame, one row a run and layer
        `run`, `step`, `number` (index in `Run.layers`), `name`, `kind`, `parameters`
        (count), `signal_norm` and `grad_norm` (both over the last hidden layer's), `update_ratio`,
        `weight_norm`, `activation_std`. Worst are the layers whose `signal_norm` is no number,
        infinite or 0, then those that lie farthest from 1.
    """
    frames = []
    for run in as_runs(runs):
        signal = drawn_metric(run, METRICS["signal_norm"])
        if signal.empty:
            continue
        row = signal.row(step)
        layers = run.layers.iloc[signal.layers]
        columns = {
            "run": run.name,
            "step": signal.steps[row],
            "number": signal.layers,
            "name": layers["name"].astype(str).to_numpy(),
            "kind": layers["kind"].astype(str).to_numpy(),
            "parameters": layers["parameters"].to_numpy(),
        }
        for name in SHOWN:
            data = drawn_metric(run, METRICS[name])
            values = np.full(len(run.layers), np.nan)
            if not data.empty:
                values[data.layers] = data.values(row, row + 1)[0]
            columns[name] = values[signal.layers]
        frames.append(pd.DataFrame(columns))
    if not frames:
        return pd.DataFrame(columns=["run", "step", "number", "name", "kind", "parameters", *SHOWN])
    table = pd.concat(frames, ignore_index=True)
    with np.errstate(divide="ignore"):
        decades = np.abs(np.log10(table["signal_norm"].to_numpy(dtype=float)))
    worst = np.argsort(-np.where(np.isnan(decades), np.inf, decades), kind="stable")
    return table.iloc[worst].reset_index(drop=True)

"""Which rows and columns of a run a figure draws, as arrays.

The figures read one column of a run at a time (`Run.matrix`): a run of 300 layers and 100,000
steps has 30 million readings of each, and a pivot of them all would take minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.errors import GradscopeError
from gradscope.plots.metrics import Metric
from gradscope.runs.run import Run

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class DrawnMetric:
    """One metric of a run, of the layers in which it is worth looking at.

    Parameters
    ----------
    run : Run
    columns : tuple of str
        The column that is drawn, or two of which the quotient is.
    steps : array, shape (n_steps,), int64
    layers : array, shape (n_layers,)
        Index in `Run.layers` of each layer, from input to output.
    names : list of str
        The layers' names.
    relative : bool
        Whether the metric is looked at relative to the output layer's.
    """

    run: Run
    columns: tuple[str, ...]
    steps: NDArray[np.int64]
    layers: Ints
    names: list[str]
    relative: bool

    @property
    def empty(self) -> bool:
        """Whether there is no step or no layer."""
        return not (len(self.steps) and len(self.layers))

    def row(self, step: int | None) -> int:
        """Return the row of the last recorded step up to `step`; None is the latest."""
        if step is None:
            return len(self.steps) - 1
        return max(int(np.searchsorted(self.steps, step, side="right")) - 1, 0)

    def values(self, start: int = 0, stop: int | None = None) -> Floats:
        """Return the rows `start` to `stop` as they are drawn, shape (rows, n_layers)."""
        return self.drawn(self.raw(start, stop))

    def raw(self, start: int = 0, stop: int | None = None) -> list[Floats]:
        """Return the rows `start` to `stop` of each of `columns`, of all layers of the run."""
        steps = self.steps[start:stop]
        return [self.run.matrix(c, int(steps[0]), int(steps[-1]))[1] for c in self.columns]

    def drawn(self, raw: list[Floats]) -> Floats:
        """Return rows of `raw` as they are drawn, shape (rows, n_layers)."""
        part = raw[0][:, self.layers]
        for divisor in raw[1:]:
            part = _quotient(part, divisor[:, self.layers])
        return relative(part) if self.relative else part

    def layer(self, layer: int) -> Floats:
        """Return the run's layer `layer` at every step as it is drawn, shape (n_steps,)."""
        return self.series([layer])[0]

    def series(self, layers: Sequence[int]) -> list[Floats]:
        """Return the run's layers `layers` at every step as they are drawn, (n_steps,) each."""
        wanted = [*layers, int(self.layers[-1])] if self.relative else list(layers)
        first, last = int(self.steps[0]), int(self.steps[-1])
        part, *divisors = (self.run.matrix(c, first, last, wanted)[1] for c in self.columns)
        for divisor in divisors:
            part = _quotient(part, divisor)
        if not self.relative:
            return list(part.T)
        if np.isnan(part[:, -1]).any():  # then another layer is the last one that was read
            output = reference(self.raw()[0][:, self.layers])
        else:
            output = reference(part[:, -1:])
        return list(_quotient(part[:, :-1], output).T)


def as_runs(runs: Run | Sequence[Run]) -> list[Run]:
    """Return `runs` as a list.

    Raises
    ------
    GradscopeError
        If something else than a run is among them.
    """
    listed = [runs] if isinstance(runs, Run) else list(runs)
    for run in listed:
        if not isinstance(run, Run):
            kind = type(run).__name__
            raise GradscopeError(f"expected a Run, got {kind}; read one with gradscope.load(path)")
    return listed


def readings(run: Run, metric: Metric) -> DrawnMetric:
    """Return `metric` of a run; nothing is read of it yet but which layers have it."""
    quotient = metric.name == "update_ratio"
    columns = ("update_norm", "weight_norm") if quotient else (metric.name,)
    steps = _read_steps(run)
    layers = _layers(run, metric, columns[0])
    names = [str(name) for name in run.layers["name"].to_numpy()[layers]]
    return DrawnMetric(run, columns, steps, layers, names, metric.relative)


def _read_steps(run: Run) -> NDArray[np.int64]:
    """Return the recorded steps, without a last one of which only logged scalars are known.

    A run of every tenth step ends with such a one where a loss was logged after the last tenth:
    it is no step whose gradients are NaN.
    """
    steps, norms = (run.steps[name].to_numpy() for name in ("step", "grad_norm"))
    every = run.meta.get("every")
    between = steps % (every if isinstance(every, int) and every > 0 else 1) != 0
    only_logged = len(steps) and between[-1] and np.isnan(norms[between]).all()
    return steps[:-1] if only_logged else steps


def _layers(run: Run, metric: Metric, column: str) -> Ints:
    """Return the layers to draw: one a weight matrix, or the activations, as far as recorded."""
    table = run.layers
    if metric.layers == "activations":
        chosen = table["parameters"].to_numpy() == 0
    else:
        # Normalisations and activations share the depth of the weight layer before them.
        chosen = np.diff(table["depth"].to_numpy(), prepend=0) > 0
    if not chosen.any():
        chosen = np.ones(len(table), dtype=bool)
    layers = np.flatnonzero(chosen)
    unread = ~run.was_read(column, layers)
    if unread.any():
        # NaN all along is a diverged layer, unless it is frozen, or was never called.
        if metric.name in ("grad_norm", "update_ratio"):
            unread &= ~run.was_read("weight_norm", layers)
        else:
            # In a forward pass that diverged, all later layers are NaN, too.
            calls = run.was_read("activation_norm")
            last_call = np.flatnonzero(calls)[-1] if calls.any() else -1
            unread &= ~calls[layers] & (layers < last_call)
    return layers if unread.all() else layers[~unread]


def reference(values: Floats) -> Floats:
    """Return each row's last reading, the output layer's.

    Parameters
    ----------
    values : array, shape (n_steps, n_layers)

    Returns
    -------
    array, shape (n_steps, 1)
        NaN where it is 0 or not finite: nothing can be compared with it.
    """
    last = values[:, -1].copy()
    unread = np.flatnonzero(np.isnan(last))
    if len(unread):
        place = values.shape[1] - 1 - np.argmax(~np.isnan(values[unread, ::-1]), axis=1)
        last[unread] = values[unread, place]
    return np.where(np.isfinite(last) & (last > 0), last, np.nan)[:, None]


def relative(values: Floats) -> Floats:
    """Return each row of `values` over the output layer's reading, shape (n_steps, n_layers)."""
    return _quotient(values, reference(values))


def _quotient(above: Floats, below: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return np.asarray(above / below)

"""Which rows and columns of a run a figure draws, as arrays.

The figures read one column of a run at a time (`Run.matrix`): a run of 300 layers and 100,000
steps has 30 million readings of each, and a pivot of them all would take minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import Array, last_reading, over_reference
from gradscope.diagnosis.signal_path import SignalPath, signal_path
from gradscope.errors import GradscopeError
from gradscope.plots.metrics import Metric
from gradscope.runs.run import Run

ONE_LAYER = "One layer: there is no other to compare its gradient with."
"""In place of a figure of gradients beside the last hidden layer's."""

Ints = NDArray[np.integer[Any]]


def path_of(run: Run) -> SignalPath | None:
    """Return the signal path of `run`, None if its two ends are one or were not read."""
    path = signal_path(run)
    return path if path is not None and path.early_name != path.late_name else None


@dataclass(frozen=True)
class DrawnMetric:
    """One metric of a run, of the layers in which it is worth looking at.

    Parameters
    ----------
    run : Run
    column : str
        What `Run.matrix` calls the metric.
    steps : array, shape (n_steps,), int64
    layers : array, shape (n_layers,)
        Index in `Run.layers` of each layer, from input to output.
    names, kinds : list of str
        The layers' names, and classes.
    relative : bool
        Whether it is drawn over that of the last hidden layer; where the verdicts take a block's
        end for it, over the signal there.
    """

    run: Run
    column: str
    steps: NDArray[np.int64]
    layers: Ints
    names: list[str]
    kinds: list[str]
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

    def values(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the rows `start` to `stop` as they are drawn, shape (rows, n_layers)."""
        values = self.read(start, stop)
        return over_reference(values, self.late(start, stop)[:, None]) if self.relative else values

    def late(self, start: int = 0, stop: int | None = None) -> Array:
        """Return what the rows `start` to `stop` are drawn over, shape (rows,)."""
        path = path_of(self.run)
        if path is None:
            return last_reading(self.read(start, stop))[:, 0]
        if self.column == "signal_norm":
            late = path.late[: len(self.steps)][start:stop]
        else:
            steps = self.steps[start:stop]
            layer = int(path.layers[-2:][0])
            late = self.run.matrix(self.column, int(steps[0]), int(steps[-1]), [layer])[1][:, 0]
        useless = ~np.isfinite(late) | (late == 0)
        if useless.any():  # then another layer is the last one that was read
            late = late.astype(float)
            late[useless] = last_reading(self.read(start, stop))[useless, 0]
        return late

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the rows `start` to `stop` as they were read, shape (rows, n_layers)."""
        steps = self.steps[start:stop]
        values: Array = self.run.matrix(self.column, int(steps[0]), int(steps[-1]))[1]
        return values[:, self.layers]

    def layer(self, layer: int) -> Array:
        """Return the run's layer `layer` at every step as it is drawn, shape (n_steps,)."""
        return self.series([layer])[0]

    def series(self, layers: Sequence[int]) -> list[Array]:
        """Return the run's layers `layers` at every step as they are drawn, (n_steps,) each."""
        first, last = int(self.steps[0]), int(self.steps[-1])
        values = self.run.matrix(self.column, first, last, list(layers))[1]
        if not self.relative:
            return list(values.T)
        return list(over_reference(values, self.late()[:, None]).T)


def arrives(data: DrawnMetric, row: int) -> float:
    """Return what of the gradient is left at the first layer, as the verdicts tell it.

    Of a metric other than the signal, or where they do not tell it, it is the first layer's value.
    """
    path = path_of(data.run) if data.column == "signal_norm" else None
    if path is not None and not np.isnan(path.decades[row]):
        return float(10 ** path.decades[row])
    return float(data.values(row, row + 1)[0][0])


def at_the_first_layer(data: DrawnMetric, row: int) -> float:
    """Return the reading of the first layer, in the verdicts' number where that is about the same.

    Of a residual net they tell what its first block gets; within a factor of 2 a figure shows no
    difference, and two numbers for one thing only puzzle.
    """
    value, told = float(data.values(row, row + 1)[0][0]), arrives(data, row)
    if not (value > 0 and told > 0 and np.isfinite(value)):
        return value
    apart, decades = abs(np.log10(told / value)), abs(np.log10(value))
    return told if apart <= max(np.log10(2), 0.02 * decades) else value


def last_readable_row(data: DrawnMetric) -> int:
    """Return the last row in which any layer has a number other than 0; the last one if none."""
    for first in (max(len(data.steps) - 1000, 0), 0):
        values = data.read(first)
        known = np.flatnonzero((np.isfinite(values) & (values != 0)).any(axis=1))
        if len(known):
            return first + int(known[-1])
    return len(data.steps) - 1


def as_runs(runs: Run | Sequence[Run]) -> list[Run]:
    """Return `runs` as a list.

    Raises
    ------
    GradscopeError
        If something else than a run is among them.
    """
    listed = list(runs) if isinstance(runs, Iterable) else [runs]
    for run in listed:
        if not isinstance(run, Run):
            kind = type(run).__name__
            hint = "give scope.run" if kind == "Scope" else "read one with gradscope.load(path)"
            raise GradscopeError(f"expected a Run, got {kind}; {hint}")
    return listed


def drawn_metric(run: Run, metric: Metric) -> DrawnMetric:
    """Return `metric` of a run; nothing is read of it yet but which layers have it."""
    layers = _layers(run, metric)
    table = run.layers
    names, kinds = (list(map(str, table[key].to_numpy()[layers])) for key in ("name", "kind"))
    return DrawnMetric(run, metric.name, _read_steps(run), layers, names, kinds, metric.relative)


def _read_steps(run: Run) -> NDArray[np.int64]:
    """Return the recorded steps, without a last one of which only logged scalars are known.

    A run of every tenth step ends with such a one where a loss was logged after the last tenth:
    it is no step whose gradients are NaN.
    """
    steps, norms = (run.steps[name].to_numpy() for name in ("step", "grad_norm"))
    every = run.meta.get("every")
    between = steps % (every if isinstance(every, int) and 0 < every < 2**31 else 1) != 0
    only_logged = len(steps) and between[-1] and np.isnan(norms[between]).all()
    return steps[:-1] if only_logged else steps


def _layers(run: Run, metric: Metric) -> Ints:
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
    read = "update_norm" if metric.name == "update_ratio" else metric.name
    unread = ~run.was_read(read, layers)
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

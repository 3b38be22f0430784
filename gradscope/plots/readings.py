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
from gradscope.run import Run

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Readings:
    """One metric of a run, of the layers in which it is worth looking at.

    Parameters
    ----------
    steps : array, shape (n_steps,), int64
    layers : array, shape (n_layers,)
        Index in `Run.layers` of each layer, from input to output.
    names : list of str
        The layers' names.
    matrix : array, shape (n_steps, layers of the run)
        All that was read, NaN where nothing was; not copied.
    divisor : array like `matrix`, or None
        What it is divided by where it is looked at: a quotient of whole matrices takes memory.
    relative : bool
        Whether the metric is looked at relative to the output layer's.
    """

    steps: NDArray[np.int64]
    layers: Ints
    names: list[str]
    matrix: Floats
    divisor: Floats | None
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
        part = self.matrix[start:stop][:, self.layers]
        if self.divisor is not None:
            part = _quotient(part, self.divisor[start:stop][:, self.layers])
        return relative(part) if self.relative else part

    def layer(self, layer: int) -> Floats:
        """Return the run's layer `layer` at every step as it is drawn, shape (n_steps,)."""
        values = self.matrix[:, layer]
        if self.divisor is not None:
            values = _quotient(values, self.divisor[:, layer])
        return _quotient(values, self.reference()) if self.relative else values

    def reference(self) -> Floats:
        """Return the output layer's reading at every step, shape (n_steps,)."""
        last = self.matrix[:, self.layers[-1]]
        if np.isnan(last).any():
            return reference(self.matrix[:, self.layers])[:, 0]
        return np.where(np.isfinite(last) & (last > 0), last, np.nan)


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


def readings(run: Run, metric: Metric) -> Readings:
    """Return `metric` of a run."""
    divisor = None
    if metric.name == "update_ratio":
        steps, matrix = run.matrix("update_norm")
        divisor = run.matrix("weight_norm")[1]
    else:
        steps, matrix = run.matrix(metric.name)
    layers = _layers(run, metric, matrix)
    names = [str(name) for name in run.layers["name"].to_numpy()[layers]]
    return Readings(steps, layers, names, matrix, divisor, metric.relative)


def _layers(run: Run, metric: Metric, matrix: Floats) -> Ints:
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
    unread = _never_read(matrix, layers)
    if unread.any():
        # NaN all along is a diverged layer, unless it is frozen, or was never called.
        if metric.name in ("grad_norm", "update_ratio"):
            unread &= _never_read(run.matrix("weight_norm")[1], layers)
        else:
            # In a forward pass that diverged, all later layers are NaN, too.
            calls = ~_never_read(run.matrix("activation_norm")[1], np.arange(len(table)))
            last_call = np.flatnonzero(calls)[-1] if calls.any() else -1
            unread &= ~calls[layers] & (layers < last_call)
    return layers if unread.all() else layers[~unread]


def _never_read(matrix: Floats, layers: Ints) -> NDArray[np.bool_]:
    """Return which of `layers` are NaN at every step, shape (n_layers,)."""
    unread = np.ones(len(layers), dtype=bool)
    for rows in (matrix[-1:], matrix):  # mostly the last row tells
        suspects = np.flatnonzero(unread)
        if len(suspects):
            unread[suspects] = np.isnan(rows[:, layers[suspects]]).all(axis=0)
    return unread


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

"""The readings that a diagnosis looks at: a run in windows of steps, each column read once.

One batch may mislead, so nothing is judged by a single step but the state at initialisation: a
window is `WINDOW` or more consecutive recorded steps and stands for their median. A long run is
looked at in `MOST_WINDOWS` windows spread evenly over it, its first and last steps included. Steps
that the loss scaler skipped are left out: infinite gradients are how it finds its scale.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.curves import Curve, logged_curves
from gradscope.diagnosis.signal_path import (
    Floats,
    SignalPath,
    edges_of,
    is_weight_layer,
    signal_path,
)
from gradscope.kinds import RECURRENT, canonical
from gradscope.runs.run import Run
from gradscope.wording import layer_label, layers_labelled

WINDOW = 20
"""Recorded steps that a median takes at least, where the run has as many."""

MOST_WINDOWS = 100

ROWS_AT_ONCE = 2**12
"""Recorded steps of which all layers are looked at together: a copy of all would take memory."""

Mask = NDArray[np.bool_]


class Evidence:
    """One run under diagnosis.

    Attributes
    ----------
    run : Run
    layers : DataFrame, as `Run.layers`
    steps : DataFrame, as `Run.steps`
    rows : int64 (R,)
        The recorded steps that were not skipped, as row numbers of `steps`. A step of which only
        logged scalars are known is none of them.
    windows : list of int64 arrays
        Row numbers of each window.
    path : SignalPath or None
        The signal along the depth, at all recorded steps.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.layers: pd.DataFrame = run.layers
        self.steps: pd.DataFrame = run.steps
        read = ~np.isnan(self.steps["grad_norm"].to_numpy(dtype=np.float64))
        for column in ("weight_norm", "signal_norm"):
            unknown = np.flatnonzero(~read)
            if len(unknown):
                read[unknown] = ~np.isnan(run.matrix(column)[1][unknown]).all(axis=1)
        self.rows = np.flatnonzero(read & ~self.steps["skipped"].to_numpy(dtype=bool))
        self.windows = _windows(self.rows)
        self._columns: dict[str, tuple[Floats, Floats]] = {}

    @cached_property
    def path(self) -> SignalPath | None:
        """The signal along the depth; None where no signal was recorded."""
        return signal_path(self.run)

    @cached_property
    def names(self) -> list[str]:
        """The layers' names."""
        return [str(name) for name in self.layers["name"]]

    @cached_property
    def labels(self) -> list[str]:
        """What each layer is called in sentences: `19 · blocks.4.fc1 (Linear)`."""
        kinds = [str(kind) for kind in self.layers["kind"]]
        return [layer_label(i, *of) for i, of in enumerate(zip(self.names, kinds, strict=True))]

    def named(self, layers: Mask | NDArray[np.int64] | list[int]) -> str:
        """Return layers, a mask or indices, in words: `layers 0 · fc0 (Linear), 2 · ...`."""
        return layers_labelled([self.labels[i] for i in np.arange(len(self.labels))[layers]])

    @cached_property
    def weights(self) -> Mask:
        """Which layers have a weight matrix or kernel."""
        return is_weight_layer(self.layers)

    @cached_property
    def owners(self) -> Mask:
        """Which layers own parameters."""
        return np.asarray(self.layers["parameters"].to_numpy() > 0)

    @cached_property
    def sources(self) -> dict[int, list[int]]:
        """The layers that each layer reads; empty where no flow was recorded."""
        found: dict[int, list[int]] = {}
        for source, target in edges_of(self.run).tolist():
            if source < target:
                found.setdefault(target, []).append(source)
        return found

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """The layers that read each layer, -1 for the output; empty where no flow was recorded."""
        found: dict[int, list[int]] = {}
        for source, target in edges_of(self.run).tolist():
            if source < target or target < 0:
                found.setdefault(source, []).append(target)
        return found

    @cached_property
    def outputs(self) -> Mask:
        """Which layers no other one reads; where no flow was recorded, from the last weights on."""
        count = len(self.layers)
        edges = edges_of(self.run)
        if len(edges):
            read = edges[(edges[:, 1] >= 0) & (edges[:, 0] != edges[:, 1]), 0]
            return np.asarray(~np.isin(np.arange(count), read))
        last = self.path.layers[-1] if self.path is not None else count
        return np.asarray(np.arange(count) >= last)

    def looks(self, column: str) -> Floats:
        """Return a metric that is read at some steps only, at those, (looks, layers)."""
        return self.looks_and_rows(column)[0]

    def looks_and_rows(self, column: str) -> tuple[Floats, NDArray[np.int64]]:
        """Return the same, and the rows of `steps` of these looks."""
        # an odd stride: a look is taken at every eighth recorded step, skipped ones among them
        rows = self.rows[:: max(len(self.rows) // ROWS_AT_ONCE, 1) | 1]
        read = self.at(column, rows)
        known = ~np.isnan(read).all(axis=1)
        return np.asarray(read[known]), np.asarray(rows[known])

    def audit(self, word: str) -> Mask:
        """Return of which layers all parameters are `word`: frozen, no optimizer, no gradient."""
        told = [{*str(words).split(", ")} for words in self.layers["training"]]
        return np.array([word in words for words in told], dtype=bool)

    def partly(self, word: str) -> dict[int, list[str]]:
        """Return of which layers some parameters, and not all, are `word`, and their names."""
        told = enumerate(str(words) for words in self.layers["training"])
        found = {layer: re.search(rf"{word} \(([^)]*)\)", words) for layer, words in told}
        return {layer: some[1].split() for layer, some in found.items() if some}

    @cached_property
    def audited(self) -> bool:
        """Whether the run says of its layers' parameters what trains them."""
        return bool((self.layers["training"].astype(str) != "").any())

    @cached_property
    def recurrent(self) -> Mask:
        """Which layers hand a state on from one time step to the next."""
        kinds = [canonical(str(kind)) for kind in self.layers["kind"]]
        return np.array([kind in RECURRENT for kind in kinds], dtype=bool)

    @cached_property
    def speed(self) -> Floats:
        """Update speed of each layer, ||dW|| / ||W|| a step, median in each window."""
        return over_reference(self.median("update_norm"), self.median("weight_norm"))

    @cached_property
    def loss(self) -> Curve | None:
        """The training loss, where it was logged."""
        return logged_curves(self.run).get(("train", "loss"))

    @cached_property
    def activations(self) -> list[str]:
        """For each layer the activation that is read there: itself or a function on its output."""
        functions = self.run.functions
        kinds = [functions.get(i, str(kind)) for i, kind in enumerate(self.layers["kind"])]
        return [canonical(kind) for kind in kinds]

    @cached_property
    def kinds(self) -> set[str]:
        """The kinds of the layers and of the functions called on their outputs."""
        return {canonical(str(kind)) for kind in self.layers["kind"]} | set(self.activations)

    def median(self, column: str) -> Floats:
        """Return a layer metric's median in each window, (windows, layers), NaN where unread."""
        return self._reduced(column)[0]

    def highest(self, column: str) -> Floats:
        """Return a layer metric's maximum in each window, (windows, layers), NaN where unread."""
        return self._reduced(column)[1]

    def shortcut_median(self, column: str) -> Floats:
        """Return a shortcut metric's median in each window, (windows, shortcuts)."""
        return self._by_window(self.run.shortcut_matrix, column, [column_medians])[0]

    def infinite(self, column: str) -> Mask:
        """Return in which of `rows` any layer's reading of a metric is infinite, (R,)."""
        pieces = np.array_split(self.rows, len(self.rows) // ROWS_AT_ONCE + 1)
        read = (self.at(column, rows) for rows in pieces if len(rows))
        return np.concatenate([np.zeros(0, bool), *(np.isinf(v).any(axis=1) for v in read)])

    def at(self, column: str, rows: NDArray[np.int64]) -> Floats:
        """Return a metric of all layers at recorded steps, given as ascending rows of `steps`."""
        return self._at(self.run.matrix, column, rows).astype(np.float64)

    def sizes(self, rows: NDArray[np.int64]) -> Floats:
        """Return the root mean square of each layer's outputs at `rows`, (rows, layers)."""
        norm, elements = (self.at(c, rows) for c in ("activation_norm", "output_elements"))
        return over_reference(norm, np.sqrt(elements))

    def step(self, row: int) -> int:
        """Return the number of the step in a row of `steps`."""
        return int(self.steps["step"].iloc[row])

    @property
    def whole(self) -> tuple[int, int]:
        """The first and the last step that was read."""
        return self.step(self.rows[0]), self.step(self.rows[-1])

    def span(self, windows: Mask) -> tuple[int, int]:
        """Return the first and the last step of the marked windows."""
        marked = np.flatnonzero(windows)
        step = self.steps["step"].to_numpy()
        return int(step[self.windows[marked[0]][0]]), int(step[self.windows[marked[-1]][-1]])

    def _reduced(self, column: str) -> tuple[Floats, Floats]:
        if column not in self._columns:
            median, highest = self._by_window(self.run.matrix, column, [column_medians, _highest])
            self._columns[column] = median, highest
        return self._columns[column]

    def _by_window(
        self,
        matrix: Callable[..., tuple[Any, Floats]],
        column: str,
        reductions: list[Callable[[Floats], Floats]],
    ) -> list[Floats]:
        """Return what each of `reductions` makes of a metric in each window, (windows, width)."""
        if not self.windows:
            width = matrix(column)[1].shape[1]
            return [np.empty((0, width)) for _ in reductions]
        read = [self._at(matrix, column, window).astype(np.float64) for window in self.windows]
        return [np.stack([reduce(values) for values in read]) for reduce in reductions]

    def _at(
        self, matrix: Callable[..., tuple[Any, Floats]], column: str, rows: NDArray[np.int64]
    ) -> Floats:
        """Return a metric at `rows`; of a long run no more is in memory than those between."""
        step = self.steps["step"].to_numpy()
        if len(step) <= ROWS_AT_ONCE:
            return matrix(column)[1][rows]
        values = matrix(column, int(step[rows[0]]), int(step[rows[-1]]))[1]
        return np.asarray(values[rows - rows[0]])


def running_median(values: Floats) -> Floats:
    """Return the median of each `WINDOW` consecutive values, or of all where there are fewer.

    Parameters
    ----------
    values : float64 (S,), without NaN

    Returns
    -------
    float64 (S - WINDOW + 1,), at least one value
        The one at place i is about the values i to i + WINDOW - 1.
    """
    window = min(WINDOW, len(values))
    views = np.lib.stride_tricks.sliding_window_view(values, window)
    ordered = np.sort(views, axis=1)
    return _between(ordered[:, (window - 1) // 2], ordered[:, window // 2])


def column_medians(values: Floats) -> Floats:
    """Return the median of each column, over what of it was read; NaN where nothing was.

    NumPy's own warns of columns of NaN, and warnings cannot be silenced in one thread alone.
    """
    ordered = np.sort(values, axis=0)  # NaN comes last
    counts = (~np.isnan(ordered)).sum(axis=0)
    below, above = np.maximum(counts - 1, 0) // 2, np.minimum(counts // 2, len(values) - 1)
    return _between(*(np.take_along_axis(ordered, at[None], axis=0)[0] for at in (below, above)))


def _between(low: Floats, high: Floats) -> Floats:
    """Return the mean of the two middle values; where one of them is infinite, the other one."""
    with np.errstate(invalid="ignore"):
        middle: Floats = (low + high) / 2
    middle = np.where(np.isinf(low), high, np.where(np.isinf(high), low, middle))
    return np.where(np.isnan(low) | np.isnan(high), np.nan, middle)


def _highest(values: Floats) -> Floats:
    """Return the maximum of each column, over what of it was read."""
    return np.asarray(np.fmax.reduce(values))


def _windows(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return `rows` in windows; evenly spread ones where there would be too many."""
    count = max(len(rows) // WINDOW, 1)
    if len(rows) == 0:
        return []
    if count <= MOST_WINDOWS:
        return list(np.array_split(rows, count))
    starts = np.linspace(0, len(rows) - WINDOW, MOST_WINDOWS).round().astype(int)
    return [rows[start : start + WINDOW] for start in starts]

"""The arithmetic of the contract: what follows from readings, and how several become one.

One truth for frames, CSV, figures and trackers: a quotient x/0 is inf and 0/0 NaN; over a
reference, such as the output layer's signal, nothing can be said where that is 0 or not finite;
and what is combined is combined as its `schema.Column` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.schema import Column

Array = NDArray[np.floating[Any]]
Quotient = NDArray[np.float64]

# --- what follows from readings ----------------------------------------------------------------


def ratio(above: Array, below: Array) -> Quotient:
    """Divide in float64; 0/0 is NaN and x/0 is inf, without a warning."""
    with np.errstate(all="ignore"):
        quotient: Quotient = np.divide(above, below, dtype=np.float64)
    return quotient


def over_reference(values: Array, reference: Array) -> Quotient:
    """Divide by what others are compared with; NaN where that is 0 or not finite."""
    usable = np.isfinite(reference) & (reference != 0)
    return ratio(values, np.where(usable, reference, np.nan))


def last_reading(values: Array) -> Array:
    """Return each row's last value that is not NaN, the output layer's, (n, k) -> (n, 1)."""
    last = values[:, -1].copy()
    unread = np.flatnonzero(np.isnan(last))
    if unread.size:
        place = values.shape[1] - 1 - np.argmax(~np.isnan(values[unread, ::-1]), axis=1)
        last[unread] = values[unread, place]
    return np.asarray(last[:, None])


def relative(signal: Array) -> Quotient:
    """Return each row, the signals of all layers at one step, over the output layer's."""
    if not signal.shape[1]:
        return signal.astype(np.float64)
    return over_reference(signal, last_reading(signal))


def energy_share(shortcut: Array, branch: Array) -> Quotient:
    """Return the shortcut's share of the two paths' squared norms; NaN where both are 0."""
    with np.errstate(all="ignore"):
        energy = np.square(shortcut, dtype=np.float64)
        return ratio(energy, energy + np.square(branch, dtype=np.float64))


# --- how readings of one thing at one step become one -------------------------------------------


def root_sum_square(values: Array) -> Array:
    """Return the root of the sum of squares over the last axis, shape (n, k) -> (n,)."""
    result: Array = np.sqrt(np.square(np.ascontiguousarray(values)).sum(axis=1))
    return result


def share_of_process(column: Column, losses: float, copies: Array | float) -> Array | float:
    """Return what a process's reading is multiplied by before it is combined with the others'.

    Parameters
    ----------
    column : Column
    losses : float
        Of how many processes' losses the gradients are the mean; NaN if outputs of one are not of
        samples of its own.
    copies : float or array
        How many of them hold the same elements of what was read.
    """
    if column.processes == "mean of losses":
        return 1 / losses
    if column.processes == "copies":
        return 1 / np.sqrt(copies)
    return 1.0 if losses == losses else math.nan


class Groups:
    """Which of k readings are of one thing.

    Parameters
    ----------
    numbers : sequence of k ints
        Of which layer, or shortcut, each was read.
    counts : sequence of k ints
        Elements that each was read from: the weights of means and deviations.

    Attributes
    ----------
    numbers : array of n ints
        Those that there are, in ascending order.
    weights : array, shape (n,)
        Of how many elements each was read.
    """

    def __init__(self, numbers: Sequence[int], counts: Sequence[int]) -> None:
        given = np.asarray(numbers, np.int64)
        self.order = np.argsort(given, kind="stable")
        sorted_ = given[self.order]
        self.starts = np.flatnonzero(np.diff(sorted_, prepend=-1))
        self.numbers = sorted_[self.starts]
        self.sizes = np.diff(np.append(self.starts, sorted_.size))
        self.counts = np.asarray(counts, dtype=np.float64)[self.order]
        self.weights = self.sums(self.counts)

    def sums(self, values: Array) -> Array:
        """Return the sums of sorted `values` over each group, (..., k) -> (..., n)."""
        if not self.starts.size:
            return values
        return np.asarray(np.add.reduceat(values, self.starts, axis=-1))


def combine(column: Column, readings: Mapping[str, Array], groups: Groups, out: Array) -> None:
    """Write readings, shape (rows, k), to the columns of `out` that `groups` names, as one each.

    Parameters
    ----------
    column : Column
        Tells how.
    readings : mapping of str to array, shape (rows, k)
        Those of `column` by its name; of a deviation those of its mean, too.
    groups : Groups
    out : array, shape (rows, layers or shortcuts)
    """
    values = readings[column.name][:, groups.order]
    once = groups.sizes == 1
    out[:, groups.numbers[once]] = values[:, groups.starts[once]]
    if not once.all():
        mean = readings.get(column.mean)
        means = None if mean is None else mean[:, groups.order]
        combined = _combined(column, values, means, groups)
        out[:, groups.numbers[~once]] = combined[:, ~once]


def _combined(column: Column, values: Array, means: Array | None, groups: Groups) -> Array:
    """Return readings of each group as one, (rows, k) -> (rows, n)."""
    if column.combine == "sum":
        return groups.sums(values)
    if column.combine == "largest":
        return np.asarray(np.maximum.reduceat(values, groups.starts, axis=-1))
    if column.combine == "mean":
        return groups.sums(values * groups.counts) / groups.weights
    squares = np.square(values)
    if column.combine == "root mean square":
        return np.asarray(np.sqrt(groups.sums(squares * groups.counts) / groups.weights))
    if column.combine == "deviation":  # the law of total variance
        assert means is not None, f"{column.name} without {column.mean}"
        mean = groups.sums(means * groups.counts) / groups.weights
        apart = np.square(means - np.repeat(mean, groups.sizes, axis=1))
        return np.asarray(np.sqrt(groups.sums((squares + apart) * groups.counts) / groups.weights))
    return np.asarray(np.sqrt(groups.sums(squares)))

"""The arithmetic of the contract: what follows from readings, and how several become one.

One truth for frames, CSV, figures and trackers: a quotient x/0 is inf and 0/0 NaN; over a
reference, such as the output layer's signal, nothing can be said where that is 0 or not finite;
and what is combined is combined as its `schema.Column` says.
"""

from __future__ import annotations

from collections import defaultdict
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


def share_of_process(column: Column, processes: int, copies: Array | float) -> Array | float:
    """Return what a process's reading is multiplied by before it is combined with the others'.

    Parameters
    ----------
    column : Column
    processes : int
        How many train together.
    copies : float or array
        How many of them hold the same elements of what was read.
    """
    if column.processes == "mean of losses":
        return 1 / processes
    if column.processes == "copies":
        return 1 / np.sqrt(copies)
    return 1.0


def combine(
    column: Column,
    readings: Mapping[str, Array],
    numbers: Sequence[int],
    counts: Sequence[int],
    out: Array,
) -> None:
    """Write readings, shape (rows, k), to the columns `numbers` of `out`, combining repeats.

    Parameters
    ----------
    column : Column
        Tells how.
    readings : mapping of str to array, shape (rows, k)
        Those of `column` by its name; of a deviation those of its mean, too.
    numbers : sequence of k ints
        Of which layer, or shortcut, each was read.
    counts : sequence of k ints
        Elements that each was read from: the weights of means and deviations.
    out : array, shape (rows, layers or shortcuts)
    """
    values = readings[column.name]
    places: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(numbers):
        places[number].append(i)
    once = [(number, some[0]) for number, some in places.items() if len(some) == 1]
    if once:
        targets, sources = zip(*once, strict=True)
        out[:, list(targets)] = values[:, list(sources)]
    weights = np.asarray(counts, dtype=np.float64)
    mean = readings.get(column.mean)
    for number, some in places.items():
        if len(some) > 1:
            means = None if mean is None else mean[:, some]
            out[:, number] = _combined(column, values[:, some], weights[some], means)


def _combined(column: Column, values: Array, weights: Array, means: Array | None) -> Array:
    """Return readings of one thing as one, (rows, k) -> (rows,), by `weights`, (k,)."""
    if column.combine == "sum":
        return np.asarray(values.sum(axis=1))
    if column.combine == "largest":
        return np.asarray(values.max(axis=1))
    whole = weights.sum()
    if column.combine == "mean":
        return np.asarray(values @ weights / whole)
    if column.combine == "root mean square":
        return np.asarray(np.sqrt(np.square(values) @ weights / whole))
    if column.combine == "deviation":  # the law of total variance
        assert means is not None, f"{column.name} without {column.mean}"
        spread = np.square(values) + np.square(means - (means @ weights / whole)[:, None])
        return np.asarray(np.sqrt(spread @ weights / whole))
    return root_sum_square(values)

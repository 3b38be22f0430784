"""Fewer points than steps, without losing the ends, the extremes, or a single NaN.

Sampling every n-th step would lose the spike that ended a training, and a mean would hide it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import Array

STRETCHES = 150
"""Medians and extremes of so many stretches of steps are drawn of a long curve."""


def bin_starts(n: int, bins: int) -> NDArray[np.int64]:
    """Return the first index of each of at most `bins` bins of nearly equal size over `n`."""
    count = max(min(n, bins), 1)
    return np.arange(count, dtype=np.int64) * n // count


def extremes(values: Array, bins: int) -> NDArray[np.int64]:
    """Return the indices to draw of a curve: ends, and each bin's extremes and first non-number.

    Parameters
    ----------
    values : array, shape (n,)
    bins : int
        Curves of up to 2 `bins` points are kept whole.

    Returns
    -------
    array, shape (at most 3 bins + 2,), increasing
    """
    n = len(values)
    if n <= 2 * bins:
        return np.arange(n, dtype=np.int64)
    starts = bin_starts(n, bins)
    finite = np.isfinite(values)
    kept = [0, n - 1]
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        inside = slice(start, stop)
        good = np.flatnonzero(finite[inside])
        if len(good):
            part = values[inside][good]
            kept += [start + good[part.argmin()], start + good[part.argmax()]]
        if len(good) < stop - start:
            kept.append(start + int(finite[inside].argmin()))
    return np.unique(np.asarray(kept, dtype=np.int64))


def farthest_from_one(values: Array) -> Array:
    """Return each layer's reading that is farthest from 1 within a bin of steps.

    Parameters
    ----------
    values : array, shape (n_steps, n_layers), not negative

    Returns
    -------
    array, shape (n_layers,)
        0 and inf are the farthest of all. NaN where there is no reading, and everywhere if a step
        has no reading at all: a training that broke must show.
    """
    if len(values) == 1:
        return np.asarray(values[0])
    low: Array = np.fmin.reduce(values)
    high: Array = np.fmax.reduce(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        farthest: Array = np.where(np.abs(np.log10(low)) > np.abs(np.log10(high)), low, high)
    # A step without any reading lacks the first layer's; only those steps need a closer look.
    broken = np.isnan(values[np.isnan(values[:, 0])]).all(axis=1).any()
    return np.full_like(farthest, np.nan) if broken else farthest


@dataclass(frozen=True)
class Band:
    """A long curve by stretches of steps: first step, median, least and largest finite value.

    All have the shape (n_stretches,). NaN where a stretch has no number above 0.
    """

    steps: NDArray[np.int64]
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def band(steps: NDArray[np.int64], values: Array, bins: int = STRETCHES) -> Band | None:
    """Return a curve by its medians and extremes, None if it is short enough to be drawn whole.

    A line through the extremes of thousands of noisy steps would fill the area that it crosses.
    """
    n = len(values)
    if n <= 3 * bins:
        return None
    starts = bin_starts(n, bins)
    fine = np.isfinite(values) & (values > 0)
    low = np.minimum.reduceat(np.where(fine, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(fine, values, -np.inf), starts)
    none = np.isinf(low)
    known = np.where(fine, values, np.nan)
    middle = np.full(bins, np.nan)
    for i, (start, stop) in enumerate(zip(starts, [*starts[1:], n], strict=True)):
        if not none[i]:
            middle[i] = np.nanmedian(known[start:stop])
    low, high = np.where(none, np.nan, low), np.where(none, np.nan, high)
    return Band(steps[starts], middle, low.astype(float), high.astype(float))

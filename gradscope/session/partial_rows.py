"""Rows as sums: what each process adds to the readings of all, so that one row is what all make.

Of norms squares add up, of means products with weights, of deviations second moments. Sums of
processes are added on their way, so that none has more to do than a few others give it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope import schema
from gradscope.arithmetic import Array
from gradscope.session.arrangement import OF_LAYERS, OF_SHORTCUTS
from gradscope.session.columns import Decoded

Ints = NDArray[np.int64]

METRICS = {"layers": OF_LAYERS, "shortcuts": OF_SHORTCUTS}
"""Table -> the metrics of which processes add up their readings."""


_UNWEIGHTED = ("root sum square", "sum", "largest")


class Kind(NamedTuple):
    """What a sum is of: readings of a metric, or norms that so many `copies` should have alike.

    Of these there are sums of their squares, too.
    """

    table: str
    metric: str
    copies: int = 0
    is_squared: bool = False


class Slots:
    """Numbers of sums: each is of a kind and of a layer or shortcut, by its number in the union."""

    def __init__(self) -> None:
        self.kinds: dict[Kind, Ints] = {}
        """Kind -> slot of each layer or shortcut, -1 of those without."""
        self.runs: list[tuple[Kind, Ints]] = []
        """What slots are of, in order."""
        self.largest: list[int] = []
        """Those of which processes do not add up, but keep the largest."""
        self.size = 0

    def take(self, kind: Kind, numbers: Ints) -> Ints:
        """Return the slots of `numbers`, given now where there are none yet."""
        slots = self.kinds.get(kind, np.empty(0, np.int64))
        if numbers.size and numbers.max() >= slots.size:
            more = np.full(numbers.max() + 1 - slots.size, -1)
            slots = self.kinds[kind] = np.concatenate([slots, more])
        new = numbers[slots[numbers] < 0]
        if new.size:
            slots[new] = np.arange(self.size, self.size + new.size)
            self.runs.append((kind, new))
            if METRICS[kind.table][kind.metric].combine == "largest":
                self.largest += slots[new].tolist()
            self.size += new.size
        return slots[numbers]


@dataclass
class PartialRow:
    """What some processes have read of a step.

    Attributes
    ----------
    processes : int
        How many; those that have no signals and activations of it are not counted.
    scalars : dict of str to float
        Columns of `steps`, but for the norms: those of the first of them that has each.
    sums : array, shape (2, slots)
        Sums of readings and of their weights.
    """

    step: int
    time: float
    skipped: bool
    wide: bool
    processes: int
    scalars: dict[str, float]
    sums: NDArray[np.float64]

    def add(self, other: PartialRow, largest: Sequence[int] = ()) -> None:
        """Add what other processes have read, but for the slots that keep the `largest`."""
        self.processes += other.processes
        self.skipped |= other.skipped
        self.wide |= other.wide
        known = {name: x for name, x in self.scalars.items() if not math.isnan(x)}
        self.scalars = {**other.scalars, **known}
        size = max(self.sums.shape[1], other.sums.shape[1])
        mine, theirs = widened(self.sums, size), widened(other.sums, size)
        total = mine + theirs
        kept = [i for i in largest if i < size]
        both = (mine[1, kept] > 0) & (theirs[1, kept] > 0)  # else one of them is 0
        greater = np.maximum(mine[0, kept], theirs[0, kept])
        total[0, kept] = np.where(both, greater, total[0, kept])
        self.sums = total


def widened(sums: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return `sums` with so many slots, 0 in those that are new; a copy."""
    result = np.zeros((2, size))
    result[:, : sums.shape[1]] = sums
    return result


def partial_rows(
    decoded: Iterable[Decoded], slots: Slots, numbers: dict[str, Ints]
) -> Iterator[PartialRow]:
    """Yield what this process has read, in `slots`.

    Parameters
    ----------
    decoded : iterable of Decoded
    slots : Slots
    numbers : dict of str to array
        Table -> the number in the union of each layer or shortcut of this process.
    """
    for some in decoded:
        parts = list(_parts(some, slots, numbers))
        known = ("step", "time", "skipped")
        for i, step in enumerate(some.steps["step"].tolist()):
            sums = np.zeros((2, slots.size))
            for places, values, weights in parts:
                sums[0, places], sums[1, places] = values[i], weights
            yield PartialRow(
                step,
                float(some.steps["time"][i]),
                bool(some.steps["skipped"][i]),
                some.wide,
                0 if some.doubtful and some.doubtful[i] else 1,
                {name: float(x[i]) for name, x in some.steps.items() if name not in known},
                sums,
            )


def _parts(
    decoded: Decoded, slots: Slots, numbers: dict[str, Ints]
) -> Iterator[tuple[Ints, Array, Array]]:
    """Yield slots, their sums of readings, (rows, k), and those of weights, (k,)."""
    for table, metrics in METRICS.items():
        for name, weights in decoded.weights[table].items():
            read = np.flatnonzero(weights)
            if not read.size:
                continue
            column, values = metrics[name], decoded.values[table]
            given, weight = values[name][:, read], weights[read]
            if column.combine in _UNWEIGHTED:
                weight = np.ones_like(weight)
            moment = _moment(column, given, values[column.mean][:, read] if column.mean else given)
            yield slots.take(Kind(table, name), numbers[table][read]), moment * weight, weight
    for name, alike in decoded.copies.items():
        for by, held, norms in alike:
            of, once = numbers["layers"][held], np.ones(held.size)
            yield slots.take(Kind("layers", name, by), of), norms, once
            yield slots.take(Kind("layers", name, by, True), of), np.square(norms), once


def _moment(column: schema.Column, values: Array, means: Array) -> Array:
    """Return what adds up over processes, but for its weight."""
    if column.combine in ("sum", "mean", "largest"):
        return values
    squares = np.square(values)
    return squares + np.square(means) if column.combine == "deviation" else squares


def readings_of(
    kind: Kind, slots: Slots, sums: NDArray[np.float64]
) -> tuple[Ints, Array, NDArray[np.float64]]:
    """Return what sums of a kind, shape (rows, 2, slots), say: NaN of what none has read.

    Returns
    -------
    numbers : array of k ints
        Of layers or shortcuts.
    values, weights : arrays, shape (rows, k)
        A deviation is the second moment still.
    """
    of = slots.kinds[kind]
    numbers = np.flatnonzero(of >= 0)
    total, weights = sums[:, 0, of[numbers]], sums[:, 1, of[numbers]]
    column = METRICS[kind.table][kind.metric]
    with np.errstate(invalid="ignore", divide="ignore"):
        if column.combine in _UNWEIGHTED and not kind.copies:
            values = np.where(weights > 0, total, np.nan)
        else:
            values = total / weights
        if column.combine.startswith("root") and not kind.copies:
            values = np.sqrt(values)
    return numbers, values, weights

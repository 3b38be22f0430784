"""From sums that have arrived on the host to readings: many rows at a time, off the hot path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.capture.keys import Layout
from gradscope.capture.reading.waiting import Item, Trial
from gradscope.measure.sums import Derivation, Numbers

HostSegment = tuple[Layout, NDArray[np.floating]]
"""Readings of one row on the host, and what they are of."""


class HostSums(NamedTuple):
    """`Sums` whose values have arrived on the host."""

    items: list[Item]
    trials: list[Trial]
    values: NDArray[np.floating]


_REMEMBERED = 8


class _Recipe:
    """How all readings of one row follow from its sums, item by item of each of them in turn."""

    def __init__(self, items: list[list[Item]]) -> None:
        self.items = items
        self.layout: Layout = tuple([keys for some in items for *_, told in some for keys in told])
        self.used = [1 + max(number for number, *_ in some) for some in items]
        parts: dict[Derivation, list[tuple[int, int, int]]] = defaultdict(list)
        before = place = 0
        for some, used in zip(items, self.used, strict=True):
            for number, derivation, elements, told in some:
                parts[derivation].append((before + number, elements, place))
                place += len(told)
            before += used
        self._parts = [(derive, *np.array(some).T) for derive, some in parts.items()]

    def readings(self, rows: Sequence[Sequence[HostSums]]) -> Numbers:
        """Return the readings of rows, (rows, readings)."""
        together = [
            np.concatenate([s.values[:used] for s, used in zip(row, self.used, strict=True)])
            for row in rows
        ]
        sums = np.stack(together)
        result = np.empty((len(sums), len(self.layout)))
        for derive, numbers, elements, places in self._parts:
            for i, values in enumerate(derive(elements, sums[:, numbers])):
                result[:, places + i] = values
        return result


class Deriver:
    """Makes readings of sums; knows the recipes of the last few structures."""

    def __init__(self) -> None:
        self._recipes: list[_Recipe] = []

    def derive(self, rows: Sequence[Sequence[HostSums]]) -> Iterator[list[HostSegment]]:
        """Yield the segments of each row."""
        for sums in (sums for row in rows for sums in row):
            for trial in sums.trials:
                trial.trust.judge(trial, sums.values)
        for recipe, group in groupby(rows, key=self._recipe):
            alike = list(group)
            if recipe.items:
                yield from ([(recipe.layout, some)] for some in recipe.readings(alike))
            else:
                yield from ([] for _ in alike)

    def _recipe(self, row: Sequence[HostSums]) -> _Recipe:
        items = [sums.items for sums in row]
        for recipe in self._recipes:
            if recipe.items == items:
                return recipe
        recipe = _Recipe(items)
        self._recipes = [recipe, *self._recipes[: _REMEMBERED - 1]]
        return recipe

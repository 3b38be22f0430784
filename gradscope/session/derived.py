"""From sums that have arrived on the host to readings: many rows at a time, off the hot path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.capture.keys import Keys, Layout
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
    """How all readings follow from the sums of a row, item by item."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        keys: list[Keys] = []
        parts: dict[Derivation, list[tuple[int, int, int]]] = defaultdict(list)
        for number, derivation, elements, some in items:
            parts[derivation].append((number, elements, len(keys)))
            keys += some
        self.layout: Layout = tuple(keys)
        self.rows = 1 + max(number for number, *_ in items)
        self._parts = [(derive, *np.array(some).T) for derive, some in parts.items()]

    def readings(self, sums: Numbers) -> Numbers:
        """Return the readings of rows, shape (rows, k, 4) -> (rows, readings)."""
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
        described = [[(self._recipe(sums.items), sums.values) for sums in row] for row in rows]
        for recipes, group in groupby(described, key=lambda row: [recipe for recipe, _ in row]):
            alike = [[values for _, values in row] for row in group]
            readings = [
                recipe.readings(np.stack([values[: recipe.rows] for values in some]))
                for recipe, some in zip(recipes, zip(*alike, strict=True), strict=True)
            ]
            for i in range(len(alike)):
                yield [(recipe.layout, r[i]) for recipe, r in zip(recipes, readings, strict=True)]

    def _recipe(self, items: list[Item]) -> _Recipe:
        for recipe in self._recipes:
            if recipe.items == items:
                return recipe
        recipe = _Recipe(items)
        self._recipes = [recipe, *self._recipes[: _REMEMBERED - 1]]
        return recipe

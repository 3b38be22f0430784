"""From sums that have arrived on the host to readings: many rows at a time, off the hot path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gradscope.capture.rows import Item, Keys, Layout
from gradscope.measure.sums import FIELDS, Derivation, Numbers

HostSegment = tuple[Layout, NDArray[np.floating]]
"""Readings of one row on the host, and what they are of."""

HostSums = tuple[list[Item], NDArray[np.floating]]
"""Sums of one row on the host, flat, and what they are of."""

_REMEMBERED = 8


class _Recipe:
    """How all readings follow from the sums of a row, item by item."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        keys: list[Keys] = []
        parts: dict[Derivation, list[tuple[int, int, int]]] = defaultdict(list)
        for item in items:
            parts[item.derivation].append((item.number, item.elements, len(keys)))
            keys += item.keys
        self.layout: Layout = tuple(keys)
        self._parts = [(derive, *np.array(some).T) for derive, some in parts.items()]

    def readings(self, sums: Numbers) -> Numbers:
        """Return the readings of rows, shape (rows, k, FIELDS) -> (rows, readings)."""
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
        described = [
            [(self._recipe(items), sums) for items, sums in row if items] for row in rows
        ]
        for recipes, group in groupby(described, key=lambda row: [recipe for recipe, _ in row]):
            alike = [[sums for _, sums in row] for row in group]
            readings = [
                recipe.readings(np.stack(sums).reshape(len(alike), -1, FIELDS))
                for recipe, sums in zip(recipes, zip(*alike, strict=True), strict=True)
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

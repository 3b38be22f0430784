"""Where in a row the readings of each metric are, and of what: alike for rows of one layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradscope import schema
from gradscope.arithmetic import Groups
from gradscope.capture.keys import Key, Layout, OfLayer, OfParameter, OfShortcut, OfStep
from gradscope.capture.net.catalogue import Catalogue
from gradscope.session.shares import Shares

Ints = NDArray[np.int64]

OF_LAYERS = schema.by_name(schema.LAYER_METRICS, schema.TIME_NORMS)
OF_SHORTCUTS = schema.by_name(schema.SHORTCUT_METRICS, schema.FORWARD_NORMS)

_KeyOfKind = TypeVar("_KeyOfKind", OfLayer, OfParameter, OfShortcut)


class Part(NamedTuple):
    """The readings of one metric: their places in a row, by the layers or shortcuts they are of."""

    places: Ints
    groups: Groups


class Held(NamedTuple):
    """How many processes hold what was read of parameters.

    Attributes
    ----------
    copies : array, shape (k,)
        Of each reading.
    alike : dict of float to Part
        Number of processes, more than one -> readings of what so many hold alike, by layers.
    """

    copies: NDArray[np.float64]
    alike: dict[float, Part]


class Arrangement:
    """Where the readings of rows of `layouts` are.

    Parameters
    ----------
    layouts : list of Layout
        Of the segments of such a row.
    catalogue : Catalogue
    shares : Shares

    Attributes
    ----------
    parameters, layers, shortcuts : dict of str to Part
        By metric.
    held : dict of str to Held
        Of `parameters`.
    scalars : dict of str to int
        Name -> place.
    summands : list of str
        Layers of whose gradients processes hold summands.
    """

    def __init__(self, layouts: list[Layout], catalogue: Catalogue, shares: Shares) -> None:
        self.layouts = layouts
        layout = [keys for some in layouts for keys in some]
        number, rows = catalogue.layer_of, catalogue.layers
        self.parameters: dict[str, Part] = {}
        self.held: dict[str, Held] = {}
        summands: dict[str, None] = {}
        for metric, read in _found(layout, OfParameter).items():
            owners = [min(number[m] for m in key.owners) for _, key in read]  # tied: the first
            self.parameters[metric] = _part(read, owners, [1] * len(read))
            names = [str(rows[owner]["name"]) for owner in owners]
            pairs = list(zip([key for _, key in read], names, strict=True))
            copies = np.array([shares.copies(key, name) for key, name in pairs], np.float64)
            self.held[metric] = _held(owners, copies)
            summands |= {name: None for key, name in pairs if not key.copies}
        self.summands = list(summands)
        self.layers: dict[str, Part] = {}
        for metric, of_layers in _found(layout, OfLayer).items():
            numbers = [number[key.module] for _, key in of_layers]
            self.layers[metric] = _part(of_layers, numbers, [key.elements for _, key in of_layers])
            if mean := OF_LAYERS[metric].mean:  # taken in the same breath: it stands before
                assert all(layout[p - 1][0][0] == mean for p, _ in of_layers), layout
        self.shortcuts: dict[str, Part] = {}
        for metric, past in _found(layout, OfShortcut).items():
            of = [catalogue.joins.row_of[key.shortcut] for _, key in past]
            self.shortcuts[metric] = _part(past, of, [1] * len(past))
        self.scalars = {
            key.name: place
            for place, keys in enumerate(layout)
            for key in keys
            if isinstance(key, OfStep)
        }


def _part(
    read: Sequence[tuple[int, object]], numbers: Sequence[int], counts: Sequence[int]
) -> Part:
    return Part(np.array([place for place, _ in read], np.int64), Groups(numbers, counts))


def _held(owners: Sequence[int], copies: NDArray[np.float64]) -> Held:
    alike = {}
    for by in np.unique(copies[copies > 1]).tolist():
        read = np.flatnonzero(copies == by)
        alike[by] = Part(read, Groups([owners[k] for k in read.tolist()], [1] * read.size))
    return Held(copies, alike)


def _found(
    layout: Iterable[tuple[Key, ...]], kind: type[_KeyOfKind]
) -> dict[str, list[tuple[int, _KeyOfKind]]]:
    """Return the places of the readings of one kind, and what they are of, by metric."""
    found: dict[str, list[tuple[int, _KeyOfKind]]] = defaultdict(list)
    for place, keys in enumerate(layout):
        for key in keys:
            if isinstance(key, kind):
                found[key.metric].append((place, key))
    return found

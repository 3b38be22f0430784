"""From the values of recorded rows to the columns of the tables; on the host, off the hot path.

Readings of one layer or shortcut at one step are put together here, as their `schema.Column` says:
over parameters, micro-batches and calls of a module, and divided by the factor of a loss scaler.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradscope import schema
from gradscope.arithmetic import Array, combine, energy_share, ratio, root_sum_square
from gradscope.capture.catalogue import Catalogue
from gradscope.capture.rows import Key, OfLayer, OfParameter, OfShortcut, OfStep
from gradscope.session.tape import HostRow

Columns = dict[str, NDArray[np.generic]]
"""Column -> values, of one table."""

_OF_LAYERS = schema.by_name(schema.LAYER_METRICS)
_OF_SHORTCUTS = schema.by_name(schema.SHORTCUT_METRICS, schema.FORWARD_NORMS)

_KeyOfKind = TypeVar("_KeyOfKind", OfLayer, OfParameter, OfShortcut)
_Found = dict[str, list[tuple[int, _KeyOfKind]]]
"""Metric -> place of a value, and what it is of."""


class Decoder:
    """Turns rows into columns of the part files, by the numbers of `catalogue`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def columns(self, rows: Sequence[HostRow]) -> list[dict[str, Columns]]:
        """Return the columns of the tables `layers`, `shortcuts` and `steps`, in runs of rows.

        Every layer and shortcut known by now stands in every row, in the catalogue's order.
        """
        return [
            self._alike(list(group))
            for _, group in groupby(rows, key=lambda row: [layout for layout, _ in row.segments])
        ]

    def _alike(self, rows: list[HostRow]) -> dict[str, Columns]:
        """Return the columns of rows of one layout."""
        layout = [keys for some, _ in rows[0].segments for keys in some]
        values = np.array(
            [np.concatenate([v for _, v in row.segments]) if row.segments else [] for row in rows],
            dtype=np.float64,
        )
        dtype = np.float64 if any(row.wide for row in rows) else np.float32
        scalars = _scalars(rows, layout, values)
        scales = {
            name: np.nan_to_num(scalars.pop(name, np.full(len(rows), math.nan)), nan=1.0)
            for name in ("loss_scale", "grad_scale")
        }
        n_layers, n_shortcuts = len(self._catalogue.layers), len(self._catalogue.shortcuts)
        layers = {name: np.full((len(rows), n_layers), np.nan) for name in _OF_LAYERS}
        shortcuts = {name: np.full((len(rows), n_shortcuts), np.nan) for name in _OF_SHORTCUTS}
        totals = self._of_parameters(layout, values, scales, layers)
        self._of_layers(layout, values, scales, layers)
        self._of_shortcuts(layout, values, scales, shortcuts)
        return {
            "layers": _table(rows, "layer", n_layers, layers, dtype),
            "shortcuts": _table(rows, "shortcut", n_shortcuts, shortcuts, dtype),
            "steps": _steps(rows, scales["loss_scale"], scalars, totals),
        }

    def _of_parameters(
        self,
        layout: Sequence[tuple[Key, ...]],
        values: Array,
        scales: Mapping[str, Array],
        layers: dict[str, Array],
    ) -> dict[str, Array]:
        """Fill in the norms of parameters; return those over all parameters."""
        totals = {}
        number = self._catalogue.layer_of
        for name, entries in _found(layout, OfParameter).items():
            column = _OF_LAYERS[name]
            picked = _unscaled(column, values, [place for place, _ in entries], scales)
            owners = [min(number[m] for m in key.owners) for _, key in entries]  # tied: the first
            totals[name] = root_sum_square(picked)
            combine(column, {name: picked}, owners, [1] * len(entries), layers[name])
        return totals

    def _of_layers(
        self,
        layout: Sequence[tuple[Key, ...]],
        values: Array,
        scales: Mapping[str, Array],
        layers: dict[str, Array],
    ) -> None:
        number = self._catalogue.layer_of
        elements = np.zeros(len(self._catalogue.layers))  # of each layer's outputs
        for name, entries in _found(layout, OfLayer).items():
            column = _OF_LAYERS[name]
            places = [place for place, _ in entries]
            readings = {name: _unscaled(column, values, places, scales)}
            if column.mean:  # taken in the same breath: it stands before the deviation
                assert all(layout[p - 1][0][0] == column.mean for p in places), layout
                readings[column.mean] = values[:, [place - 1 for place in places]]
            numbers = [number[key.module] for _, key in entries]
            counts = [key.elements for _, key in entries]
            combine(column, readings, numbers, counts, layers[name])
            if name == "activation_norm":
                np.add.at(elements, numbers, counts)
        _complete_outputs(layers, elements)

    def _of_shortcuts(
        self,
        layout: Sequence[tuple[Key, ...]],
        values: Array,
        scales: Mapping[str, Array],
        shortcuts: dict[str, Array],
    ) -> None:
        for name, entries in _found(layout, OfShortcut).items():
            column = _OF_SHORTCUTS[name]
            picked = _unscaled(column, values, [place for place, _ in entries], scales)
            numbers = [key.shortcut for _, key in entries]
            combine(column, {name: picked}, numbers, [1] * len(entries), shortcuts[name])
        branch, shortcut = (shortcuts.pop(column.name) for column in schema.FORWARD_NORMS)
        shortcuts["branch_ratio"] = ratio(branch, shortcut)
        shortcuts["energy_share"] = energy_share(
            shortcuts["shortcut_norm"], shortcuts["branch_norm"]
        )


def _found(layout: Sequence[tuple[Key, ...]], kind: type[_KeyOfKind]) -> _Found[_KeyOfKind]:
    """Return where the readings of one kind are, by metric."""
    found: _Found[_KeyOfKind] = defaultdict(list)
    for place, keys in enumerate(layout):
        for key in keys:
            if isinstance(key, kind):
                found[key.metric].append((place, key))
    return found


def _unscaled(
    column: schema.Column, values: Array, places: list[int], scales: Mapping[str, Array]
) -> Array:
    """Return the values at `places`, divided by the scale that `column` says they carried."""
    picked: Array = values[:, places]
    return picked / scales[column.scale][:, None] if column.scale else picked


def _scalars(
    rows: Sequence[HostRow], layout: Sequence[tuple[Key, ...]], values: Array
) -> dict[str, Array]:
    """Return what was logged, as numbers and as tensors."""
    scalars: dict[str, Array] = {}
    for place, keys in enumerate(layout):
        for key in keys:
            if isinstance(key, OfStep):
                scalars[key.name] = values[:, place]
    for name in {name for row in rows for name in row.scalars}:
        scalars[name] = np.array([row.scalars.get(name, math.nan) for row in rows])
    return scalars


def _table(
    rows: list[HostRow], index: str, n: int, metrics: Mapping[str, Array], dtype: type
) -> Columns:
    steps = np.array([row.step for row in rows], dtype=np.int64)
    return {
        "step": np.repeat(steps, n),
        index: np.tile(np.arange(n, dtype=np.int32), len(rows)),
        **{name: matrix.reshape(-1).astype(dtype) for name, matrix in metrics.items()},
    }


def _complete_outputs(layers: dict[str, Array], elements: Array) -> None:
    """Complete what accelerators have read: deviations, from norm^2 / n - mean^2, and NaN."""
    norm, mean, deviation = (layers[f"activation_{name}"] for name in ("norm", "mean", "std"))
    missing = np.isnan(deviation) & ~np.isnan(norm)
    if missing.any():
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.square(norm) / elements - np.square(mean)
        deviation[missing] = np.sqrt(np.maximum(variance, 0))[missing]
    for metric in ("derivative_mean", "zero_fraction", "saturated_fraction"):
        layers[metric][np.isnan(norm)] = math.nan  # a count of signs does not show a NaN


def _steps(
    rows: list[HostRow], scale: Array, scalars: dict[str, Array], totals: Mapping[str, Array]
) -> Columns:
    nothing = np.full(len(rows), math.nan)
    found_inf = scalars.pop("found_inf", np.zeros(len(rows)))
    columns: Columns = {
        "step": np.array([row.step for row in rows], dtype=np.int64),
        "time": np.array([row.time for row in rows]),
        "skipped": np.array([row.skipped for row in rows]) | (found_inf > 0),
        "grad_norm": totals.get("grad_norm", nothing),
        "clipped_grad_norm": totals.get("clipped_grad_norm", nothing),
        "loss_scale": scale,
        "learning_rate": nothing,
    }
    return columns | scalars

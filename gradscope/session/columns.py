"""From the values of recorded rows to the columns of the tables; on the host, off the hot path.

Readings of one layer or shortcut at one step are put together here, as their `schema.Column` says:
over parameters, micro-batches and calls of a module, and divided by the factor of a loss scaler.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope import schema
from gradscope.arithmetic import Array, Groups, combine, energy_share, ratio, root_sum_square
from gradscope.capture.keys import Layout, OfLayer, OfShortcut
from gradscope.capture.net.catalogue import Catalogue
from gradscope.session.arrangement import OF_LAYERS, OF_SHORTCUTS, Arrangement
from gradscope.session.shares import ALONE, Shares
from gradscope.session.tape import HostRow
from gradscope.storage.writer import joined

Columns = dict[str, NDArray[np.generic]]
"""Column -> values, of one table."""

_REMEMBERED = 8
OF_ALL = ("grad_norm", "clipped_grad_norm")


class Copies(NamedTuple):
    """Norms, of layers of these `numbers`, over the parameters that `by` processes hold alike."""

    by: int
    numbers: NDArray[np.int64]
    norms: Array


class Decoded(NamedTuple):
    """Readings of rows, of each layer and shortcut as one, (rows, n); `columns` makes tables of it.

    `weights` are of layers and shortcuts, (n,): how many elements were read, or 1 where they do not
    matter, over the number of processes that read the same; 0 of what was not read, NaN of what
    should have been. `doubtful` tells the rows that lack signals and activations.
    """

    wide: bool
    steps: Columns
    totals: dict[str, Array]
    values: dict[str, dict[str, Array]]
    weights: dict[str, dict[str, NDArray[np.float64]]]
    copies: dict[str, list[Copies]]
    doubtful: Sequence[bool] = ()


class Decoder:
    """Puts readings of rows together, by the numbers of `catalogue`.

    Parameters
    ----------
    catalogue : Catalogue
    shares : Shares, optional
        What of the readings goes into those of all processes.
    """

    def __init__(self, catalogue: Catalogue, shares: Shares = ALONE) -> None:
        self._catalogue = catalogue
        self._shares = shares
        self._arrangements: list[Arrangement] = []  # the last few
        self._called: dict[int, int] = {}  # layers of which an output was read, and since when
        self._sizes = (0, 0)  # how many layers and shortcuts there are
        self.summands: dict[str, None] = {}  # layers of whose gradient processes hold summands

    def decoded(self, rows: Sequence[HostRow]) -> Iterator[Decoded]:
        """Yield the readings of `rows`, in runs of rows of one layout.

        Every layer and shortcut known by now stands in every row, in the catalogue's order.
        """
        self._sizes = len(self._catalogue.layers), len(self._catalogue.shortcuts)
        runs = [
            (list(alike), self._arrangement(layouts)) for layouts, alike in groupby(rows, _layouts)
        ]
        for alike, arranged in runs:
            if "activation_norm" in arranged.layers:
                first = min(row.step for row in alike)
                for layer in arranged.layers["activation_norm"][1].numbers.tolist():
                    self._called[layer] = min(first, self._called.get(layer, first))
        for alike, arranged in runs:
            yield self._alike(alike, arranged)

    def _arrangement(self, layouts: list[Layout]) -> Arrangement:
        for known in self._arrangements:
            if known.layouts == layouts:
                return known
        made = Arrangement(layouts, self._catalogue, self._shares)
        self.summands |= dict.fromkeys(made.summands)
        self._arrangements = [made, *self._arrangements[: _REMEMBERED - 1]]
        return made

    def _alike(self, rows: list[HostRow], arranged: Arrangement) -> Decoded:
        """Return the readings of rows of one layout."""
        values = np.array(
            [np.concatenate([v for _, v in row.segments]) if row.segments else [] for row in rows],
            dtype=np.float64,
        )
        scalars = _scalars(rows, arranged, values)
        scales = {
            name: np.nan_to_num(scalars.pop(name, np.full(len(rows), math.nan)), nan=1.0)
            for name in ("loss_scale", "grad_scale")
        }
        decoded = Decoded(
            any(row.wide for row in rows),
            _steps(rows, scales["loss_scale"], scalars),
            {},
            {
                "layers": _nothing(rows, self._sizes[0], OF_LAYERS),
                "shortcuts": _nothing(rows, self._sizes[1], OF_SHORTCUTS),
            },
            {"layers": {}, "shortcuts": {}},
            {},
            [row.is_doubtful for row in rows],
        )
        self._of_parameters(arranged, values, scales, decoded)
        self._of_layers(arranged, values, scales, decoded)
        self._of_shortcuts(arranged, values, scales, decoded)
        return decoded

    def _of_parameters(
        self, arranged: Arrangement, values: Array, scales: Mapping[str, Array], decoded: Decoded
    ) -> None:
        """Fill in the norms of parameters, and those over all parameters."""
        layers = decoded.values["layers"]
        for name, (places, groups) in arranged.parameters.items():
            column, held = OF_LAYERS[name], arranged.held[name]
            picked = _unscaled(column, values, places, scales)
            decoded.weights["layers"][name] = _weights(groups, self._sizes[0])
            if self._shares is not ALONE:
                decoded.copies[name] = [
                    Copies(round(by), some.numbers, _combined(column, picked[:, read], some))
                    for by, (read, some) in held.alike.items()
                ]
                picked = picked / np.sqrt(held.copies)
            decoded.totals[name] = root_sum_square(picked)
            combine(column, {name: picked}, groups, layers[name])
        before, after = (decoded.weights["layers"].get(name) for name in OF_ALL)
        if after is not None and (before is None or (after > 0)[before == 0].any()):
            decoded.totals[OF_ALL[0]] = np.full(len(values), math.nan)  # of some it was not read

    def _of_layers(
        self, arranged: Arrangement, values: Array, scales: Mapping[str, Array], decoded: Decoded
    ) -> None:
        layers, weights = decoded.values["layers"], decoded.weights["layers"]
        elements = np.zeros(self._sizes[0])  # of each layer's outputs; NaN where not known
        for name, (places, groups) in arranged.layers.items():
            column = OF_LAYERS[name]
            readings = {name: _unscaled(column, values, places, scales)}
            if column.mean:
                readings[column.mean] = values[:, places - 1]
            weights[name] = _weights(groups, elements.size)
            weights[name][groups.numbers[groups.weights == 0]] = math.nan
            combine(column, readings, groups, layers[name])
            if name == "activation_norm":
                elements = weights[name]
        _complete_outputs(layers, elements)
        self._count_outputs(decoded.steps["step"], layers, elements)
        known = (~np.isnan(layers["output_elements"][0])).astype(np.float64)
        weights["output_elements"] = np.where(np.isnan(elements), math.nan, known)
        self._apply_shares(OfLayer, OF_LAYERS, layers, weights)

    def _count_outputs(
        self, steps: NDArray[np.generic], layers: dict[str, Array], elements: Array
    ) -> None:
        """Fill in how many elements the outputs had; 0 of layers that were only called before."""
        if elements.any():
            known, since = list(self._called), np.array(list(self._called.values()))
            layers["output_elements"][:, known] = np.where(
                since <= np.asarray(steps)[:, None], elements[known], np.nan
            )

    def _of_shortcuts(
        self, arranged: Arrangement, values: Array, scales: Mapping[str, Array], decoded: Decoded
    ) -> None:
        shortcuts, weights = decoded.values["shortcuts"], decoded.weights["shortcuts"]
        for name, (places, groups) in arranged.shortcuts.items():
            column = OF_SHORTCUTS[name]
            weights[name] = _weights(groups, self._sizes[1])
            picked = _unscaled(column, values, places, scales)
            combine(column, {name: picked}, groups, shortcuts[name])
        self._apply_shares(OfShortcut, OF_SHORTCUTS, shortcuts, weights)

    def _apply_shares(
        self,
        kind: type[OfLayer] | type[OfShortcut],
        metrics: Mapping[str, schema.Column],
        values: Mapping[str, Array],
        weights: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Leave what is this process's own."""
        if self._shares is ALONE:
            return
        catalogue, parallel = self._catalogue, None
        if catalogue.sharing is not None and catalogue.sharing.parallel > 1:
            parallel = np.full((3, len(catalogue.layers)), np.nan)  # as of `Spread`
            for module, spread in list(catalogue.spread.items()):
                if module in catalogue.layer_of:
                    parallel[:, catalogue.layer_of[module]] = spread
            if kind is OfShortcut:
                size = self._sizes[1]
                parallel = np.full((3, size), np.nan)
                for number, held in list(catalogue.shortcut_spread.items()):
                    if (row := catalogue.joins.row_of.get(number, size)) < size:
                        parallel[:, row] = held
        for name, weight in weights.items():
            column = metrics[name]
            if column.processes == "copies":  # of parameters: done
                continue
            side = 2 if name == "input_signal_norm" else column.processes == "mean of losses"
            copies = None if parallel is None else parallel[int(side)]
            self._shares.apply(column, kind, values[name], weight, copies)


def columns(decoded: Decoded) -> dict[str, Columns]:
    """Return the columns of the tables `layers`, `shortcuts` and `steps`."""
    dtype = np.float64 if decoded.wide else np.float32
    steps = np.asarray(decoded.steps["step"])
    layers, shortcuts = dict(decoded.values["layers"]), dict(decoded.values["shortcuts"])
    first, last = (layers.pop(column.name) for column in schema.TIME_NORMS)
    with np.errstate(divide="ignore"):
        layers["time_decades"] = np.log10(ratio(first, last))
    branch, shortcut = (shortcuts.pop(column.name) for column in schema.FORWARD_NORMS)
    shortcuts["branch_ratio"] = ratio(branch, shortcut)
    shortcuts["energy_share"] = energy_share(shortcuts["shortcut_norm"], shortcuts["branch_norm"])
    norms = {name: decoded.totals.get(name, np.full(len(steps), math.nan)) for name in OF_ALL}
    return {
        "layers": _table(steps, "layer", layers, dtype),
        "shortcuts": _table(steps, "shortcut", shortcuts, dtype),
        "steps": {**decoded.steps, **norms},
    }


def _combined(column: schema.Column, values: Array, groups: Groups) -> Array:
    """Return `values` as one for each thing that there is."""
    out = np.full((len(values), groups.numbers[-1] + 1), np.nan)
    combine(column, {column.name: values}, groups, out)
    return out[:, groups.numbers]


def _layouts(row: HostRow) -> list[Layout]:
    return [layout for layout, _ in row.segments]


def by_layout(rows: Sequence[HostRow]) -> list[HostRow]:
    """Return `rows` with those of one layout side by side: each run of them costs."""
    alike: dict[tuple[int, ...], list[HostRow]] = {}
    for row in rows:
        alike.setdefault(tuple(map(id, _layouts(row))), []).append(row)
    return [row for some in alike.values() for row in some]


def in_order(parts: Sequence[dict[str, Columns]]) -> dict[str, Columns]:
    """Return tables of rows that `by_layout` has moved as one of each, by step."""
    return {table: _by_step(joined([part[table] for part in parts])) for table in schema.TABLES}


def _by_step(rows: Columns) -> Columns:
    steps = rows["step"].astype(np.int64)
    if (np.diff(steps) >= 0).all():
        return rows
    order = np.argsort(steps, kind="stable")
    return {name: values[order] for name, values in rows.items()}


def _nothing(
    rows: Sequence[HostRow], size: int, metrics: Mapping[str, schema.Column]
) -> dict[str, Array]:
    return {name: np.full((len(rows), size), np.nan) for name in metrics}


def _weights(groups: Groups, size: int) -> NDArray[np.float64]:
    """Return how many elements each of `size` things was read from."""
    weights = np.zeros(size)
    weights[groups.numbers] = groups.weights
    return weights


def _unscaled(
    column: schema.Column, values: Array, places: NDArray[np.int64], scales: Mapping[str, Array]
) -> Array:
    """Return the values at `places`, divided by the scale that `column` says they carried."""
    picked: Array = values[:, places]
    return picked / scales[column.scale][:, None] if column.scale else picked


def _scalars(rows: Sequence[HostRow], arranged: Arrangement, values: Array) -> dict[str, Array]:
    """Return what was logged, as numbers and as tensors."""
    scalars: dict[str, Array] = {n: values[:, place] for n, place in arranged.scalars.items()}
    for name in {name for row in rows for name in row.scalars}:
        scalars[name] = np.array([row.scalars.get(name, math.nan) for row in rows])
    return scalars


def _table(
    steps: NDArray[np.generic], index: str, metrics: Mapping[str, Array], dtype: type
) -> Columns:
    n = next(iter(metrics.values())).shape[1]
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        values: Columns = {
            name: matrix.reshape(-1).astype(dtype) for name, matrix in metrics.items()
        }
    return {
        "step": np.repeat(steps, n),
        index: np.tile(np.arange(n, dtype=np.int32), len(steps)),
        **values,
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


def _steps(rows: list[HostRow], scale: Array, scalars: dict[str, Array]) -> Columns:
    """Return the columns of `steps`, but for the norms over all parameters."""
    found_inf = scalars.pop("found_inf", np.zeros(len(rows)))
    columns: Columns = {
        "step": np.array([row.step for row in rows], dtype=np.int64),
        "time": np.array([row.time for row in rows]),
        "skipped": np.array([row.skipped for row in rows]) | (found_inf > 0),
        "loss_scale": scale,
        "learning_rate": np.full(len(rows), math.nan),
    }
    return columns | scalars

"""From the values of recorded rows to the columns of the tables; on the host, off the hot path.

Readings of one layer at one step are combined here: parameters, micro-batches and calls of a module
by the root of the sum of squares, means by their number of elements. What the backward pass saw
under a loss scaler is divided by its factor.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gradscope import schema
from gradscope.catalogue import Catalogue
from gradscope.tape import HostRow, Key, Layout

Array = NDArray[np.floating]
Columns = dict[str, NDArray[np.generic]]

LAYER_METRICS = schema.names(schema.LAYER_METRICS)
SHORTCUT_METRICS = schema.names(schema.SHORTCUT_METRICS)

_SCALED = {
    "grad_norm",
    "signal_norm",
    "input_signal_norm",
    "cut_signal_norm",
    "total_norm",
    "shortcut_norm",
    "branch_norm",
    "other_norm",
}
"""Metrics of the backward pass, read while the gradient carries the loss scale."""

_FORWARD = ("branch_forward", "shortcut_forward")
"""Norms of F(x) and S(x) as read in the forward: only their ratio is kept."""

_MEANS = {"activation_mean", "derivative_mean", "zero_fraction", "saturated_fraction", "cosine"}


class Decoder:
    """Turns rows into columns of the part files, by the numbers of `catalogue`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def columns(self, rows: Sequence[HostRow]) -> list[dict[str, Columns]]:
        """Return the columns of the tables `layers`, `shortcuts` and `steps`, in runs of rows.

        Every layer and shortcut known by now stands in every row, in the catalogue's order.
        """
        return [
            self._group(list(group))
            for _, group in groupby(rows, key=lambda row: [layout for layout, _ in row.segments])
        ]

    def _group(self, rows: list[HostRow]) -> dict[str, Columns]:
        layout: Layout = tuple(key for keys, _ in rows[0].segments for key in keys)
        values = np.array(
            [np.concatenate([v for _, v in row.segments]) if row.segments else [] for row in rows]
        )
        dtype = np.float64 if any(row.wide for row in rows) else np.float32
        by_kind: dict[Key, list[tuple[int, Key]]] = defaultdict(list)
        for column, keys in enumerate(layout):
            for kind, name, *rest in keys:
                by_kind[kind, name].append((column, tuple(rest)))
        scalars = {
            str(name): values[:, entries[-1][0]].astype(np.float64)
            for (kind, name), entries in by_kind.items()
            if kind == "step"
        }
        for name in {name for row in rows for name in row.scalars}:
            scalars[name] = np.array([row.scalars.get(name, math.nan) for row in rows])
        none = np.full(len(rows), math.nan)
        scale, fused = (
            np.nan_to_num(scalars.pop(name, none), nan=1.0) for name in ("loss_scale", "grad_scale")
        )
        scales = {**dict.fromkeys(_SCALED, scale), "clipped_grad_norm": fused}

        layer_of = self._catalogue.layer_of
        n_layers, n_shortcuts = len(self._catalogue.layers), len(self._catalogue.shortcuts)
        layers = {m: np.full((len(rows), n_layers), np.nan) for m in LAYER_METRICS}
        shortcuts = {
            m: np.full((len(rows), n_shortcuts), np.nan) for m in (*SHORTCUT_METRICS, *_FORWARD)
        }
        totals = {}
        elements = np.zeros(n_layers)  # of each layer's outputs
        for (kind, name), entries in by_kind.items():
            metric = str(name)
            picked = values[:, [column for column, _ in entries]].astype(np.float64)
            if metric in scales:
                picked /= scales[metric][:, None]
            if kind == "param":  # tied weights belong to the owner first in order
                numbers = [min(layer_of[m] for m in owners) for _, (owners, _) in entries]
                totals[metric] = root_sum_square(picked)
                combine(metric, picked, numbers, [1] * len(entries), layers[metric])
            elif kind == "layer":
                numbers = [layer_of[module] for _, (module, _) in entries]
                combine(metric, picked, numbers, [n for _, (_, n) in entries], layers[metric])
                if metric == "activation_std":
                    means = by_kind[kind, "activation_mean"]
                    spread = values[:, [column for column, _ in means]].astype(np.float64)
                    pool_deviations(
                        picked, spread, numbers, [n for _, (_, n) in entries], layers[metric]
                    )
                elif metric == "activation_norm":
                    np.add.at(elements, numbers, [n for _, (_, n) in entries])
            elif kind == "shortcut":
                combine(
                    metric,
                    picked,
                    [number for _, (number,) in entries],
                    [1] * len(entries),
                    shortcuts[metric],
                )
        _complete_outputs(layers, elements)
        _complete(shortcuts)
        return {
            "layers": self._table(rows, "layer", n_layers, layers, dtype),
            "shortcuts": self._table(rows, "shortcut", n_shortcuts, shortcuts, dtype),
            "steps": _steps(rows, scale, scalars, totals),
        }

    @staticmethod
    def _table(
        rows: list[HostRow], index: str, n: int, metrics: Mapping[str, Array], dtype: type
    ) -> Columns:
        steps = np.array([row.step for row in rows], dtype=np.int64)
        return {
            "step": np.repeat(steps, n),
            index: np.tile(np.arange(n, dtype=np.int32), len(rows)),
            **{name: matrix.reshape(-1).astype(dtype) for name, matrix in metrics.items()},
        }


def root_sum_square(values: Array) -> Array:
    """Return the root of the sum of squares over the last axis, shape (n, k) -> (n,)."""
    result: Array = np.sqrt(np.square(values).sum(axis=1))
    return result


def pool_deviations(
    deviations: Array, means: Array, numbers: Sequence[int], counts: Sequence[int], out: Array
) -> None:
    """Write the standard deviation over all elements to `out`, where a layer was read repeatedly.

    Source: law of total variance, over the readings of one layer weighted by their elements.
    """
    weights = np.asarray(counts, dtype=np.float64)
    for number in {n for n, count in Counter(numbers).items() if count > 1}:
        places = [i for i, other in enumerate(numbers) if other == number]
        share = weights[places] / weights[places].sum()
        mean = means[:, places] @ share
        spread = np.square(deviations[:, places]) + np.square(means[:, places] - mean[:, None])
        out[:, number] = np.sqrt(spread @ share)


def combine(
    metric: str, values: Array, numbers: Sequence[int], counts: Sequence[int], out: Array
) -> None:
    """Write `values`, shape (rows, k), to the columns `numbers` of `out`, combining repeats.

    Parameters
    ----------
    metric : str
        Means and fractions are averaged with the weights `counts`, everything else is the root
        of the sum of squares.
    """
    columns: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(numbers):
        columns[number].append(i)
    once = [(number, places[0]) for number, places in columns.items() if len(places) == 1]
    if once:
        targets, sources = zip(*once, strict=True)
        out[:, list(targets)] = values[:, list(sources)]
    weights = np.asarray(counts, dtype=np.float64)
    for number, places in columns.items():
        if len(places) == 1:
            continue
        part, weight = values[:, places], weights[places]
        if metric in _MEANS:
            out[:, number] = part @ weight / weight.sum()
        else:
            out[:, number] = root_sum_square(part)


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


def _complete(shortcuts: dict[str, Array]) -> None:
    """Fill in what follows from other readings, where these are there."""
    share = np.square(shortcuts["shortcut_norm"])
    branch, shortcut = (shortcuts.pop(metric) for metric in _FORWARD)
    with np.errstate(invalid="ignore", divide="ignore"):
        shortcuts["energy_share"] = share / (share + np.square(shortcuts["branch_norm"]))
        shortcuts["branch_ratio"] = branch / shortcut


def _steps(
    rows: list[HostRow],
    scale: Array,
    scalars: dict[str, NDArray[np.float64]],
    totals: Mapping[str, Array],
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
    }
    return columns | scalars

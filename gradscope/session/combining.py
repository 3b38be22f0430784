"""The sums that several processes make of one step, as readings.

What several should hold alike is compared: where it differs, no number is that of all, and it is
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import Array, root_sum_square
from gradscope.session.columns import OF_ALL, Columns, Decoded
from gradscope.session.joint import Joint
from gradscope.session.partial_rows import METRICS, Ints, Kind, PartialRow, Slots, readings_of

TOLERANCE = 1e-4
"""Relative difference of two readings of one thing, on different hardware at most."""

_OF_STEPS = ("clipped_grad_norm", "update_norm")  # what steps of one number have in common


class Combiner:
    """Makes readings of what all of `size` processes have added up.

    Attributes
    ----------
    partial : list of int
        Steps that not every process has sent.
    apart : list of int
        Steps of one number in which processes did not do the same.
    unlike : dict of str to array
        Metric -> the numbers of layers, of which processes hold readings of their own.
    """

    def __init__(self, size: int, joint: Joint, slots: Slots) -> None:
        self.partial: list[int] = []
        self.apart: list[int] = []
        self.unlike: dict[str, Ints] = {}
        self._size = size
        self._joint = joint
        self._slots = slots
        self._ever: set[tuple[str, int]] = set()  # metrics of layers that were unlike

    def decoded(self, rows: Sequence[PartialRow]) -> Decoded:
        """Return the readings of `rows`, by the numbers of the run."""
        sums = np.zeros((len(rows), 2, self._slots.size))
        for i, row in enumerate(rows):
            sums[i, :, : row.sums.shape[1]] = row.sums
        whole = np.array([row.processes == self._size for row in rows])
        self.partial += [
            row.step for row, all_of_it in zip(rows, whole, strict=True) if not all_of_it
        ]
        values: dict[str, dict[str, Array]] = {
            table: {name: np.full((len(rows), len(listed)), np.nan) for name in METRICS[table]}
            for table, listed in (
                ("layers", self._joint.layers),
                ("shortcuts", self._joint.shortcuts),
            )
        }
        for kind in sorted(
            self._slots.kinds, key=lambda kind: kind.metric
        ):  # means before deviations
            if not kind.copies:
                self._fill(kind, sums, values[kind.table])
        self._compare(rows, sums, whole, values)
        norms = values["layers"]
        totals = {}
        for name in OF_ALL:
            slots = self._slots.kinds.get(Kind("layers", name))
            if slots is not None:
                read = self._place("layers", np.flatnonzero(slots >= 0))
                seen = sums[:, 1, slots[slots >= 0]] > 0
                totals[name] = root_sum_square(np.where(seen, norms[name][:, read], 0.0))
                totals[name][~seen.any(axis=1)] = np.nan
        before, after = (~np.isnan(norms[name]) for name in OF_ALL)
        if "grad_norm" in totals:  # of some it was not read
            totals["grad_norm"][(after & ~before).any(axis=1)] = np.nan
        wide = any(row.wide for row in rows)
        return Decoded(wide, _steps(rows), totals, values, {}, {})

    def _place(self, table: str, numbers: Ints) -> Ints:
        return np.array(self._joint.places[table], np.int64)[numbers]

    def _fill(self, kind: Kind, sums: NDArray[np.float64], values: dict[str, Array]) -> None:
        numbers, found, _ = readings_of(kind, self._slots, sums)
        column, places = METRICS[kind.table][kind.metric], self._place(kind.table, numbers)
        if column.combine == "deviation":
            with np.errstate(invalid="ignore"):
                variance = found - np.square(values[column.mean][:, places])
            found = np.sqrt(np.maximum(variance, 0))
        values[kind.metric][:, places] = found

    def _compare(
        self,
        rows: Sequence[PartialRow],
        sums: NDArray[np.float64],
        whole: NDArray[np.bool_],
        values: dict[str, dict[str, Array]],
    ) -> None:
        """Set to NaN what is not that of all, and note of what and why."""
        layers = values["layers"]
        unlike = {name: np.zeros(x.shape, np.bool_) for name, x in layers.items()}
        alike = {name: np.full(x.shape, np.nan) for name, x in layers.items()}
        counts = {name: np.zeros((2, len(rows))) for name in _OF_STEPS}  # compared, unlike
        for kind in self._slots.kinds:
            if not kind.copies or kind.is_squared:
                continue
            numbers, means, seen = readings_of(kind, self._slots, sums)
            _, squares, _ = readings_of(kind._replace(is_squared=True), self._slots, sums)
            of = self._slots.kinds[Kind("layers", kind.metric)][numbers]
            places = self._place("layers", numbers)
            held = (seen > 0) & (seen <= kind.copies)  # by more: parts of it, that are not compared
            differs = held & _differ(squares, means, seen)
            # whether nothing else counts in the layer
            is_all = np.isclose(sums[:, 0, of] * kind.copies, squares * seen, atol=0)
            known = np.where(held & ~differs & is_all, means, np.nan)
            alike[kind.metric][:, places] = np.fmax(alike[kind.metric][:, places], known)
            differs |= held & (seen < kind.copies) & whole[:, None]
            unlike[kind.metric][:, places] |= differs
            if kind.metric in counts:
                counts[kind.metric] += np.stack([held.sum(axis=1), differs.sum(axis=1)])
        for i, row in enumerate(rows):
            differing = {name: np.flatnonzero(cells[i]) for name, cells in unlike.items()}
            if not whole[i]:  # nothing to compare: what differed before is not believed
                for name in values["shortcuts"]:
                    values["shortcuts"][name][i] = np.nan
                for name, metric in layers.items():
                    metric[i] = alike[name][i]
                for name, place in self._ever:
                    layers[name][i, place] = np.nan
                continue
            self._ever |= {(name, n) for name, some in differing.items() for n in some.tolist()}
            compared, found = next((c[:, i] for c in counts.values() if c[0, i]), (0, 0))
            if 2 * found > compared:
                self.apart.append(row.step)
                for some in values.values():
                    for metric in some.values():
                        metric[i] = np.nan
                continue
            for name, places in differing.items():
                layers[name][i, places] = np.nan
                if places.size:
                    self.unlike.setdefault(name, places)


def _differ(squares: Array, means: Array, seen: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether norms that `seen` processes have read of one thing differ.

    Told by the sum of their squared distances from their mean; `squares` are means of theirs.
    """
    with np.errstate(invalid="ignore"):
        spread = (squares - np.square(means)) * seen
        result: NDArray[np.bool_] = spread > TOLERANCE**2 * np.square(means)
    return result


def _steps(rows: Sequence[PartialRow]) -> Columns:
    columns: Columns = {
        "step": np.array([row.step for row in rows], np.int64),
        "time": np.array([row.time for row in rows]),
        "skipped": np.array([row.skipped for row in rows], np.bool_),
    }
    for name in dict.fromkeys(name for row in rows for name in row.scalars):
        columns[name] = np.array([row.scalars.get(name, math.nan) for row in rows])
    return columns

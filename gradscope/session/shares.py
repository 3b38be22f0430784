"""How much of what one process reads goes into what all of them together have read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import Array
from gradscope.capture.keys import Key, OfParameter
from gradscope.schema import Column


class Shares(NamedTuple):
    """What of this process's readings is its own.

    Attributes
    ----------
    losses : float
        Of how many losses the gradients are the mean: that of each process is of its own.
    holders : mapping of str to float
        Layer -> of the processes that `OfParameter.copies` counts, the share that has it; 1 if not
        named.
    unknown : kinds of readings of which it is not known, and that are NaN
    experts : set of str
        Layers that fewer processes have than others of the same samples.
    others : int
        Processes that this one has not met, as it was watched before there was a group of them.
    """

    losses: float = 1.0
    holders: Mapping[str, float] = {}
    unknown: tuple[type[Key], ...] = ()
    experts: frozenset[str] = frozenset()
    others: int = 0

    def copies(self, key: OfParameter, layer: str) -> float:
        """Return how many processes hold what was read of a parameter of `layer`."""
        if OfParameter in self.unknown or not key.copies:
            return math.nan
        if self.others:
            return 1.0 if key.copies in (1, self.others) else math.nan
        return key.copies * self.holders.get(layer, 1.0)

    def apply(
        self,
        column: Column,
        kind: type[Key],
        values: Array,
        weights: NDArray[np.float64],
        copies: NDArray[np.float64] | None,
    ) -> None:
        """Leave of a reading of layers, or of shortcuts, what is this process's own, in place.

        Parameters
        ----------
        column : Column
        kind : OfLayer or OfShortcut
        values, weights : arrays, shape (rows, n) and (n,)
        copies : array, shape (n,), optional
            How many processes have read the same of each; NaN if not known.
        """
        if kind in self.unknown:
            values[:] = np.nan
            return
        if column.processes == "mean of losses":
            np.divide(values, self.losses, out=values)
        if copies is None:
            return
        if column.combine == "root sum square":
            np.divide(values, np.sqrt(copies), out=values)
        elif column.combine == "sum":
            np.divide(values, copies, out=values)
        elif column.combine == "largest":
            values[:, np.isnan(copies)] = np.nan
        else:
            values[:, np.isnan(copies)] = np.nan
            np.divide(weights, np.where(np.isnan(copies), 1, copies), out=weights)


ALONE = Shares()
"""Those of a process that trains by itself: all of its readings, as they are."""

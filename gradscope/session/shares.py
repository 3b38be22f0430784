"""How much of what one process reads goes into what all of them together have read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import Array
from gradscope.capture.rows import Key, OfParameter
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
    """

    losses: float = 1.0
    holders: Mapping[str, float] = {}
    unknown: tuple[type[Key], ...] = ()

    def copies(self, key: OfParameter, layer: str) -> float:
        """Return how many processes hold what was read of a parameter of `layer`."""
        if OfParameter in self.unknown:
            return math.nan
        return key.copies * self.holders.get(layer, 1.0)

    def apply(
        self,
        kind: type[Key],
        metrics: Mapping[str, Column],
        values: Mapping[str, Array],
        weights: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Leave of readings of layers, or of shortcuts, what is this process's own, in place."""
        if self is ALONE:
            return
        for name in weights:
            column = metrics[name]
            if column.processes == "copies":  # of parameters: see `copies`
                continue
            if kind in self.unknown:
                values[name][:] = np.nan
            elif column.processes == "mean of losses":
                np.divide(values[name], self.losses, out=values[name])


ALONE = Shares()
"""Those of a process that trains by itself: all of its readings, as they are."""
